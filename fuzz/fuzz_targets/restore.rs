//! An arbitrary image is refused, or what loads saves back to the same bytes. Never a panic.
#![no_main]

use hibernet_fuzz::{START, reseal, restored};
use hibernet_snapshot::image::{Header, Image, Limits, SectionId};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // As it is, and with its checksums made right: both are what a hostile file may be.
    let mut resealed = bytes.to_vec();
    reseal(&mut resealed);
    for image in [bytes, &resealed] {
        let Some((stack, lost)) = restored(image, 2, START) else { continue };
        let read = Image::parse(image, &Limits::default()).expect("it was restored");
        let saved = stack.save(read.header().generation, START).expect("a stack can be saved");
        let again = Image::parse(&saved, &Limits::default()).expect("it was just saved");
        if lost == 0 && frame(&read) == frame(&again) {
            assert_eq!(saved, image, "what loads saves back to the same bytes");
        }
    }
});

/// What a later or a foreign writer may write otherwise, and what a restore does not keep: versions, the writer's name,
/// order and flags of sections.
fn frame<'a>(image: &'a Image<'_>) -> (u16, u16, &'a Header, Vec<(SectionId, u16, bool)>) {
    let sections = image.sections().map(|section| (section.id, section.version, section.required)).collect();
    (image.format_version(), image.min_reader(), image.header(), sections)
}
