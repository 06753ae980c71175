//! Formats live on: an image of every version of the format that was ever written is restored.

#![expect(clippy::disallowed_methods, reason = "reads the golden images")]

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use hibernet_netstack::{Contents, Decoded, DeltaChain, RestorePolicy, Stack, StackConfig, Supplied};
use hibernet_snapshot::digest::ImageDigest;
use hibernet_snapshot::image::{FORMAT_VERSION, Image, Limits, StoredImage};
use hibernet_snapshot::seal::{SealKey, open};
use hibernet_snapshot::{Entropy, GenerationId, Secret};
use hibernet_tests::golden::{APPLICATION, FOLDER, full_image, image_of};
use hibernet_tests::traffic::{START, restored};
use sha2::{Digest, Sha256};

/// A golden image.
struct Golden {
    name: &'static str,
    /// Of the format.
    version: u16,
    sha256: &'static str,
    /// The full image that it continues, of a delta.
    base: Option<&'static str>,
    sealed: bool,
}

/// Every golden image. They are added to, and never changed: what users have on their disks does not change either.
const GOLDEN: [Golden; 5] = [
    Golden {
        name: "v1-full.hib",
        version: 1,
        sha256: "fb5f97aa1478130655eea08790828386be1b073ce65bd4481a1017350940e303",
        base: None,
        sealed: false,
    },
    Golden {
        name: "v1-plain.hib",
        version: 1,
        sha256: "ffe8949113aff5092a799cc5c5d8231a74dad94ce0378b8f0725ec6fa9b87506",
        base: None,
        sealed: false,
    },
    Golden {
        name: "v1-sealed.hib",
        version: 1,
        sha256: "560260f88d43001528b98579bc08b2f5fb28cba5a98a7ccde2b6e465e281c5b6",
        base: None,
        sealed: true,
    },
    Golden {
        name: "v2-full.hib",
        version: 2,
        sha256: "6ab6323cb11dfcc2d1b38ae52a9ff40a6fb51ff139d0ce0eb1566419aa1f9f8e",
        base: None,
        sealed: false,
    },
    Golden {
        name: "v2-delta.hib",
        version: 2,
        sha256: "5a7b3303560810921d0014197c452d3287c2eca376c84b6c0ed9fa4dd9c72198",
        base: Some("v1-plain.hib"),
        sealed: false,
    },
];

const REMEDY: &str = "The layout of images has changed. Raise FORMAT_VERSION, keep a reader for images of the version before (see \
    SNAPSHOT-FORMAT.md), and add a golden image: cargo run -p hibernet-tests --bin golden";

fn file(name: &str) -> Vec<u8> {
    fs::read(Path::new(FOLDER).join(name)).unwrap()
}

/// The key of the sealed one, which seals nothing but it.
fn key() -> SealKey {
    SealKey::new(Secret::new(*b"a key that everybody may know..."))
}

impl Golden {
    /// The image itself, without its seal.
    fn image(&self) -> Vec<u8> {
        let bytes = file(self.name);
        if self.sealed { open(bytes, &key()).unwrap() } else { bytes }
    }

    /// What it comes to, with what it continues.
    fn decoded(&self) -> Decoded {
        let limits = Limits::default();
        let stored = |bytes: &[u8]| StoredImage::read(&mut &bytes[..], &limits).unwrap();
        let image = self.image();
        let Some(base) = self.base else { return Decoded::open(&image, &limits).unwrap() };
        let base = file(base);
        let chain = DeltaChain::begin(stored(&base), ImageDigest::of(&base), &limits).unwrap();
        chain.apply(stored(&image), ImageDigest::of(&image), &limits).unwrap().finish().unwrap()
    }
}

fn contents(decoded: Decoded) -> Contents {
    decoded.contents(&mut Entropy::from_test_seed(1)).unwrap()
}

fn opened(image: &[u8]) -> Decoded {
    Decoded::open(image, &Limits::default()).unwrap()
}

/// All that an image holds, as what it has more than the image of an empty stack.
fn listing(decoded: Decoded) -> String {
    let empty = Stack::new(StackConfig::default(), Entropy::from_test_seed(1), START).unwrap();
    let empty = contents(opened(&empty.save(GenerationId([0; 16]), START).unwrap()));
    let mut text = String::new();
    for difference in empty.diff(&contents(decoded)) {
        writeln!(text, "{difference}").unwrap();
    }
    text
}

#[test]
fn there_is_a_golden_image_of_every_version() {
    let versions: BTreeSet<u16> = GOLDEN.iter().map(|golden| golden.version).collect();
    assert_eq!(versions, (1..=FORMAT_VERSION).collect(), "{REMEDY}");
    let named: BTreeSet<String> = GOLDEN.iter().map(|golden| golden.name.to_owned()).collect();
    let there: BTreeSet<String> = fs::read_dir(FOLDER)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".hib"))
        .collect();
    assert_eq!(named, there);
}

#[test]
fn no_golden_image_was_ever_changed() {
    for golden in &GOLDEN {
        let found: String = Sha256::digest(file(golden.name)).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(found, golden.sha256, "{} is not what was written then: take it back from the history", golden.name);
        assert_eq!(Image::front(&golden.image()).unwrap().format_version, golden.version, "{}", golden.name);
    }
}

#[test]
fn every_golden_image_is_restored_and_holds_what_it_held() {
    for golden in &GOLDEN {
        let name = golden.name;
        let mut entropy = Entropy::from_test_seed(1);
        let validated =
            golden.decoded().validate(&mut entropy, START).unwrap_or_else(|error| panic!("{name}: {error}"));
        let rehashed = validated.rehash(entropy, RestorePolicy::default());
        let (stack, report) = rehashed.unwrap_or_else(|error| panic!("{name}: {error}")).open(Supplied::default());
        assert_eq!((report.reset, report.dropped, report.streams_reset), (0, 0, 0), "{name}");
        assert_eq!(stack.flows(START).len(), contents(golden.decoded()).flows().len(), "{name}");
        insta::assert_snapshot!(name, listing(golden.decoded()));
    }
}

/// A saved stack has the layout of the golden image of its version: else the layout has changed and the version has not.
#[test]
fn a_layout_that_changes_needs_another_version() {
    for version in 1..=FORMAT_VERSION {
        let name = format!("v{version}-full.hib");
        let golden = GOLDEN.iter().find(|golden| golden.name == name).expect(REMEDY);
        let image = golden.image();
        let front = Image::front(&image).unwrap();
        let (stack, _) = restored(&image, 5, START).unwrap();
        // Saved once more it is the same to the byte, packed flow records included, but for the writer's version.
        let again = image_of(&stack, version, front.header.generation, START, None);
        let writes = Image::front(&again).unwrap();
        assert_eq!(writes.format_version, version, "{REMEDY}");
        assert_eq!(writes.header.schema, front.header.schema, "the schema's fingerprint. {REMEDY}");
        let sections = |image: &[u8]| {
            let image = Image::parse(image, &Limits::default()).unwrap();
            let sections = image.sections().filter(|section| section.id != APPLICATION);
            sections
                .map(|section| (section.id, section.version, section.required, section.body.to_vec()))
                .collect::<Vec<_>>()
        };
        for (then, now) in sections(&image).iter().zip(sections(&again)) {
            assert!(*then == now, "version {version}, section {}: {REMEDY}", then.0);
        }
        assert_eq!(sections(&image).len(), sections(&again).len(), "{REMEDY}");
    }
}

/// So that a golden image is worth its name.
#[test]
fn the_golden_images_that_would_be_written_have_something_in_every_section() {
    let text = listing(opened(&full_image(1)));
    for version in 2..=FORMAT_VERSION {
        assert_eq!(listing(opened(&full_image(version))), text, "version {version} says the same");
    }
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
    let mut image = GOLDEN[0].image();
    let front = Image::front(&image).unwrap();
    image[8..10].copy_from_slice(&(FORMAT_VERSION + 1).to_le_bytes());
    image[10..12].copy_from_slice(&(FORMAT_VERSION + 1).to_le_bytes());
    let sum = crc32fast::hash(&image[..front.bytes - 4]).to_le_bytes();
    image[front.bytes - 4..front.bytes].copy_from_slice(&sum);
    let error = Decoded::open(&image, &Limits::default()).unwrap_err().to_string();
    assert!(error.contains(&front.header.writer) && error.contains(&format!("up to {FORMAT_VERSION}")), "{error}");
    assert!(front.header.writer.starts_with("hibernet-netstack 0."), "name and version of the crate");
}
