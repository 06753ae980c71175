//! Formats live on: an image of every version of the format that was ever written is restored.

#![expect(clippy::disallowed_methods, reason = "reads the golden images")]

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use hibernet_netstack::{Contents, Decoded, Stack, StackConfig};
use hibernet_snapshot::image::{FORMAT_VERSION, Image, Limits};
use hibernet_snapshot::{Entropy, GenerationId};
use hibernet_tests::golden::{APPLICATION, FOLDER, full_image};
use hibernet_tests::traffic::{START, restored};
use sha2::{Digest, Sha256};

/// Every golden image with its version and its SHA-256. They are added to, and never changed: what users have on their disks does
/// not change either.
const GOLDEN: [(&str, u16, &str); 1] =
    [("v1-full.hib", 1, "fb5f97aa1478130655eea08790828386be1b073ce65bd4481a1017350940e303")];

const REMEDY: &str = "The layout of images has changed. Raise FORMAT_VERSION, keep a reader for images of the version before (see \
    SNAPSHOT-FORMAT.md), and add a golden image: cargo run -p hibernet-tests --bin golden";

fn golden(name: &str) -> Vec<u8> {
    fs::read(Path::new(FOLDER).join(name)).unwrap()
}

fn contents(image: &[u8]) -> Contents {
    let decoded = Decoded::open(image, &Limits::default()).unwrap();
    let image = Image::parse(image, &Limits::default()).unwrap();
    let contents = decoded.contents(&mut Entropy::from_test_seed(1)).unwrap();
    image
        .sections()
        .filter(|section| !section.required)
        .fold(contents, |contents, section| contents.with_section(section.id, section.body))
}

/// All that an image holds, as what it has more than the image of an empty stack.
fn listing(image: &[u8]) -> String {
    let empty = Stack::new(StackConfig::default(), Entropy::from_test_seed(1), START).unwrap();
    let empty = contents(&empty.save(GenerationId([0; 16]), START).unwrap());
    let mut text = String::new();
    for difference in empty.diff(&contents(image)) {
        writeln!(text, "{difference}").unwrap();
    }
    text
}

#[test]
fn there_is_a_golden_image_of_every_version() {
    let versions: BTreeSet<u16> = GOLDEN.iter().map(|(_, version, _)| *version).collect();
    assert_eq!(versions, (1..=FORMAT_VERSION).collect(), "{REMEDY}");
    let named: BTreeSet<String> = GOLDEN.iter().map(|(name, ..)| (*name).to_owned()).collect();
    let there: BTreeSet<String> = fs::read_dir(FOLDER)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".hib"))
        .collect();
    assert_eq!(named, there);
}

#[test]
fn no_golden_image_was_ever_changed() {
    for (name, version, sum) in GOLDEN {
        let image = golden(name);
        let found: String = Sha256::digest(&image).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(found, sum, "{name} is not what was written then: take it back from the history");
        assert_eq!(Image::front(&image).unwrap().format_version, version, "{name}");
    }
}

#[test]
fn every_golden_image_is_restored_and_holds_what_it_held() {
    for (name, ..) in GOLDEN {
        let image = golden(name);
        let (stack, report) = restored(&image, 1, START).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!((report.reset, report.dropped, report.streams_reset), (0, 0, 0), "{name}");
        assert_eq!(stack.flows(START).len(), contents(&image).flows().len(), "{name}");
        insta::assert_snapshot!(name, listing(&image));
    }
}

/// A saved stack has the layout of the golden image of its version: else the layout has changed and the version has not.
#[test]
fn a_layout_that_changes_needs_another_version() {
    let (fresh, writes) = (full_image(), Image::front(&full_image()).unwrap());
    let (name, ..) = GOLDEN.iter().find(|(_, version, _)| *version == writes.format_version).expect(REMEDY);
    let image = golden(name);
    let front = Image::front(&image).unwrap();
    assert_eq!(writes.header.schema, front.header.schema, "the schema's fingerprint. {REMEDY}");

    // Saved once more it is the same to the byte, packed flow records included, but for the writer's version.
    let (stack, _) = restored(&image, 5, START).unwrap();
    let again = stack.save(front.header.generation, START).unwrap();
    let sections = |image: &[u8]| {
        let image = Image::parse(image, &Limits::default()).unwrap();
        let sections = image.sections().filter(|section| section.id != APPLICATION);
        sections
            .map(|section| (section.id, section.version, section.required, section.body.to_vec()))
            .collect::<Vec<_>>()
    };
    for (then, now) in sections(&image).iter().zip(sections(&again)) {
        assert!(*then == now, "section {}: {REMEDY}", then.0);
    }
    assert_eq!(sections(&image).len(), sections(&again).len(), "{REMEDY}");
    assert_eq!(sections(&fresh).len(), sections(&again).len(), "{REMEDY}");
}

/// So that a golden image is worth its name.
#[test]
fn the_golden_image_that_would_be_written_has_something_in_every_section() {
    let text = listing(&full_image());
    for line in [
        "+ links eth:",
        "+ routes 0.0.0.0/0",
        "+ rules chain input rule 1",
        "+ flows tcp 10.0.0.2:40000",
        "+ flows tcp [fd00:10::2]:40000",
        "+ flows icmp ",
        "+ flows icmpv6 ",
        "+ flows gre ",
        "+ flows protocol 200 ",
        "SRC_NAT",
        "DST_NAT",
        " zone-orig 3",
        "mark 7",
        "+ fragments datagram ",
        "+ tcp listener ",
        "+ tcp stream ",
        "what is not read",
        "what is not acknowledged",
        "+ udp socket ",
        "what waits",
        "+ ping socket ",
        "+ neighbours 10.1.0.2",
        "+ neighbours 10.1.0.9",
        "+ sections APPL",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

#[test]
fn a_format_that_is_too_new_is_refused_with_its_writer() {
    let mut image = golden(GOLDEN[0].0);
    let front = Image::front(&image).unwrap();
    image[8..10].copy_from_slice(&(FORMAT_VERSION + 1).to_le_bytes());
    image[10..12].copy_from_slice(&(FORMAT_VERSION + 1).to_le_bytes());
    let sum = crc32fast::hash(&image[..front.bytes - 4]).to_le_bytes();
    image[front.bytes - 4..front.bytes].copy_from_slice(&sum);
    let error = Decoded::open(&image, &Limits::default()).unwrap_err().to_string();
    assert!(error.contains(&front.header.writer) && error.contains(&format!("up to {FORMAT_VERSION}")), "{error}");
    assert!(front.header.writer.starts_with("hibernet-netstack 0."), "name and version of the crate");
}
