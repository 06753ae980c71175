//! The state of an application inside the stack, in the stack's image: a section that a reader may skip.
//!
//! The two belong in one file. What an application has taken from a stream is no longer in the stack, and what it has not
//! given yet is not there either; images of two different moments would repeat bytes or lose some.

use hibernet_snapshot::image::Image;
use hibernet_snapshot::image::ImageWriter;
use hibernet_snapshot::image::Limits;
use hibernet_snapshot::image::Requirement;
use hibernet_snapshot::image::SectionId;

/// The image with the application's state behind the stack's.
pub(super) fn with_section(image: &[u8], state: &[u8]) -> anyhow::Result<Vec<u8>> {
    let image = Image::parse(image, &Limits::default())?;
    let mut writer = ImageWriter::new(image.header());
    for section in image.sections() {
        writer.copy(section);
    }
    writer.section(APPLICATION, VERSION, Requirement::Optional, state);
    Ok(writer.finish())
}

/// The application's state in an image, if it has one.
pub(super) fn section(image: &[u8]) -> anyhow::Result<Option<Vec<u8>>> {
    let image = Image::parse(image, &Limits::default())?;
    let Some(section) = image.section(APPLICATION) else { return Ok(None) };
    anyhow::ensure!(
        section.version == VERSION,
        "the image's section {APPLICATION} has version {}, expected {VERSION}: restore it with the program that wrote it",
        section.version
    );
    Ok(Some(section.body.to_vec()))
}

const APPLICATION: SectionId = SectionId::new(*b"APPL");
const VERSION: u16 = 1;

#[cfg(test)]
mod tests {
    use hibernet_netstack::Decoded;
    use hibernet_netstack::Stack;
    use hibernet_netstack::StackConfig;
    use hibernet_snapshot::Entropy;
    use hibernet_snapshot::Instant;

    use super::*;

    #[test]
    fn an_application_finds_its_state_in_an_image_that_is_still_the_stacks() {
        let mut entropy = Entropy::from_test_seed(1);
        let stack = Stack::new(StackConfig::default(), entropy.fork(), Instant::ZERO).expect("a stack");
        let plain = stack.save(entropy.public_id(), Instant::ZERO).expect("an image");
        let image = with_section(&plain, b"state").expect("a longer image");
        assert_eq!(section(&image).expect("a sound image"), Some(b"state".to_vec()));
        assert_eq!(section(&plain).expect("a sound image"), None);
        Decoded::open(&image, &Limits::default()).expect("the stack reads it as before");
        let replaced = with_section(&image, b"other").expect("a third image");
        assert_eq!(section(&replaced).expect("a sound image"), Some(b"other".to_vec()));
    }
}
