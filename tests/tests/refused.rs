//! An image that is not as a stack wrote it is refused, with what was found and what was expected, and changes nothing.

use std::fmt::Write;

use hibernet_conntrack::EarlyDrop;
use hibernet_netstack::Decoded;
use hibernet_snapshot::image::{Image, ImageWriter, Limits, Requirement, SectionId};
use hibernet_tests::traffic::{
    GENERATION, Gateway, START, body, play_line, records_at, reframed, restored, sample, with_body, with_records,
};

/// Why an image is refused.
fn refusal(image: &[u8]) -> String {
    match restored(image, 9, START) {
        Ok(_) => "accepted".to_owned(),
        Err(error) => error.to_string(),
    }
}

/// Replaces a text by one of the same length, where it stands first.
fn replace(body: &mut [u8], from: &str, to: &str) {
    assert_eq!(from.len(), to.len());
    let at = body.windows(from.len()).position(|window| window == from.as_bytes()).expect("the text is there");
    body[at..at + from.len()].copy_from_slice(to.as_bytes());
}

/// The image with some bytes changed and with the checksums of header, sections and trailer made right again.
fn resealed(image: &[u8], change: impl Fn(&mut [u8])) -> Vec<u8> {
    let mut bytes = image.to_vec();
    change(&mut bytes);
    let writer = usize::from(u16::from_le_bytes([bytes[44], bytes[45]]));
    let header = 46 + writer;
    let sum = crc32fast::hash(&bytes[..header]).to_le_bytes();
    bytes[header..header + 4].copy_from_slice(&sum);
    let mut at = header + 4;
    while bytes[at..].len() > 20 {
        let length = u64::from_le_bytes(*bytes[at + 8..].first_chunk().unwrap()) as usize;
        let summed = [&bytes[at..at + 16], &bytes[at + 20..at + 20 + length]].concat();
        bytes[at + 16..at + 20].copy_from_slice(&crc32fast::hash(&summed).to_le_bytes());
        at += 20 + length;
    }
    let end = bytes.len() - 4;
    let sum = crc32fast::hash(&bytes[..end]).to_le_bytes();
    bytes[end..].copy_from_slice(&sum);
    bytes
}

/// Where the first section begins.
fn first_section(image: &[u8]) -> usize {
    50 + usize::from(u16::from_le_bytes([image[44], image[45]]))
}

/// The image with its sections as `sections` says: id, version, requirement and body of each.
fn with_sections(
    image: &[u8],
    sections: impl Fn(SectionId, u16, Vec<u8>) -> Option<(SectionId, u16, Vec<u8>)>,
) -> Vec<u8> {
    let image = Image::parse(image, &Limits::default()).unwrap();
    let mut writer = ImageWriter::new(image.header());
    for section in image.sections() {
        if let Some((id, version, body)) = sections(section.id, section.version, section.body.to_vec()) {
            writer.section(id, version, Requirement::Required, &body);
        }
    }
    writer.finish()
}

#[test]
fn a_flip_of_any_bit_of_any_byte_is_refused() {
    let image = sample().image();
    for at in 0..image.len() {
        for bit in 0..8 {
            let mut flipped = image.clone();
            flipped[at] ^= 1 << bit;
            assert!(Decoded::open(&flipped, &Limits::default()).is_err(), "byte {at}, bit {bit}");
        }
    }
}

#[test]
fn a_cut_at_any_length_is_refused_and_so_is_anything_behind_the_end() {
    let image = sample().image();
    for length in 0..image.len() {
        assert!(Decoded::open(&image[..length], &Limits::default()).is_err(), "{length} bytes");
    }
    for more in [&[0][..], &[0; 100], &image] {
        assert!(Decoded::open(&[&image, more].concat(), &Limits::default()).is_err());
    }
}

#[test]
fn whatever_is_refused_the_source_goes_on_as_if_nothing_had_been() {
    let (mut source, mut other) = (sample(), sample());
    let image = source.image();
    for at in (0..image.len()).step_by(7) {
        let mut flipped = image.clone();
        flipped[at] ^= 0xff;
        assert!(restored(&flipped, 1, START).is_err());
    }
    for (name, hostile) in frames(&image).into_iter().chain(values(&image)).chain(flows(&image)) {
        assert!(restored(&hostile, 1, START).is_err(), "{name}");
    }
    assert_eq!(source.image(), image);
    let line = "tcp 198.51.100.10:80 > 203.0.113.1:40000 PA seq=901 ack=121 len=5";
    let answered = play_line(&mut source, "out", line);
    assert_eq!(answered.len(), 1);
    assert_eq!(answered, play_line(&mut other, "out", line));
    assert_eq!(source.image(), other.image());
}

/// A change to an image with a name.
type Case = (&'static str, Vec<u8>);

/// The container.
fn frames(image: &[u8]) -> Vec<Case> {
    let at = first_section(image);
    let flipped = |section: &[u8; 4]| {
        let place = image.windows(4).position(|window| window == section).unwrap() + 21;
        let mut flipped = image.to_vec();
        flipped[place] ^= 1;
        flipped
    };
    let mut short = image.to_vec();
    short.truncate(image.len() - 5);
    vec![
        ("wrong magic", [b"HIBERNAT", &image[8..]].concat()),
        ("another file", b"#!/bin/sh\nexit 0\n".to_vec()),
        ("nothing", Vec::new()),
        ("newer, for newer readers", resealed(image, |b| b[8..12].copy_from_slice(&[4, 0, 3, 0]))),
        ("for readers of version 0", resealed(image, |b| b[10] = 0)),
        ("reserved flag of the header", resealed(image, |b| b[13] = 0x40)),
        ("reserved flag of a section", resealed(image, |b| b[at + 6] |= 2)),
        ("writer's name not UTF-8", resealed(image, |b| b[46] = 0xff)),
        ("another schema", resealed(image, |b| b[16..24].copy_from_slice(&[1; 8]))),
        ("cut", short),
        ("a byte behind the end", [image, &[0]].concat()),
        ("flipped in LINE", flipped(b"LINE")),
        ("flipped in RULE", flipped(b"RULE")),
        ("flipped in LINK", flipped(b"LINK")),
        ("flipped in LOCL", flipped(b"LOCL")),
        ("flipped in STAT", flipped(b"STAT")),
        ("flipped in CONN", flipped(b"CONN")),
        ("flipped in FRAG", flipped(b"FRAG")),
        ("flipped in TCPS", flipped(b"TCPS")),
        ("flipped in UDPS", flipped(b"UDPS")),
        ("flipped in NEIG", flipped(b"NEIG")),
        ("a section twice", resealed(image, |b| replace(b, "STAT", "LOCL"))),
        ("a section that nobody knows", resealed(image, |b| replace(b, "STAT", "STAX"))),
        (
            "a section that is not there",
            with_sections(image, |id, v, body| (id != SectionId::new(*b"RULE")).then_some((id, v, body))),
        ),
        ("a newer section", with_sections(image, |id, _, body| Some((id, 2, body)))),
        ("no section", with_sections(image, |_, _, _| None)),
    ]
}

/// Sections but for the flows. Field offsets are those of the codec: fixed width, little-endian.
fn values(image: &[u8]) -> Vec<Case> {
    let rule = |from: &str, to: &str| with_body(image, b"RULE", |body| replace(body, from, to));
    let link = |from: &str, to: &str| with_body(image, b"LINK", |body| replace(body, from, to));
    let conn = |change: fn(&mut Vec<u8>)| with_body(image, b"CONN", change);
    vec![
        ("a byte behind a body", with_body(image, b"LINE", |body| body.push(0))),
        ("a body cut", with_body(image, b"STAT", |body| body.truncate(body.len() - 1))),
        ("a list longer than its body", with_body(image, b"LINE", |body| body[7] = 0x7f)),
        (
            "65 parents",
            with_body(image, b"LINE", |body| {
                body[0] = 65;
                body.resize(8 + 65 * 16, 1);
            }),
        ),
        ("a rule that is no JSON", rule(r#""masquerade"}"#, r#""masquerade"]"#)),
        ("an action that nobody knows", rule(r#""masquerade""#, r#""masquerape""#)),
        ("a rule in another spelling", rule(r#""dport":443"#, r#""dport": 44"#)),
        ("a translation in a filter chain", rule(r#""reject-tcp""#, r#""masquerade""#)),
        ("a link that is not there", rule(r#""oif":"out""#, r#""oif":"0ut""#)),
        ("two links of one name", link("dmz", "out")),
        ("a link name with a control character", link("dmz", "d\nz")),
        ("a link for tiny datagrams", with_body(image, b"LINK", |body| body[18..22].copy_from_slice(&[100, 0, 0, 0]))),
        ("a network of 33 bits", with_body(image, b"LINK", |body| body[38] = 33)),
        ("a service at port 0", with_body(image, b"LOCL", |body| body[1..3].fill(0))),
        ("an option that is neither", with_body(image, b"LOCL", |body| body[0] = 2)),
        (
            "a drop for no known reason",
            with_body(image, b"STAT", |body| {
                let at = body.len() - 10;
                body[at..at + 2].copy_from_slice(&[0xff, 0xff]);
            }),
        ),
        (
            "drops that did not happen",
            with_body(image, b"STAT", |body| {
                let at = body.len() - 8;
                body[at..].fill(0);
            }),
        ),
        ("a switch that is neither on nor off", conn(|body| body[8] = 2)),
        ("a setting above its limit", conn(|body| body[10] = 3)),
        ("early drop of another kind", conn(|body| body[early_drop_at()] = 9)),
    ]
}

/// Where the policy of early drop stands in `CONN`: where images of stacks differ that differ in it alone.
fn early_drop_at() -> usize {
    let [one, other] = [EarlyDrop::Off, EarlyDrop::Lru].map(|early_drop| {
        let stack = Gateway { early_drop, ..Gateway::with_room_for(16) }.open(1);
        body(&stack.save(GENERATION, START).unwrap(), b"CONN")
    });
    one.iter().zip(&other).position(|(one, other)| one != other).unwrap()
}

/// Flows. Record offsets are those of SNAPSHOT-FORMAT.md.
fn flows(image: &[u8]) -> Vec<Case> {
    let [tcp, udp, icmp, marked, _v6] = [0, 1, 2, 3, 4];
    let set = |flow: usize, at: usize, bytes: &[u8]| {
        with_records(image, |records| records[flow].bytes[at..at + bytes.len()].copy_from_slice(bytes))
    };
    let in_tcp = |at: usize, byte: u8| {
        with_records(image, |records| {
            let from = records[tcp].tcp_at.unwrap();
            records[tcp].bytes[from + at] = byte;
        })
    };
    let table = |back: usize, bytes: [u8; 4]| {
        with_body(image, b"CONN", |body| {
            let at = records_at(body) - back;
            body[at..at + 4].copy_from_slice(&bytes);
        })
    };
    vec![
        ("room for no flow", table(20, [0; 4])),
        ("room for more flows than there are slots", table(20, [0xff; 4])),
        ("room for fewer flows than there are", table(20, [3, 0, 0, 0])),
        ("a phase beyond the wheel's slot", table(16, [0xff; 4])),
        ("fewer records than bytes", table(12, [4, 0, 0, 0])),
        ("more records than bytes", table(12, [6, 0, 0, 0])),
        ("many more records than bytes", table(12, [16, 0, 0, 0])),
        ("a reserved bit of the kind", set(udp, 0, &[0x80])),
        ("a flow that never was confirmed", set(udp, 2, &[0, 0])),
        ("a status bit that nobody knows", set(udp, 2, &[4, 0x80])),
        ("a flow on its way out", set(udp, 2, &[4, 4])),
        ("translated before it is decided", set(tcp, 2, &[0x0c, 0])),
        ("translated by the status alone", set(udp, 2, &[0x6c, 0])),
        ("translated by the tuples alone", set(tcp, 2, &[0x64, 0])),
        ("no time left", set(udp, 4, &[0; 4])),
        ("more time than a deadline can be away", set(udp, 4, &[0xff; 4])),
        ("a ping that is an answer", set(icmp, 18, &[0, 0])),
        ("a ping of the other family", set(icmp, 1, &[58])),
        (
            "a plain answer written out",
            with_records(image, |records| {
                let plain = records[udp].reply;
                let mut ends = Vec::new();
                for addr in [plain.src, plain.dst] {
                    let std::net::IpAddr::V4(addr) = addr else { panic!("of IPv4") };
                    ends.extend(addr.octets());
                }
                ends.extend([plain.sport.to_le_bytes(), plain.dport.to_le_bytes()].concat());
                records[udp].bytes[0] |= 2;
                records[udp].bytes.splice(20..20, ends);
            }),
        ),
        ("a mark of nought", set(marked, 34, &[0; 4])),
        ("a state that is none", in_tcp(0, 0)),
        ("a state beyond the last", in_tcp(0, 10)),
        ("a third direction", in_tcp(2, 2)),
        ("a segment of no kind", in_tcp(3, 6)),
        ("a window scale of 15", in_tcp(4, 15)),
        ("flags no SYN leaves", in_tcp(5, 4)),
        ("a side's scale of 15", in_tcp(18 + 16, 15)),
        (
            "a stream in the far future",
            with_records(image, |records| {
                let at = records[udp].bytes.len() - 4;
                records[udp].bytes[at..].fill(0xff);
            }),
        ),
        (
            "a flow twice",
            with_records(image, |records| {
                let twice = records[udp].clone();
                records.push(twice);
            }),
        ),
        (
            "two flows with one answer",
            with_records(image, |records| {
                let mut other = records[tcp].clone();
                other.bytes[16..18].copy_from_slice(&7_u16.to_le_bytes());
                records.push(other);
            }),
        ),
        (
            "an answer that opens another flow",
            with_records(image, |records| {
                let mut other = records[udp].clone();
                let (src, dst): (Vec<u8>, Vec<u8>) = (other.bytes[8..12].to_vec(), other.bytes[12..16].to_vec());
                let ports = [&other.bytes[18..20], &other.bytes[16..18]].concat();
                other.bytes.splice(8..20, [dst, src, ports].concat());
                records.push(other);
            }),
        ),
    ]
}

/// The messages, one a line. Checksums stand for whatever they are.
fn messages(cases: Vec<Case>) -> String {
    let mut text = String::new();
    for (name, image) in cases {
        let refusal = refusal(&image);
        assert_ne!(refusal, "accepted", "{name}");
        writeln!(text, "{name}: {refusal}").unwrap();
    }
    text
}

fn stable() -> insta::Settings {
    let mut settings = insta::Settings::clone_current();
    settings.add_filter(r"checksum [0-9a-f]{8}, expected [0-9a-f]{8}", "checksum ..., expected ...");
    settings.add_filter(r"this build reads [0-9a-f]{16}", "this build reads ...");
    settings.add_filter(r"hibernet-netstack \d+\.\d+\.\d+", "hibernet-netstack V");
    settings
}

#[test]
fn a_container_that_is_not_sound_is_refused_by_name() {
    stable().bind(|| insta::assert_snapshot!(messages(frames(&sample().image()))));
}

#[test]
fn a_value_out_of_range_is_refused_by_name() {
    stable().bind(|| insta::assert_snapshot!(messages(values(&sample().image()))));
}

#[test]
fn a_flow_that_cannot_be_is_refused_by_name() {
    stable().bind(|| insta::assert_snapshot!(messages(flows(&sample().image()))));
}

#[test]
fn what_the_tests_put_together_again_unchanged_is_accepted() {
    let image = sample().image();
    for same in [reframed(&image, |_, _| {}), with_records(&image, |_| {}), resealed(&image, |_| {})] {
        assert_eq!(same, image);
        assert_eq!(restored(&same, 1, START).unwrap().0.save(GENERATION, START).unwrap(), image);
    }
}
