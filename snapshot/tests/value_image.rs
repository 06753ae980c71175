//! One value in one image: written, opened, restored, or refused with the reason.

use hibernet_snapshot::image::{Header, Image, ImageWriter, Limits, Requirement, SectionId};
use hibernet_snapshot::{Decoded, Entropy, GenerationId, Invalid, Secret, Snapshot, codec, to_image};

#[derive(Debug, Snapshot)]
#[snapshot(validate = has_a_port)]
struct Table {
    #[snapshot(saved)]
    ports: Vec<u16>,
    #[snapshot(redrawn)]
    key: Secret<[u8; 32]>,
}

fn has_a_port(table: &Table) -> Result<(), Invalid> {
    if table.ports.is_empty() {
        return Err(Invalid::new("ports", "none", "one or more"));
    }
    Ok(())
}

const GENERATION: GenerationId = GenerationId([3; 16]);
const VALUE: SectionId = SectionId::new(*b"VALU");

fn table(ports: &[u16]) -> Table {
    Table { ports: ports.to_vec(), key: Secret::new([0x5e; 32]) }
}

fn open(image: &[u8]) -> Result<Decoded<Table>, String> {
    Decoded::open(image, &Limits::default()).map_err(|error| error.to_string())
}

/// An image with these sections, of the right schema.
fn image(sections: &[(SectionId, u16, Requirement)]) -> Vec<u8> {
    let body = codec::encode(&table(&[80]).save()).unwrap();
    let schema = Table::SCHEMA.fingerprint();
    let mut writer = ImageWriter::new(&Header { schema, writer: "test 1".to_owned(), generation: GENERATION });
    for (id, version, requirement) in sections {
        writer.section(*id, *version, *requirement, &body);
    }
    writer.finish()
}

#[test]
fn a_written_value_comes_back_with_another_secret() {
    let image = to_image(&table(&[80, 443]), "test 1", GENERATION).unwrap();
    let decoded = open(&image).unwrap();
    assert_eq!(decoded.header().generation, GENERATION);
    assert_eq!(decoded.saved().ports, [80, 443]);
    let restored = decoded.restore((), &mut Entropy::from_test_seed(1)).unwrap();
    assert_eq!(restored.ports, [80, 443]);
    assert_ne!(restored.key.expose(), &[0x5e; 32]);
}

#[test]
fn no_part_of_a_secret_is_in_the_image() {
    let image = to_image(&table(&[80]), "test 1", GENERATION).unwrap();
    assert!(!image.windows(8).any(|window| window == [0x5e; 8]));
}

#[test]
fn saving_restoring_and_saving_again_gives_the_same_image() {
    let first = to_image(&table(&[80, 443]), "test 1", GENERATION).unwrap();
    let restored = open(&first).unwrap().restore((), &mut Entropy::from_test_seed(1)).unwrap();
    assert_eq!(to_image(&restored, "test 1", GENERATION).unwrap(), first);
}

#[test]
fn an_image_of_another_schema_is_refused_by_both_fingerprints_and_its_writer() {
    let image = to_image(&7_u16, "other 2", GENERATION).unwrap();
    let (found, expected) = (u16::SCHEMA.fingerprint(), Table::SCHEMA.fingerprint());
    assert_eq!(
        open(&image).unwrap_err(),
        format!("saved with schema {found:016x}, this build reads {expected:016x}; written by \"other 2\"")
    );
}

#[test]
fn a_section_that_is_missing_unknown_or_of_another_version_is_refused() {
    let other = SectionId::new(*b"ELSE");
    assert_eq!(open(&image(&[])).unwrap_err(), "section VALU is missing; written by \"test 1\"");
    assert_eq!(
        open(&image(&[(VALUE, 1, Requirement::Required), (other, 1, Requirement::Required)])).unwrap_err(),
        "section ELSE (version 1) is required and not known to this build; written by \"test 1\""
    );
    assert_eq!(
        open(&image(&[(VALUE, 2, Requirement::Required)])).unwrap_err(),
        "section VALU has version 2, this build reads 1; written by \"test 1\""
    );
    assert!(open(&image(&[(VALUE, 1, Requirement::Required), (other, 1, Requirement::Optional)])).is_ok());
}

#[test]
fn a_flipped_byte_anywhere_is_refused() {
    let mut image = to_image(&table(&[80, 443]), "test 1", GENERATION).unwrap();
    for at in 0..image.len() {
        image[at] ^= 0x40;
        assert!(open(&image).is_err(), "byte {at}");
        image[at] ^= 0x40;
    }
}

#[test]
fn a_valid_image_of_an_invalid_value_is_refused_by_its_field() {
    let image = to_image(&table(&[]), "test 1", GENERATION).unwrap();
    let refusal = open(&image).unwrap().restore((), &mut Entropy::from_test_seed(1)).unwrap_err();
    assert_eq!(refusal.to_string(), "not a valid state: ports: found none, expected one or more");
}

#[test]
fn an_image_is_readable_without_the_codec() {
    let image = to_image(&table(&[80]), "test 1", GENERATION).unwrap();
    let image = Image::parse(&image, &Limits::default()).unwrap();
    assert_eq!(image.header().writer, "test 1");
    assert!(image.sections().map(|section| section.id).eq([VALUE]));
}
