use std::io::Read;

use proptest::prelude::*;

use super::*;
use crate::image::{Header, Image, ImageError, ImageWriter, Limits, Requirement, SectionId};
use crate::{Entropy, GenerationId, Secret};

const SMALL: u32 = 64;

/// An image whose part behind the header is this long.
fn image(rest: usize) -> Vec<u8> {
    let header = Header { schema: 7, writer: "test 1.2.3".to_owned(), generation: GenerationId([3; 16]) };
    let frame = 20 + 20;
    let mut writer = ImageWriter::new(&header);
    let body: Vec<u8> = (0..rest.saturating_sub(frame)).map(|at| at as u8).collect();
    writer.section(SectionId::new(*b"BODY"), 1, Requirement::Required, &body);
    let image = writer.finish();
    assert_eq!(image.len() - Image::front(&image).unwrap().bytes, rest);
    image
}

fn key(seed: u64) -> SealKey {
    SealKey::draw(&mut Entropy::from_test_seed(seed))
}

fn sealed_by(key: &SealKey, nonce: u64, image: &[u8]) -> Vec<u8> {
    let mut sealed = Vec::new();
    let mut sealer = Sealer::new(key, &mut Entropy::from_test_seed(nonce)).with_chunks_of(SMALL);
    sealer.push(image, &mut sealed).unwrap();
    sealer.finish(&mut sealed).unwrap();
    sealed
}

fn sealed(image: &[u8]) -> Vec<u8> {
    sealed_by(&key(1), 2, image)
}

/// Front, chunks.
fn taken_apart(sealed: &[u8]) -> (Vec<u8>, Vec<Vec<u8>>) {
    let front = FRONT_BYTES + usize::from(u16::from_le_bytes([sealed[35], sealed[36]]));
    let chunks = sealed[front..].chunks(SMALL as usize + TAG_BYTES).map(<[u8]>::to_vec).collect();
    (sealed[..front].to_vec(), chunks)
}

#[test]
fn an_image_of_any_length_comes_back_as_it_was() {
    for rest in (40..=300).chain([4096]) {
        let image = image(rest);
        assert_eq!(open(sealed(&image), &key(1)).unwrap(), image, "{rest} bytes behind the header");
    }
    let large = image(3 * CHUNK_BYTES as usize + 5);
    let sealed = seal(&large, &key(1), &mut Entropy::from_test_seed(9)).unwrap();
    assert_eq!(sealed.len(), large.len() + FRONT_BYTES + 4 * TAG_BYTES);
    assert_eq!(open(sealed, &key(1)).unwrap(), large);
}

#[test]
fn a_bit_flipped_at_any_place_is_refused_before_anything_is_decoded() {
    let whole = sealed(&image(200));
    for at in 0..whole.len() * 8 {
        let mut changed = whole.clone();
        changed[at / 8] ^= 1 << (at % 8);
        let error = open(changed, &key(1)).expect_err("a changed image");
        let text = error.to_string();
        assert!(text.starts_with("sealed") || matches!(error, SealError::NotSealed { .. }), "bit {at}: {text}");
        let behind_front = at / 8 >= taken_apart(&whole).0.len();
        if behind_front {
            assert!(text.contains("the file was changed"), "bit {at}: {text}");
        }
    }
}

#[test]
fn what_is_cut_off_at_any_place_or_continued_is_refused() {
    let whole = sealed(&image(200));
    for length in 0..whole.len() {
        assert!(open(whole[..length].to_vec(), &key(1)).is_err(), "{length} bytes");
    }
    for more in 1..=100 {
        let longer = [whole.clone(), vec![0; more]].concat();
        assert!(open(longer, &key(1)).is_err(), "{more} bytes more");
    }
    // Where a chunk ends, every chunk that is left opens: the missing ones are missed all the same.
    let (front, chunks) = taken_apart(&whole);
    let cut = [front, chunks[..2].concat()].concat();
    assert_eq!(open(cut, &key(1)), Err(SealError::CutOff { chunk: 1 }));
}

#[test]
fn chunks_left_out_moved_doubled_or_of_another_image_are_refused() {
    let (front, chunks) = taken_apart(&sealed(&image(4 * 64)));
    let (_, others) = taken_apart(&sealed_by(&key(1), 3, &image(4 * 64)));
    let open_chunks = |chunks: &[&Vec<u8>]| {
        let chunks: Vec<u8> = chunks.iter().copied().flatten().copied().collect();
        open([front.clone(), chunks].concat(), &key(1))
    };
    let [a, b, c, d] = chunks.as_slice() else { panic!("four chunks") };
    assert!(open_chunks(&[a, b, c, d]).is_ok());
    assert_eq!(open_chunks(&[a, c, d]), Err(SealError::Changed { chunk: 1 }));
    assert_eq!(open_chunks(&[b, c, d]), Err(SealError::DoesNotOpen));
    assert_eq!(open_chunks(&[a, c, b, d]), Err(SealError::Changed { chunk: 1 }));
    assert_eq!(open_chunks(&[a, b, b, c, d]), Err(SealError::Changed { chunk: 2 }));
    assert_eq!(open_chunks(&[a, b, c, d, d]), Err(SealError::Changed { chunk: 3 }));
    assert_eq!(open_chunks(&[a, &others[1], c, d]), Err(SealError::Changed { chunk: 1 }));
}

#[test]
fn another_header_in_front_is_refused() {
    let (mut front, chunks) = taken_apart(&sealed(&image(200)));
    let mut header =
        ImageWriter::new(&Header { schema: 7, writer: "test 1.2.4".to_owned(), generation: GenerationId([3; 16]) });
    header.section(SectionId::new(*b"BODY"), 1, Requirement::Required, &[]);
    let header = header.finish();
    let length = front.len() - FRONT_BYTES;
    front[FRONT_BYTES..].copy_from_slice(&header[..length]);
    let forged = [front, chunks.concat()].concat();
    assert_eq!(Sealed::read(&forged).unwrap().front.header.writer, "test 1.2.4", "its own checksum is right");
    assert_eq!(open(forged, &key(1)), Err(SealError::DoesNotOpen));
}

/// What a reader that takes the image piece by piece makes of it.
fn streamed(sealed: &[u8], key: &SealKey) -> Result<Vec<u8>, SealError> {
    let failed = |error: std::io::Error| *error.into_inner().unwrap().downcast::<SealError>().unwrap();
    let mut input = Unsealer::begin(sealed, key).map_err(failed)?;
    let mut image = Vec::new();
    input.read_to_end(&mut image).map_err(failed)?;
    Ok(image)
}

#[test]
fn what_is_read_piece_by_piece_is_opened_and_refused_alike() {
    for rest in [40, 63, 64, 65, 128, 200] {
        let (image, whole) = (image(rest), sealed(&image(rest)));
        assert_eq!(streamed(&whole, &key(1)).unwrap(), image);
        assert_eq!(streamed(&whole, &key(2)), open(whole.clone(), &key(2)));
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 0x10;
            assert_eq!(streamed(&changed, &key(1)).unwrap_err(), open(changed, &key(1)).unwrap_err(), "byte {at}");
            assert!(streamed(&whole[..at], &key(1)).is_err(), "{at} bytes");
        }
        let (front, chunks) = taken_apart(&whole);
        let cut = [front, chunks[..chunks.len() - 1].concat()].concat();
        assert!(streamed(&cut, &key(1)).is_err());
    }
}

#[test]
fn the_wrong_key_is_refused_and_says_so() {
    let error = open(sealed(&image(200)), &key(2)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "sealed, and does not open: the wrong key, or the file was changed since it was sealed"
    );
}

#[test]
fn what_is_not_sealed_is_refused_where_a_seal_is_expected_and_the_other_way_round() {
    let image = image(200);
    let error = open(image.clone(), &key(1)).unwrap_err().to_string();
    assert!(error.contains("not sealed: it starts with \"HIBERNET\""), "{error}");
    assert!(open(Vec::new(), &key(1)).is_err());
    assert_eq!(Image::parse(&sealed(&image), &Limits::default()).unwrap_err(), ImageError::Sealed);
}

#[test]
fn the_header_can_be_read_without_the_key_and_the_rest_cannot() {
    let image = image(400);
    let sealed = sealed(&image);
    let read = Sealed::read(&sealed).unwrap();
    assert_eq!(read.front, Image::front(&image).unwrap());
    assert_eq!((read.version, read.chunk_bytes), (SEAL_VERSION, SMALL));
    let behind = &image[read.front.bytes..];
    for window in behind.windows(8) {
        assert!(!sealed.windows(8).any(|other| other == window), "{window:?}");
    }
}

#[test]
fn two_seals_of_one_image_have_nothing_in_common_but_the_front() {
    let image = image(200);
    let mut entropy = Entropy::from_test_seed(5);
    let [one, other] = [(); 2].map(|()| seal(&image, &key(1), &mut entropy).unwrap());
    let front = FRONT_BYTES + Image::front(&image).unwrap().bytes;
    assert_eq!(one[..16], other[..16]);
    assert_ne!(one[16..35], other[16..35], "the nonces");
    assert!(one[front..].windows(8).all(|window| !other.windows(8).any(|there| there == window)));
}

#[test]
fn what_is_no_image_is_not_sealed() {
    for bytes in
        [&b""[..], b"HIBERNET", b"something else that is long enough to be a header, if it were one.", &[0; 500]]
    {
        let error = seal(bytes, &key(1), &mut Entropy::from_test_seed(1)).unwrap_err();
        assert!(matches!(error, SealError::NotAnImage(_)), "{error}");
    }
    let mut image = image(100);
    image.truncate(50);
    assert!(seal(&image, &key(1), &mut Entropy::from_test_seed(1)).is_err());
}

/// Computed with another implementation (PyNaCl's libsodium, XChaCha20-Poly1305 IETF), from the description alone.
#[test]
fn the_seal_is_what_is_described() {
    let image = image(100);
    let key = SealKey::new(Secret::new([0x42; 32]));
    let sealed = sealed_by(&key, 2, &image);
    assert_eq!(crc32fast::hash(&sealed), PEER_CHECKSUM);
}

#[test]
fn a_key_file_holds_bytes_or_digits() {
    let opens = |content: &[u8]| {
        let key = SealKey::from_file_content(content)?;
        open(sealed_by(&SealKey::new(Secret::new([0xa5; 32])), 1, &image(100)), &key).unwrap();
        Ok::<_, SealKeyError>(())
    };
    assert_eq!(opens(&[0xa5; 32]), Ok(()));
    for digits in ["a5".repeat(32), "A5".repeat(32), "a5".repeat(32) + "\n", "a5".repeat(32) + "\r\n"] {
        assert_eq!(opens(digits.as_bytes()), Ok(()), "{digits:?}");
    }
    for content in
        ["", "a5", &"a5".repeat(31), &"a5".repeat(33), &("g5".to_owned() + &"a5".repeat(31)), &" ".repeat(64)]
    {
        let error = SealKey::from_file_content(content.as_bytes()).unwrap_err();
        assert_eq!(error, SealKeyError { found: content.len() });
        assert!(content.is_empty() || !error.to_string().contains(content), "a key that is nearly one stays unsaid");
    }
}

#[test]
fn a_key_prints_nothing_of_itself() {
    assert_eq!(format!("{:?}", key(1)), "SealKey(..)");
}

proptest! {
    #[test]
    fn parts_of_any_size_come_to_the_same_seal(rest in 40_usize..700, parts in prop::collection::vec(1_usize..200, 1..20)) {
        let image = image(rest);
        let mut sealed_in_parts = Vec::new();
        let mut sealer = Sealer::new(&key(1), &mut Entropy::from_test_seed(2)).with_chunks_of(SMALL);
        let mut left = image.as_slice();
        for part in parts.iter().cycle() {
            let (now, later) = left.split_at((*part).min(left.len()));
            sealer.push(now, &mut sealed_in_parts).unwrap();
            left = later;
            let held_back = (image.len() - left.len()).saturating_sub(sealed_in_parts.len());
            prop_assert!(held_back <= SMALL as usize, "no more than a chunk is held back");
            if left.is_empty() {
                break;
            }
        }
        sealer.finish(&mut sealed_in_parts).unwrap();
        prop_assert_eq!(sealed_in_parts, sealed(&image));
    }

    #[test]
    fn arbitrary_bytes_are_refused_and_never_panic(bytes: Vec<u8>) {
        prop_assert!(open(bytes.clone(), &key(1)).is_err());
        prop_assert!(open([SEALED_MAGIC.to_vec(), bytes].concat(), &key(1)).is_err());
    }
}

/// CRC-32 of what the other implementation made.
const PEER_CHECKSUM: u32 = 0xc351_4c19;
