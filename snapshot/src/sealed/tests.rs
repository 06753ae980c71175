use super::*;
use crate::GenerationId;
use crate::image::{Image, ImageError, ImageWriter, Limits, Requirement, SectionId, StoredImage};

fn key(byte: u8) -> SealKey {
    SealKey::new(Secret::new([byte; KEY_BYTES]))
}

fn header() -> Header {
    Header { schema: 7, writer: "test 1".to_owned(), generation: GenerationId([7; 16]) }
}

fn image(body: &[u8]) -> Vec<u8> {
    let mut writer = ImageWriter::new(&header());
    writer.section(SectionId::new(*b"FLOW"), 1, Requirement::Required, body);
    writer.finish()
}

fn sealed(image: &[u8], piece: usize, seed: u64) -> Vec<u8> {
    let mut out = Vec::new();
    let sink = |bytes: &[u8]| {
        out.extend_from_slice(bytes);
        Ok::<_, ()>(())
    };
    let mut sealer = Sealer::begin(&header(), &key(1), &mut Entropy::from_test_seed(seed), sink).unwrap();
    image.chunks(piece).for_each(|piece| sealer.put(piece).unwrap());
    sealer.finish().unwrap();
    out
}

fn opened(sealed: &[u8], key: &SealKey) -> io::Result<Vec<u8>> {
    let mut image = Vec::new();
    Unsealer::begin(sealed, key)?.read_to_end(&mut image)?;
    Ok(image)
}

#[test]
fn what_was_sealed_in_any_pieces_opens_to_the_same_bytes() {
    for length in [0, 1, CHUNK_BYTES - 76, CHUNK_BYTES - 75, 3 * CHUNK_BYTES] {
        let image = image(&vec![3; length]);
        let whole = sealed(&image, usize::MAX, 1);
        assert!(whole == sealed(&image, 1 + length / 7, 1));
        assert!(opened(&whole, &key(1)).unwrap() == image, "{length}");
        let read = StoredImage::read(&mut Unsealer::begin(whole.as_slice(), &key(1)).unwrap(), &Limits::default());
        assert_eq!(read.unwrap().sections().next().unwrap().body.len(), length);
    }
}

#[test]
fn two_seals_of_one_image_have_nothing_in_common() {
    let image = image(b"a few flows");
    let (one, other) = (sealed(&image, 99, 1), sealed(&image, 99, 2));
    let at = one.len() - image.len() - TAG_BYTES;
    assert_eq!(one[..at - PREFIX_BYTES], other[..at - PREFIX_BYTES], "the header is in the clear");
    assert!(one[at..].windows(8).all(|window| !other.windows(8).any(|theirs| theirs == window)));
    assert!(image.windows(8).skip(60).all(|window| !one.windows(8).any(|theirs| theirs == window)));
}

#[test]
fn another_key_is_refused_and_the_writer_is_named() {
    let error = opened(&sealed(&image(b"a few flows"), 99, 1), &key(2)).unwrap_err().to_string();
    assert!(error.contains("chunk 0") && error.contains("another key") && error.contains("test 1"), "{error}");
}

#[test]
fn a_flip_of_any_bit_is_refused() {
    let whole = sealed(&image(b"a few flows"), 99, 1);
    for at in 0..whole.len() {
        for bit in 0..8 {
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << bit;
            assert!(opened(&flipped, &key(1)).is_err(), "byte {at}, bit {bit}");
        }
    }
}

#[test]
fn a_cut_a_chunk_left_out_repeated_or_moved_and_anything_behind_the_end_are_refused() {
    let image = image(&(0..3 * CHUNK_BYTES).map(|at| at as u8).collect::<Vec<_>>());
    let whole = sealed(&image, 9999, 1);
    let head = whole.len() - image.len() - 4 * TAG_BYTES;
    let (front, chunks) = whole.split_at(head);
    let chunks: Vec<&[u8]> = chunks.chunks(CHUNK_BYTES + TAG_BYTES).collect();
    assert_eq!(chunks.len(), 4);
    for order in [&[0, 1, 2][..], &[0, 2, 3], &[1, 0, 2, 3], &[0, 0, 1, 2, 3], &[3], &[0, 1, 3], &[]] {
        let changed = [front, &order.iter().map(|at| chunks[*at]).collect::<Vec<_>>().concat()].concat();
        assert!(opened(&changed, &key(1)).is_err(), "{order:?}");
    }
    for length in (0..whole.len()).step_by(997) {
        assert!(opened(&whole[..length], &key(1)).is_err(), "{length} bytes");
    }
    assert!(opened(&[&whole[..], &[0]].concat(), &key(1)).is_err());
    assert!(opened(&whole, &key(1)).unwrap() == image);
}

#[test]
fn without_its_key_a_sealed_image_is_refused_as_what_it_is_and_a_plain_one_is_no_sealed_one() {
    let whole = sealed(&image(b"a few flows"), 99, 1);
    let refused = Image::parse(&whole, &Limits::default()).unwrap_err();
    assert_eq!(refused, ImageError::Sealed { writer: "test 1".to_owned() });
    let refused = opened(&image(b"a few flows"), &key(1)).unwrap_err().to_string();
    assert!(refused.contains("not a sealed image") && refused.contains("test 1"), "{refused}");
    assert!(opened(b"#!/bin/sh", &key(1)).unwrap_err().to_string().contains("not a sealed image"));
    assert!(opened(b"", &key(1)).is_err());
}

#[test]
fn a_key_prints_nothing() {
    assert_eq!(format!("{:?}", key(1)), "SealKey(..)");
}
