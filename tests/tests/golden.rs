//! Images of every format version written so far restore, to the flows that they held.
//!
//! `golden/` has them, each with the list of its flows. `HIBERNET_WRITE_GOLDEN=1 cargo test -p hibernet-tests --test golden` writes
//! those that the present code can write and that are not there yet; one that is there is never written anew.

#![expect(clippy::disallowed_methods, reason = "the test reads and writes files")]

use std::fs;
use std::path::{Path, PathBuf};

use hibernet_netstack::{Decoded, DeltaChain, Packing, RestorePolicy, SaveBuffer, Stack, Supplied};
use hibernet_snapshot::digest::ImageDigest;
use hibernet_snapshot::image::{ImageError, Limits, StoredImage};
use hibernet_snapshot::sealed::{SealKey, Sealer, Unsealer};
use hibernet_snapshot::{Entropy, GenerationId, Secret};
use hibernet_tests::traffic::{START, Session, play_line, sample};

/// Every golden image: the files of its chain, whether it is sealed, and the format version of the last file.
const GOLDEN: [(&str, &[&str], bool, u16); 4] = [
    ("v1-plain", &["v1-plain.hib"], false, 1),
    ("v2-compressed", &["v2-compressed.hib"], false, 2),
    ("v2-delta", &["v1-plain.hib", "v2-delta.hib"], false, 2),
    ("v2-sealed", &["v2-sealed.hib"], true, 2),
];

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

/// The key of the sealed one, which seals nothing but it.
fn key() -> SealKey {
    SealKey::new(Secret::new(*b"a key that everybody may know..."))
}

fn into(file: &mut Vec<u8>) -> impl FnMut(&[u8]) -> Result<(), ()> {
    |bytes| {
        file.extend_from_slice(bytes);
        Ok(())
    }
}

fn open(files: &[&str], sealed: bool) -> (Decoded, u16) {
    let limits = Limits::default();
    let mut chain: Option<DeltaChain> = None;
    let mut version = 0;
    for name in files {
        let bytes = fs::read(directory().join(name)).unwrap();
        let digest = ImageDigest::of(&bytes);
        let image = match sealed {
            true => StoredImage::read(&mut Unsealer::begin(bytes.as_slice(), &key()).unwrap(), &limits).unwrap(),
            false => StoredImage::read(&mut bytes.as_slice(), &limits).unwrap(),
        };
        version = if sealed { u16::from_le_bytes([bytes[8], bytes[9]]) } else { image.format_version() };
        chain = Some(match chain {
            None => DeltaChain::begin(image, digest, &limits).unwrap(),
            Some(chain) => chain.apply(image, digest, &limits).unwrap(),
        });
    }
    (chain.unwrap().finish().unwrap(), version)
}

fn list(stack: &Stack) -> String {
    stack.flows(START).iter().map(|flow| format!("{flow}\n")).collect()
}

#[test]
fn an_image_of_every_format_version_restores_to_the_flows_it_held() {
    write_missing();
    for (name, files, sealed, version) in GOLDEN {
        let (decoded, found) = open(files, sealed);
        assert_eq!(found, version, "{name}");
        let mut entropy = Entropy::from_test_seed(5);
        let validated = decoded.validate(&mut entropy, START).unwrap();
        let (stack, report) = validated.rehash(entropy, RestorePolicy::default()).unwrap().open(Supplied::default());
        let expected = fs::read_to_string(directory().join(name).with_extension("list")).unwrap();
        assert!(expected.lines().count() > 3, "{name}");
        assert_eq!(list(&stack), expected, "{name}");
        assert_eq!((report.reset, report.dropped), (0, 0), "{name}");
    }
}

#[test]
fn a_format_that_is_to_come_is_refused_by_its_writer() {
    let mut image = fs::read(directory().join("v1-plain.hib")).unwrap();
    image[8..12].copy_from_slice(&[3, 0, 3, 0]);
    let end = 46 + usize::from(image[44]);
    let sum = crc32fast::hash(&image[..end]).to_le_bytes();
    image[end..end + 4].copy_from_slice(&sum);
    let error = StoredImage::read(&mut image.as_slice(), &Limits::default()).unwrap_err();
    assert!(matches!(error, ImageError::TooNew { found: 3, .. }), "{error}");
    assert!(error.to_string().contains("hibernet-netstack 0.1.0"), "{error}");
}

/// What happens between the full image and the delta.
fn go_on(session: &mut Session) {
    for (link, line) in [
        ("out", "udp 198.51.100.10:53 > 198.18.0.2:5000 len=30"),
        ("in", "tcp 10.0.0.2:40000 > 198.51.100.10:80 FA seq=121 ack=901"),
        ("in", "tcp 10.0.0.9:1234 > 198.51.100.10:443 S seq=5 mss=1400"),
    ] {
        play_line(session, link, line);
    }
}

fn write_missing() {
    if std::env::var_os("HIBERNET_WRITE_GOLDEN").is_none() {
        return;
    }
    let mut session = sample();
    let now = session.now();
    let mut files: Vec<(&str, Vec<u8>, String)> = Vec::new();
    let mut frozen = session.stack.freeze_base(GenerationId([1; 16]), now, SaveBuffer::default()).unwrap();
    let mut plain = Vec::new();
    frozen.write(&Packing::default(), into(&mut plain)).unwrap();
    assert!(session.stack.written(frozen.checkpoint(), ImageDigest::of(&plain)));
    let mut compressed = Vec::new();
    frozen.write(&Packing::default().compressed(true), into(&mut compressed)).unwrap();
    let mut sealed = Vec::new();
    let mut sealer =
        Sealer::begin(frozen.header(), &key(), &mut Entropy::from_test_seed(1), into(&mut sealed)).unwrap();
    sealer.put(&plain).unwrap();
    sealer.finish().unwrap();
    let before = list(&session.stack);
    go_on(&mut session);
    let now = session.now();
    let frozen = session.stack.freeze_changes(GenerationId([2; 16]), now).unwrap();
    let mut delta = Vec::new();
    frozen.write(into(&mut delta)).unwrap();
    let after: String = session.stack.flows(now).iter().map(|flow| format!("{flow}\n")).collect();
    files.push(("v1-plain", plain, before.clone()));
    files.push(("v2-compressed", compressed, before.clone()));
    files.push(("v2-sealed", sealed, before));
    files.push(("v2-delta", delta, after));
    fs::create_dir_all(directory()).unwrap();
    for (name, image, list) in files {
        let path = directory().join(name);
        if !path.with_extension("hib").exists() {
            fs::write(path.with_extension("hib"), image).unwrap();
            fs::write(path.with_extension("list"), list).unwrap();
        }
    }
}
