//! The state of an application inside the stack, in the stack's image: a section that a reader may skip.
//!
//! The two belong in one file. What an application has taken from a stream is no longer in the stack, and what it has not
//! given yet is not there either; images of two different moments would repeat bytes or lose some.

use hibernet_netstack::Decoded;
use hibernet_snapshot::image::SectionId;

/// Whether an image holds an application's state.
pub(crate) fn has_application(image: &Decoded) -> bool {
    image.skipped(APPLICATION).is_some()
}

/// The application's state in an image, if it has one.
pub(super) fn section(image: &Decoded) -> anyhow::Result<Option<Vec<u8>>> {
    let Some(section) = image.skipped(APPLICATION) else { return Ok(None) };
    anyhow::ensure!(
        section.version == VERSION,
        "the image's section {APPLICATION} has version {}, expected {VERSION}: restore it with the program that wrote it",
        section.version
    );
    Ok(Some(section.body.clone()))
}

pub(super) const APPLICATION: SectionId = SectionId::new(*b"APPL");
pub(super) const VERSION: u16 = 1;

#[cfg(test)]
mod tests {
    use hibernet_netstack::Packing;
    use hibernet_netstack::SaveBuffer;
    use hibernet_netstack::Stack;
    use hibernet_netstack::StackConfig;
    use hibernet_snapshot::Entropy;
    use hibernet_snapshot::Instant;
    use hibernet_snapshot::image::Limits;

    use super::super::images::Content;
    use super::*;

    #[test]
    fn an_application_finds_its_state_in_an_image_that_is_still_the_stacks() {
        let mut entropy = Entropy::from_test_seed(1);
        let stack = Stack::new(StackConfig::default(), entropy.fork(), Instant::ZERO).expect("a stack");
        let plain = stack.save(entropy.public_id(), Instant::ZERO).expect("an image");
        let frozen = stack.freeze(entropy.public_id(), Instant::ZERO, SaveBuffer::default()).expect("a copy");
        let mut content = Content::Full(Box::new(frozen));
        content.add(APPLICATION, VERSION, b"state".to_vec());
        let Content::Full(frozen) = &mut content else { panic!("it was full") };
        let mut image = Vec::new();
        let sink = |bytes: &[u8]| -> Result<(), ()> {
            image.extend_from_slice(bytes);
            Ok(())
        };
        frozen.write(&Packing::default(), sink).expect("a longer image");
        let opened = |image: &[u8]| Decoded::open(image, &Limits::default()).expect("the stack reads it as before");
        assert_eq!(section(&opened(&image)).expect("a sound image"), Some(b"state".to_vec()));
        assert_eq!(section(&opened(&plain)).expect("a sound image"), None);
    }
}
