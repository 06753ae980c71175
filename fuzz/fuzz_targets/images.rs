//! Compressed blocks, deltas and sealed images of arbitrary bytes are refused or restore. Never a panic, and never more memory than
//! a block's head may claim.
#![no_main]

use hibernet_fuzz::{START, reseal};
use hibernet_netstack::{Decoded, DeltaChain, RestorePolicy, Supplied, base_of};
use hibernet_snapshot::image::{Limits, StoredImage};
use hibernet_snapshot::seal::{SealKey, Unsealer};
use hibernet_snapshot::{Entropy, Secret};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let limits = Limits::default();
    // The key of the golden sealed image, so that one input opens.
    let key = SealKey::new(Secret::new(*b"a key that everybody may know..."));
    if let Ok(mut input) = Unsealer::begin(bytes, &key) {
        drop(StoredImage::read(&mut input, &limits).map(restored));
    }
    let mut resealed = bytes.to_vec();
    reseal(&mut resealed);
    for image in [bytes, &resealed] {
        drop(StoredImage::read(&mut &image[..], &limits).map(restored));
    }
});

/// Restores an image; a delta behind the base it says it continues, whose name nobody checks here.
fn restored(image: StoredImage) {
    let limits = Limits::default();
    let decoded = match base_of(&image) {
        Ok(Some(base)) => StoredImage::read(&mut &BASE[..], &limits)
            .map_err(Into::into)
            .and_then(|stored| DeltaChain::begin(stored, base.digest, &limits))
            .and_then(|chain| chain.apply(image, base.digest, &limits))
            .and_then(DeltaChain::finish),
        Ok(None) => {
            let digest = hibernet_snapshot::digest::ImageDigest([0; 32]);
            DeltaChain::begin(image, digest, &limits).and_then(DeltaChain::finish)
        }
        Err(_) => return,
    };
    let Ok(decoded) = decoded else { return };
    open(decoded);
}

fn open(decoded: Decoded) {
    let mut entropy = Entropy::from_test_seed(1);
    let Ok(validated) = decoded.validate(&mut entropy, START) else { return };
    let Ok(rehashed) = validated.rehash(entropy, RestorePolicy::default()) else { return };
    drop(rehashed.open(Supplied::default()));
}

/// The full image that the delta among the seeds continues: that of `tests/golden`.
const BASE: &[u8] = include_bytes!("../../tests/golden/v1-plain.hib");
