//! The stored corpora of the fuzz targets are what they are meant to be.

#![expect(clippy::disallowed_methods, reason = "reads the corpus")]

use std::fs;
use std::path::Path;

use hibernet_netstack::Decoded;
use hibernet_snapshot::image::Limits;
use hibernet_snapshot::seal::{SealKey, open};
use hibernet_snapshot::{Entropy, Instant, Secret};

#[test]
fn every_stored_sealed_image_opens_and_is_of_the_present_layout() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/sealed");
    let key = SealKey::new(Secret::new([9; 32])); // `seal_key` of the fuzz crate
    for name in ["one_chunk", "many_chunks"] {
        let image = open(fs::read(folder.join(name)).unwrap(), &key).unwrap_or_else(|error| panic!("{name}: {error}"));
        Decoded::open(&image, &Limits::default()).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

/// A seed that is refused at the door teaches a fuzzer nothing, and nothing else would tell.
#[test]
fn every_stored_image_is_of_the_present_layout() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/restore");
    let mut images = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let again = "write the corpora anew: cargo run --release --bin seeds, in fuzz/";
        let decoded = Decoded::open(&fs::read(&path).unwrap(), &Limits::default())
            .unwrap_or_else(|error| panic!("{}: {error}; {again}", path.display()));
        let validated = decoded.validate(&mut Entropy::from_test_seed(1), Instant::from_secs(1000));
        // What a fuzzer once found: an image that is of the layout and still to be refused.
        let is_refused = path.file_name().unwrap().to_string_lossy().starts_with("refused_");
        assert_eq!(validated.is_err(), is_refused, "{}: {validated:?}; {again}", path.display());
        images += 1;
    }
    assert!(images >= 84, "{images} images");
}
