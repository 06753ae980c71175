use proptest::prelude::*;

use super::*;
use crate::tracker::testing::{Family, datagram, wrap};
use crate::tuple::Direction;

const UDP_BYTES: [u8; 11] = [0x14, 0xe9, 0, 53, 0, 11, 0, 0, 1, 2, 3];

fn plain(family: Family) -> Vec<u8> {
    let (src, dst) = family.ends(Direction::Original);
    datagram(src, dst, proto::UDP, UDP_BYTES.to_vec())
}

/// An IPv6 datagram whose extension headers are given with their types; the chain is linked up.
fn chained(extensions: &[(u8, &[u8])], protocol: u8, l4: &[u8]) -> Vec<u8> {
    let (src, dst) = Family::V6.ends(Direction::Original);
    let mut kinds: Vec<u8> = extensions.iter().map(|(kind, _)| *kind).collect();
    kinds.push(protocol);
    let mut payload = Vec::new();
    for (index, (_, bytes)) in extensions.iter().enumerate() {
        payload.push(kinds[index + 1]);
        payload.extend(&bytes[1..]);
    }
    payload.extend(l4);
    wrap(src, dst, kinds[0], &payload)
}

fn with_checksum(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes[10..12].fill(0);
    let end = usize::from(bytes[0] & 0x0f) * 4;
    let sum = !checksum::ones_complement_sum(0, &bytes[..end]);
    bytes[10..12].copy_from_slice(&sum.to_be_bytes());
    bytes
}

#[test]
fn a_sound_header_is_read_in_both_families() {
    for family in Family::BOTH {
        let bytes = plain(family);
        let parsed = parse(&bytes).unwrap();
        let header = if family == Family::V4 { 20 } else { 40 };
        assert_eq!((parsed.src, parsed.dst), family.ends(Direction::Original));
        assert_eq!((parsed.proto, parsed.ttl, parsed.header_len), (proto::UDP, 64, header));
        assert_eq!(parsed.l4(&bytes).len(), UDP_BYTES.len());
        assert_eq!(parsed.fragment, None);
        let tuple = tuple_of(&parsed, &bytes).unwrap();
        assert_eq!((tuple.sport, tuple.dport), (5353, 53));
    }
}

#[test]
fn padding_of_the_link_is_left_out() {
    for family in Family::BOTH {
        let mut bytes = plain(family);
        bytes.extend([0; 9]);
        let parsed = parse(&bytes).unwrap();
        assert_eq!(parsed.end, bytes.len() - 9);
        assert_eq!(parsed.l4(&bytes).len(), UDP_BYTES.len());
    }
}

#[test]
fn a_datagram_cut_anywhere_is_refused() {
    for family in Family::BOTH {
        let bytes = plain(family);
        for len in 0..bytes.len() {
            assert!(parse(&bytes[..len]).is_err(), "{len} bytes of {}", bytes.len());
        }
    }
}

#[test]
fn each_fault_of_an_ipv4_header_has_its_name() {
    let sound = plain(Family::V4);
    let changed = |at: usize, value: u8| {
        let mut bytes = sound.clone();
        bytes[at] = value;
        bytes
    };
    assert_eq!(parse(&changed(0, 0x55)), Err(ParseError::Version { found: 5 }));
    assert_eq!(parse(&changed(0, 0x44)), Err(ParseError::HeaderLength { found: 16, expected: 31 }));
    assert_eq!(parse(&changed(0, 0x4f)), Err(ParseError::HeaderLength { found: 60, expected: 31 }));
    assert_eq!(parse(&changed(8, 63)), Err(ParseError::HeaderChecksum));
    let length = |stated| parse(&with_checksum(changed(3, stated)));
    assert_eq!(length(32), Err(ParseError::Length { found: 32, least: 20, most: 31 }));
    assert_eq!(length(19), Err(ParseError::Length { found: 19, least: 20, most: 31 }));
    assert_eq!(length(20).unwrap().end, 20);
    assert_eq!(length(32).unwrap_err().to_string(), "found a stated length of 32 bytes, expected 20 to 31");
}

#[test]
fn ipv4_options_move_layer_four() {
    let sound = plain(Family::V4);
    let mut bytes = [&sound[..20], &[1, 1, 1, 1], &sound[20..]].concat();
    bytes[0] = 0x46;
    bytes[3] += 4;
    let bytes = with_checksum(bytes);
    let parsed = parse(&bytes).unwrap();
    assert_eq!(parsed.header_len, 24);
    assert_eq!(tuple_of(&parsed, &bytes).unwrap().sport, 5353);
}

#[test]
fn a_later_fragment_has_no_layer_four() {
    let mut bytes = plain(Family::V4);
    bytes[6..8].copy_from_slice(&[0x20, 0x02]);
    let bytes = with_checksum(bytes);
    let parsed = parse(&bytes).unwrap();
    let fragment = parsed.fragment.unwrap();
    assert_eq!((fragment.offset, fragment.more, fragment.id), (16, true, 0x4242));
    assert!(parsed.l4(&bytes).is_empty());
    assert_eq!(tuple_of(&parsed, &bytes), Err(InvalidReason::NoTransportHeader));
}

#[test]
fn extension_headers_are_walked_to_layer_four() {
    let options = [0, 0, 1, 4, 0, 0, 0, 0];
    let authentication = [0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1];
    let chain: [(u8, &[u8]); 4] =
        [(HOP_BY_HOP, &options), (DESTINATION, &options), (ROUTING, &options), (AUTHENTICATION, &authentication)];
    let bytes = chained(&chain, proto::UDP, &UDP_BYTES);
    let parsed = parse(&bytes).unwrap();
    assert_eq!((parsed.proto, parsed.header_len), (proto::UDP, 40 + 3 * 8 + 12));
    assert_eq!(tuple_of(&parsed, &bytes).unwrap().dport, 53);
}

#[test]
fn a_chain_that_leads_nowhere_has_no_layer_four_and_is_no_parse_error() {
    let long = [0, 9, 1, 4, 0, 0, 0, 0];
    for bytes in [
        chained(&[], NO_NEXT_HEADER, b"payload"),
        chained(&[], DESTINATION, &[proto::UDP]),
        chained(&[(DESTINATION, &long)], HOP_BY_HOP, b""),
        chained(&[], FRAGMENT, &[proto::UDP, 0, 0]),
    ] {
        let parsed = parse(&bytes).unwrap();
        assert!(!parsed.has_l4);
        assert_eq!(tuple_of(&parsed, &bytes), Err(InvalidReason::NoTransportHeader));
    }
}

#[test]
fn an_ipv6_fragment_says_where_it_belongs_and_where_its_header_is() {
    let options = [0, 0, 1, 4, 0, 0, 0, 0];
    let first = [0, 0, 0, 1, 0xde, 0xad, 0xbe, 0xef];
    let later = [0, 0, 0x05, 0x78, 0xde, 0xad, 0xbe, 0xef];
    let bytes = chained(&[(DESTINATION, &options), (FRAGMENT, &first)], proto::UDP, &UDP_BYTES);
    let parsed = parse(&bytes).unwrap();
    let expected = Fragment { offset: 0, more: true, id: 0xdead_beef, header_at: 48, next_header_at: 40 };
    assert_eq!((parsed.fragment, parsed.has_l4), (Some(expected), true));
    let bytes = chained(&[(FRAGMENT, &later)], proto::UDP, &UDP_BYTES);
    let parsed = parse(&bytes).unwrap();
    let expected = Fragment { offset: 1400, more: false, id: 0xdead_beef, header_at: 40, next_header_at: 6 };
    assert_eq!((parsed.fragment, parsed.has_l4), (Some(expected), false));
}

#[test]
fn hop_by_hop_options_are_processed_as_every_node_must() {
    let skipped_nine_times = [&[0, 2][..], &[0x1e, 0].repeat(9), &[1, 2, 0, 0]].concat();
    let skipped_eight_times = [&[0, 2][..], &[0x1e, 0].repeat(8), &[1, 4, 0, 0, 0, 0]].concat();
    let refused = |at, answer| Err(ParseError::HopByHop { at, answer });
    let cases: [(&str, &[u8], Result<(), ParseError>); 17] = [
        ("PadN", &[0, 0, 1, 4, 0, 0, 0, 0], Ok(())),
        ("six Pad1", &[0, 0, 0, 0, 0, 0, 0, 0], Ok(())),
        ("eight Pad1", &[0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0x1e, 4, 0, 0, 0, 0], refused(49, None)),
        ("PadN with contents", &[0, 0, 1, 4, 1, 0, 0, 0], refused(42, None)),
        ("PadN of eight", &[0, 1, 1, 6, 0, 0, 0, 0, 0, 0, 1, 4, 0, 0, 0, 0], refused(42, None)),
        ("router alert", &[0, 0, 5, 2, 0, 0, 1, 0], Ok(())),
        ("router alert of four bytes", &[0, 0, 5, 4, 0, 0, 0, 0], refused(42, None)),
        ("unknown, skip", &[0, 0, 0x1e, 4, 0, 0, 0, 0], Ok(())),
        ("unknown, discard", &[0, 0, 0x5e, 4, 0, 0, 0, 0], refused(42, None)),
        ("unknown, discard and tell", &[0, 0, 0x9e, 4, 0, 0, 0, 0], refused(42, Some(2))),
        ("unknown, discard and tell unless multicast", &[0, 0, 0xde, 4, 0, 0, 0, 0], refused(42, Some(2))),
        ("cut", &[0, 0, 0x1e, 5, 0, 0, 0, 0], refused(42, None)),
        ("IOAM, misaligned", &[0, 1, 0x31, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], refused(42, None)),
        ("jumbo payload too small", &[0, 0, 0xc2, 4, 0, 0, 0, 32], refused(44, Some(0))),
        ("jumbo payload beside a length", &[0, 0, 0xc2, 4, 0, 1, 0, 0], refused(42, Some(0))),
        ("eight options", &skipped_eight_times, Ok(())),
        ("nine options", &skipped_nine_times, refused(58, None)),
    ];
    for (name, options, expected) in cases {
        let bytes = chained(&[(HOP_BY_HOP, options)], proto::UDP, &UDP_BYTES);
        assert_eq!(parse(&bytes).map(drop), expected, "{name}");
    }
    let behind_another = [(DESTINATION, &[0, 0, 1, 4, 0, 0, 0, 0][..]), (HOP_BY_HOP, &[0, 0, 0x9e, 4, 0, 0, 0, 0])];
    assert!(parse(&chained(&behind_another, proto::UDP, &UDP_BYTES)).is_ok(), "only the first header counts");
}

#[test]
fn ipv6_addresses_that_cannot_be_are_refused() {
    let with = |src: &str, dst: &str| parse(&wrap(src.parse().unwrap(), dst.parse().unwrap(), proto::UDP, &UDP_BYTES));
    assert_eq!(with("ff02::1", "fd00::1"), Err(ParseError::Source { found: "ff02::1".parse().unwrap() }));
    assert_eq!(with("fd00::1", "ff10::1"), Err(ParseError::Destination { found: "ff10::1".parse().unwrap() }));
    for (src, dst) in [("::1", "fd00::1"), ("fd00::1", "::1"), ("fd00::1", "ff01::1")] {
        assert!(with(src, dst).unwrap().is_confined_to_loopback(), "{src} to {dst}");
    }
    assert!(!with("fd00::1", "ff0e::1").unwrap().is_confined_to_loopback());
    assert!(with("::ffff:10.0.0.2", "fd00::1").is_ok());
}

#[test]
fn a_gre_call_id_stands_for_the_destination_port_in_version_one_only() {
    assert_eq!(ports_at(proto::GRE, &[0x20, 0, 8, 0, 0, 0, 0, 7]), Some((0, 0)));
    assert_eq!(ports_at(proto::GRE, &[0x20, 1, 0x88, 0x0b, 0, 4, 1, 2]), Some((0, 0x0102)));
    assert_eq!(ports_at(proto::GRE, &[0x20, 1, 0x88, 0x0b, 0, 4, 1]), Some((0, 0)));
    assert_eq!(ports_at(proto::GRE, &[0x20, 1, 8, 0, 0, 4, 1, 2]), None);
    assert_eq!(ports_at(proto::GRE, &[]), Some((0, 0)));
}

#[test]
fn ports_take_four_bytes_and_an_icmp_identifier_eight() {
    for protocol in [proto::TCP, proto::UDP, proto::SCTP] {
        assert_eq!(ports_at(protocol, &[0, 1, 0, 2]), Some((1, 2)));
        assert_eq!(ports_at(protocol, &[0, 1, 0]), None);
    }
    assert_eq!(ports_at(proto::ICMP, &[8, 3, 0, 0, 0, 7, 0, 1]), Some((7, 0x0803)));
    assert_eq!(ports_at(proto::ICMPV6, &[128, 0, 0, 0, 0, 7, 0]), None);
}

proptest! {
    #[test]
    fn no_bytes_whatever_make_the_parser_panic_or_point_outside(bytes in prop::collection::vec(any::<u8>(), 0..120)) {
        if let Ok(parsed) = parse(&bytes) {
            prop_assert!(parsed.end <= bytes.len());
            prop_assert!(parsed.l4(&bytes).len() <= bytes.len());
        }
    }

    #[test]
    fn no_chain_of_extension_headers_points_outside(
        first in prop::sample::select(vec![HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION]),
        payload in prop::collection::vec(prop_oneof![0..8_u8, prop::sample::select(vec![43, 44, 51, 59, 60, 17])], 0..200),
    ) {
        let (src, dst) = Family::V6.ends(Direction::Original);
        let bytes = wrap(src, dst, first, &payload);
        if let Ok(parsed) = parse(&bytes) {
            prop_assert!(parsed.l4(&bytes).len() <= payload.len());
            if let Some(fragment) = parsed.fragment {
                prop_assert!(fragment.next_header_at < fragment.header_at && fragment.header_at < bytes.len());
            }
        }
    }
}
