//! Arbitrary bytes are no sealed image, and an image of any kind comes back out of its seal. Never a panic.
#![no_main]

use hibernet_fuzz::seal_key;
use hibernet_snapshot::Entropy;
use hibernet_snapshot::image::Image;
use hibernet_snapshot::seal::{CHUNK_LIMITS, Sealed, Sealer, open};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // As a hostile file: what opens was sealed with the key, so its front is sound and its image has the header that was shown.
    let shown = Sealed::read(bytes);
    if let Ok(image) = open(bytes.to_vec(), &seal_key()) {
        let front = Image::front(&image).expect("nothing else is sealed");
        assert_eq!(shown.expect("it opened").front, front);
    }
    // As an image, in parts and chunks of a size that the first byte says.
    let Some((size, image)) = bytes.split_first() else { return };
    let size = usize::from(*size) + 1;
    let mut sealed = Vec::new();
    let mut sealer = Sealer::new(&seal_key(), &mut Entropy::from_test_seed(1)).with_chunks_of(size as u32);
    let pushed = image.chunks(size).try_for_each(|part| sealer.push(part, &mut sealed));
    match pushed.and_then(|()| sealer.finish(&mut sealed)) {
        Ok(()) => {
            assert!(CHUNK_LIMITS.contains(&Sealed::read(&sealed).expect("it was just sealed").chunk_bytes));
            assert_eq!(open(sealed, &seal_key()).as_deref(), Ok(image));
        }
        Err(error) => assert!(Image::front(image).is_err(), "an image is sealed: {error}"),
    }
});
