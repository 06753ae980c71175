//! The stored corpora of the fuzz targets are what they are meant to be.

#![expect(clippy::disallowed_methods, reason = "reads the corpus")]

use std::fs;
use std::path::Path;

use hibernet_netstack::Decoded;
use hibernet_snapshot::image::Limits;
use hibernet_snapshot::{Entropy, Instant};

/// A seed that is refused at the door teaches a fuzzer nothing, and nothing else would tell.
#[test]
fn every_stored_image_is_of_the_present_layout() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/restore");
    let mut images = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let decoded = Decoded::open(&fs::read(&path).unwrap(), &Limits::default());
        let validated = decoded.and_then(|it| it.validate(&mut Entropy::from_test_seed(1), Instant::from_secs(1000)));
        if let Err(error) = validated {
            panic!("{}: {error}; write the corpora anew: cargo run --release --bin seeds, in fuzz/", path.display());
        }
        images += 1;
    }
    assert!(images >= 83, "{images} images");
}
