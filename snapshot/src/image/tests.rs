use proptest::prelude::*;

use super::*;

const FLOW: SectionId = SectionId::new(*b"FLOW");
const RULE: SectionId = SectionId::new(*b"RULE");

/// Where the header's fields are; the writer is `test 1`.
const FORMAT_AT: usize = 8;
const MIN_READER_AT: usize = 10;
const FLAGS_AT: usize = 12;
const SECTION_COUNT_AT: usize = 40;
const WRITER_LENGTH_AT: usize = 44;
const WRITER_AT: usize = 46;
const HEADER_SUM_AT: usize = 52;
const FIRST_SECTION_AT: usize = 56;
const SECTION_FLAGS_AT: usize = FIRST_SECTION_AT + 6;
const SECTION_SUM_AT: usize = FIRST_SECTION_AT + 16;
const FIRST_BODY_AT: usize = FIRST_SECTION_AT + 20;

fn header() -> Header {
    Header { schema: 0x0123_4567_89ab_cdef, writer: "test 1".to_owned(), generation: GenerationId([7; 16]) }
}

/// Two sections: `FLOW`, required, and `RULE`, optional.
fn image() -> Vec<u8> {
    let mut writer = ImageWriter::new(&header());
    writer.section(FLOW, 3, Requirement::Required, b"a few flows");
    writer.section(RULE, 1, Requirement::Optional, b"");
    writer.finish()
}

fn parse(bytes: &[u8]) -> Result<Image<'_>, ImageError> {
    Image::parse(bytes, &Limits::default())
}

fn refusal(bytes: &[u8]) -> String {
    parse(bytes).unwrap_err().to_string()
}

/// An image with `bytes` at `at` and its three kinds of checksum made right, as someone with malice or a newer format would.
fn forged(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut image = image();
    image[at..at + bytes.len()].copy_from_slice(bytes);
    let sum = |bytes: &[u8]| crc32fast::hash(bytes).to_le_bytes();
    let header = sum(&image[..HEADER_SUM_AT]);
    image[HEADER_SUM_AT..FIRST_SECTION_AT].copy_from_slice(&header);
    let covered = [&image[FIRST_SECTION_AT..SECTION_SUM_AT], &image[FIRST_BODY_AT..FIRST_BODY_AT + 11]].concat();
    image[SECTION_SUM_AT..FIRST_BODY_AT].copy_from_slice(&sum(&covered));
    let end = image.len() - 4;
    let total = sum(&image[..end]);
    image[end..].copy_from_slice(&total);
    image
}

#[test]
fn an_image_reads_back_as_it_was_written() {
    let bytes = image();
    let image = parse(&bytes).unwrap();
    assert_eq!(image.header(), &header());
    assert_eq!((image.format_version(), image.min_reader()), (1, 1));
    let flow = Section { id: FLOW, version: 3, required: true, part: false, body: b"a few flows" };
    let rule = Section { id: RULE, version: 1, required: false, part: false, body: b"" };
    assert!(image.sections().eq([&flow, &rule]));
    assert_eq!(image.section(RULE), Some(&rule));
    assert_eq!(image.section(SectionId::new(*b"NONE")), None);
}

#[test]
fn the_layout_of_the_first_format_stays() {
    let bytes = image();
    assert_eq!(&bytes[..8], b"HIBERNET");
    assert_eq!(bytes[FORMAT_AT..FLAGS_AT], [1, 0, 1, 0]);
    assert_eq!(bytes[SECTION_COUNT_AT..WRITER_AT], [2, 0, 0, 0, 6, 0]);
    assert_eq!(&bytes[WRITER_AT..HEADER_SUM_AT], b"test 1");
    assert_eq!(&bytes[FIRST_SECTION_AT..SECTION_SUM_AT], b"FLOW\x03\0\x01\0\x0b\0\0\0\0\0\0\0");
    assert_eq!(&bytes[FIRST_BODY_AT..FIRST_BODY_AT + 11], b"a few flows");
    assert_eq!(&bytes[bytes.len() - 20..bytes.len() - 4], b"TENREBIH\x7f\0\0\0\0\0\0\0");
    assert_eq!(bytes.len(), 127);
}

#[test]
fn a_flip_of_any_bit_is_refused() {
    let mut bytes = image();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            bytes[at] ^= 1 << bit;
            assert!(parse(&bytes).is_err(), "bit {bit} of byte {at}");
            bytes[at] ^= 1 << bit;
        }
    }
    assert!(parse(&bytes).is_ok());
}

#[test]
fn another_byte_at_any_position_is_refused() {
    let mut bytes = image();
    for at in 0..bytes.len() {
        let right = bytes[at];
        for wrong in (0..=u8::MAX).filter(|wrong| *wrong != right) {
            bytes[at] = wrong;
            assert!(parse(&bytes).is_err(), "{wrong:#x} at {at}");
        }
        bytes[at] = right;
    }
}

#[test]
fn an_image_cut_at_any_length_is_refused_as_truncated() {
    let bytes = image();
    for length in 0..bytes.len() {
        let error = parse(&bytes[..length]).unwrap_err();
        assert!(matches!(error, ImageError::Truncated { .. }), "{length} bytes: {error}");
    }
    assert_eq!(refusal(&bytes[..20]), "truncated in the header: 8 bytes needed, 4 left");
    assert_eq!(refusal(&bytes[..80]), "truncated in the section FLOW: 11 bytes needed, 4 left");
}

#[test]
fn bytes_after_the_trailer_are_refused() {
    let mut bytes = image();
    bytes.extend([0, 0]);
    assert_eq!(refusal(&bytes), "2 bytes follow the trailer");
}

#[test]
fn a_foreign_file_is_told_by_its_first_bytes() {
    assert_eq!(refusal(b"\x7fELF"), r#"not a hibernet image: it starts with "\x7fELF", expected "HIBERNET""#);
    assert_eq!(refusal(b""), "truncated in the header: 8 bytes needed, 0 left");
}

#[test]
fn an_image_that_needs_a_newer_reader_is_refused_by_both_versions_and_its_writer() {
    let newer = forged(FORMAT_AT, &[9, 0, 5, 0]);
    assert_eq!(
        refusal(&newer),
        "image format 9 needs a reader of format 5 or newer, this build reads up to 2; written by \"test 1\""
    );
}

#[test]
fn a_newer_image_that_an_old_reader_understands_is_read() {
    let newer = forged(FORMAT_AT, &[9, 0]);
    assert_eq!(parse(&newer).unwrap().format_version(), 9);
}

#[test]
fn versions_that_contradict_each_other_are_refused() {
    let expected = "expected 1 <= reader <= format; written by \"test 1\"";
    assert_eq!(refusal(&forged(MIN_READER_AT, &[0, 0])), format!("image format 1 with minimum reader 0, {expected}"));
    assert_eq!(refusal(&forged(FORMAT_AT, &[0, 0])), format!("image format 0 with minimum reader 1, {expected}"));
}

#[test]
fn every_reserved_bit_is_refused() {
    for bit in 0..32 {
        let flags = 1_u32 << bit;
        assert_eq!(
            refusal(&forged(FLAGS_AT, &flags.to_le_bytes())),
            format!("reserved bits {flags:#x} set in the header, expected none")
        );
    }
    for bit in 1..16 {
        let flags = 1_u16 << bit;
        assert_eq!(
            refusal(&forged(SECTION_FLAGS_AT, &(flags | REQUIRED).to_le_bytes())),
            format!("reserved bits {flags:#x} set in the section FLOW, expected none")
        );
    }
}

#[test]
fn a_section_that_occurs_twice_is_refused() {
    let twice = forged(FIRST_SECTION_AT, b"RULE");
    assert_eq!(refusal(&twice), "section RULE occurs twice; written by \"test 1\"");
}

#[test]
fn a_section_written_again_takes_the_place_of_the_first() {
    let mut writer = ImageWriter::new(&header());
    writer.section(RULE, 1, Requirement::Required, b"rules");
    writer.section(FLOW, 1, Requirement::Required, b"old flows");
    writer.section(SectionId::new(*b"LAST"), 1, Requirement::Required, b"last");
    writer.section(FLOW, 2, Requirement::Optional, b"new");
    let bytes = writer.finish();
    let image = parse(&bytes).unwrap();
    let bodies: Vec<_> = image.sections().map(|section| (section.version, section.body)).collect();
    assert_eq!(bodies, [(1, b"rules".as_slice()), (1, b"last"), (2, b"new")]);
}

#[test]
fn an_unknown_section_is_refused_if_required_and_skipped_if_optional() {
    let bytes = image();
    let image = parse(&bytes).unwrap();
    assert_eq!(image.require_known(&[FLOW]), Ok(()));
    assert_eq!(
        image.require_known(&[RULE]).unwrap_err().to_string(),
        "section FLOW (version 3) is required and not known to this build; written by \"test 1\""
    );
}

#[test]
fn a_section_count_that_is_wrong_is_refused_either_way() {
    assert_eq!(
        refusal(&forged(SECTION_COUNT_AT, &[1])),
        r#"the trailer starts with "RULE\\x01\\x00\\x00\\x00", expected "TENREBIH""#
    );
    assert!(refusal(&forged(SECTION_COUNT_AT, &[3])).starts_with("truncated in the section TENR"));
    assert_eq!(refusal(&forged(SECTION_COUNT_AT, &[0xff; 4])), "4294967295 sections, the limit is 4096");
}

#[test]
fn a_forged_length_is_refused_without_being_believed() {
    let section = forged(FIRST_SECTION_AT + 8, &u64::MAX.to_le_bytes());
    assert_eq!(refusal(&section), "truncated in the section FLOW: 18446744073709551615 bytes needed, 51 left");
    let total = forged(image().len() - 12, &[9, 9]);
    assert_eq!(refusal(&total), "127 bytes, the trailer says 2313");
}

#[test]
fn a_writer_that_is_too_long_or_no_text_is_refused() {
    assert_eq!(
        refusal(&forged(WRITER_LENGTH_AT, &[129, 0])),
        "the writer's name is 129 bytes long, expected up to 128"
    );
    assert_eq!(refusal(&forged(WRITER_AT, &[0xff])), "the writer's name is not UTF-8, expected UTF-8");
}

#[test]
fn a_writer_with_control_characters_cannot_reach_the_terminal() {
    let mut bytes = forged(WRITER_AT, b"\x1b[2J");
    bytes = {
        let mut newer = bytes;
        newer[FORMAT_AT..FLAGS_AT].copy_from_slice(&[9, 0, 9, 0]);
        let sum = crc32fast::hash(&newer[..HEADER_SUM_AT]).to_le_bytes();
        newer[HEADER_SUM_AT..FIRST_SECTION_AT].copy_from_slice(&sum);
        newer
    };
    assert!(refusal(&bytes).ends_with(r#"written by "\u{1b}[2J 1""#), "{}", refusal(&bytes));
    assert_eq!(SectionId(0x1b).to_string(), r"\x1b\x00\x00\x00");
}

#[test]
fn a_writer_longer_than_the_header_holds_is_cut_between_characters() {
    let header = Header { writer: "é".repeat(100), ..header() };
    let bytes = ImageWriter::new(&header).finish();
    assert_eq!(parse(&bytes).unwrap().header().writer, "é".repeat(64));
    let odd = Header { writer: format!("x{}", "é".repeat(100)), ..header };
    let bytes = ImageWriter::new(&odd).finish();
    assert_eq!(parse(&bytes).unwrap().header().writer, format!("x{}", "é".repeat(63)));
}

#[test]
fn limits_hold_for_the_image_its_sections_and_their_bodies() {
    let bytes = image();
    let refusal = |limits| Image::parse(&bytes, &limits).unwrap_err().to_string();
    assert_eq!(refusal(Limits { image_bytes: 126, ..Limits::default() }), "127 bytes, the limit is 126");
    assert_eq!(refusal(Limits { sections: 1, ..Limits::default() }), "2 sections, the limit is 1");
    assert_eq!(refusal(Limits { section_bytes: 10, ..Limits::default() }), "11 bytes in a section, the limit is 10");
    assert!(Image::parse(&bytes, &Limits { image_bytes: 127, sections: 2, section_bytes: 11 }).is_ok());
}

proptest! {
    #[test]
    fn any_image_reads_back(
        schema: u64,
        writer in "\\PC{0,40}",
        generation: [u8; 16],
        bodies in proptest::collection::btree_map(any::<u32>(), (any::<u16>(), any::<bool>(), any::<Vec<u8>>()), 0..8),
    ) {
        let writer_name = writer.chars().take(32).collect::<String>();
        let header = Header { schema, writer: writer_name, generation: GenerationId(generation) };
        let mut writer = ImageWriter::new(&header);
        for (id, (version, required, body)) in &bodies {
            let requirement = if *required { Requirement::Required } else { Requirement::Optional };
            writer.section(SectionId(*id), *version, requirement, body);
        }
        let bytes = writer.finish();
        let image = parse(&bytes).unwrap();
        prop_assert_eq!(image.header(), &header);
        prop_assert_eq!(image.sections().len(), bodies.len());
        for (section, (id, (version, required, body))) in image.sections().zip(&bodies) {
            let expected = Section { id: SectionId(*id), version: *version, required: *required, part: false, body };
            prop_assert_eq!(section, &expected);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
        drop(parse(&bytes));
        drop(parse(&[&MAGIC[..], &bytes].concat()));
    }

    #[test]
    fn forged_bytes_with_right_checksums_never_panic(at in 0..100_usize, bytes: [u8; 8]) {
        drop(parse(&forged(at, &bytes)));
    }
}
