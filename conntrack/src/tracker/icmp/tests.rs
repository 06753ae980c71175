use hibernet_snapshot::Instant;

use super::*;
use crate::headers::parse;
use crate::tracker::testing::{Family, Flow, datagram, wrap};
use crate::tuple::Direction;

const ERROR_V4: u8 = 3;
const ERROR_V6: u8 = 1;

fn message(src: IpAddr, dst: IpAddr, kind: u8, code: u8, rest: &[u8]) -> Vec<u8> {
    let protocol = if src.is_ipv4() { proto::ICMP } else { proto::ICMPV6 };
    datagram(src, dst, protocol, [&[kind, code, 0, 0], rest].concat())
}

fn classified(bytes: &[u8]) -> Result<IcmpClass, InvalidReason> {
    let parsed = parse(bytes).unwrap();
    classify(&Packet { datagram: bytes, parsed: &parsed, verify_checksum: true })
}

fn router(family: Family) -> IpAddr {
    match family {
        Family::V4 => "192.0.2.254".parse().unwrap(),
        Family::V6 => "2001:db8:2::1".parse().unwrap(),
    }
}

/// A packet of the client, as an error would quote it.
fn quoted(family: Family, protocol: u8, l4: &[u8]) -> Vec<u8> {
    wrap(family.client(), family.server(), protocol, l4)
}

fn error_about(family: Family, quoted: &[u8]) -> Vec<u8> {
    let kind = if family == Family::V4 { ERROR_V4 } else { ERROR_V6 };
    message(router(family), family.client(), kind, 0, &[&[0; 4], quoted].concat())
}

#[test]
fn an_error_carries_the_tuple_it_quotes_and_where_it_is() {
    for family in Family::BOTH {
        let bytes = error_about(family, &quoted(family, proto::UDP, &[0x14, 0xe9, 0, 53, 0, 8, 0, 0]));
        let Ok(IcmpClass::Error { inner }) = classified(&bytes) else { panic!("{:?}", classified(&bytes)) };
        let expected = Tuple { src: family.client(), dst: family.server(), proto: proto::UDP, sport: 5353, dport: 53 };
        assert_eq!(inner.tuple, expected);
        let header = if family == Family::V4 { 20 } else { 40 };
        assert_eq!((inner.ip_at, inner.l4_at), (header + 8, header + 8 + header));
    }
}

#[test]
fn four_bytes_of_quoted_ports_are_enough_and_three_are_not() {
    for family in Family::BOTH {
        let whole = quoted(family, proto::TCP, &[0x14, 0xe9, 0, 53, 0, 0, 0, 1]);
        let header = whole.len() - 8;
        assert!(matches!(classified(&error_about(family, &whole[..header + 4])), Ok(IcmpClass::Error { .. })));
        for cut in [header + 3, header, header - 1, 0] {
            let protocol = if family == Family::V4 { proto::ICMP } else { proto::ICMPV6 };
            let unreadable = Err(InvalidReason::IcmpInner { proto: protocol });
            assert_eq!(classified(&error_about(family, &whole[..cut])), unreadable, "{cut} bytes");
        }
    }
}

#[test]
fn an_error_about_an_error_or_a_later_fragment_is_invalid() {
    let unreadable = Err(InvalidReason::IcmpInner { proto: proto::ICMP });
    let nested = quoted(Family::V4, proto::ICMP, &[ERROR_V4, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(classified(&error_about(Family::V4, &nested)), unreadable);
    let mut fragment = quoted(Family::V4, proto::UDP, &[0; 8]);
    fragment[7] = 1;
    assert_eq!(classified(&error_about(Family::V4, &fragment)), unreadable);
    fragment[7] = 0;
    fragment[6] = 0x20;
    assert!(classified(&error_about(Family::V4, &fragment)).is_ok(), "a first fragment has its ports");
}

#[test]
fn neither_length_nor_checksum_nor_version_of_a_quoted_header_matter() {
    let mut inner = quoted(Family::V4, proto::UDP, &[0; 8]);
    inner[0] = 0x05;
    inner[2..4].fill(0xff);
    inner[10] ^= 0xff;
    assert!(matches!(classified(&error_about(Family::V4, &inner)), Ok(IcmpClass::Error { .. })));
}

#[test]
fn an_error_must_go_to_the_source_of_what_it_quotes() {
    for family in Family::BOTH {
        let foreign = wrap(router(family), family.server(), proto::UDP, &[0; 8]);
        let protocol = if family == Family::V4 { proto::ICMP } else { proto::ICMPV6 };
        assert_eq!(classified(&error_about(family, &foreign)), Err(InvalidReason::IcmpMisdirected { proto: protocol }));
    }
}

#[test]
fn only_five_types_of_icmp_are_errors_and_all_of_icmpv6_below_128() {
    let rest = |family| [&[0; 4], &quoted(family, proto::UDP, &[0; 8])[..]].concat();
    for kind in 0..=HIGHEST_TYPE {
        let bytes = message(router(Family::V4), Family::V4.client(), kind, 0, &rest(Family::V4));
        let is_error = matches!(classified(&bytes), Ok(IcmpClass::Error { .. }));
        assert_eq!(is_error, matches!(kind, 3 | 4 | 5 | 11 | 12), "type {kind}");
    }
    for kind in 0..V6_FIRST_INFORMATIONAL {
        let bytes = message(router(Family::V6), Family::V6.client(), kind, 0, &rest(Family::V6));
        assert!(matches!(classified(&bytes), Ok(IcmpClass::Error { .. })), "type {kind}");
    }
}

#[test]
fn icmp_types_above_the_mask_reply_do_not_exist() {
    let bytes = message(router(Family::V4), Family::V4.client(), 19, 0, &[0; 4]);
    assert_eq!(classified(&bytes), Err(InvalidReason::IcmpType { proto: proto::ICMP, kind: 19 }));
}

#[test]
fn discovery_is_not_tracked_but_its_checksum_is_verified() {
    for kind in [130, 131, 132, 133, 134, 135, 136, 143, 151, 152] {
        let mut bytes = message(Family::V6.server(), Family::V6.client(), kind, 0, &[0; 4]);
        assert_eq!(classified(&bytes), Ok(IcmpClass::Untracked), "type {kind}");
        bytes[42] ^= 1;
        assert_eq!(classified(&bytes), Err(InvalidReason::BadChecksum { proto: proto::ICMPV6 }));
    }
    let termination = message(Family::V6.server(), Family::V6.client(), 153, 0, &[0; 4]);
    assert_eq!(classified(&termination), Ok(IcmpClass::Query), "and opens no flow");
}

#[test]
fn a_redirect_of_a_neighbour_is_about_the_packet_in_its_first_option() {
    let neighbour: IpAddr = "fe80::1".parse().unwrap();
    let inner = quoted(Family::V6, proto::UDP, &[0; 8]);
    let option = [&[REDIRECTED_HEADER, 7, 0, 0, 0, 0, 0, 0], &inner[..]].concat();
    let redirect = |src: IpAddr, hop_limit: u8, code: u8, options: &[u8]| {
        let mut bytes = message(src, Family::V6.client(), V6_REDIRECT, code, &[&[0; 36], options].concat());
        bytes[7] = hop_limit;
        classified(&bytes)
    };
    assert!(matches!(redirect(neighbour, 255, 0, &option), Ok(IcmpClass::Error { .. })));
    assert_eq!(redirect(neighbour, 254, 0, &option), Err(InvalidReason::RedirectFromAfar { ttl: 254 }));
    assert_eq!(redirect(Family::V6.server(), 255, 0, &option), Err(InvalidReason::RedirectFromAfar { ttl: 255 }));
    let unreadable = Err(InvalidReason::IcmpInner { proto: proto::ICMPV6 });
    assert_eq!(redirect(neighbour, 255, 0, &[]), unreadable);
    assert_eq!(redirect(neighbour, 255, 0, &[REDIRECTED_HEADER, 0, 0, 0, 0, 0, 0, 0]), unreadable);
    let link_address_first = [&[2, 1, 1, 2, 3, 4, 5, 6], &option[..]].concat();
    assert_eq!(redirect(neighbour, 255, 0, &link_address_first), Ok(IcmpClass::Query));
    assert_eq!(redirect(neighbour, 255, 1, &option), Ok(IcmpClass::Query));
}

#[test]
fn only_requests_open_a_flow() {
    let now = Instant::ZERO;
    let sysctls = Sysctls::default();
    for family in Family::BOTH {
        let (src, dst) = family.ends(Direction::Original);
        let (protocol, requests): (u8, &[u8]) = match family {
            Family::V4 => (proto::ICMP, &[8, 13, 15, 17]),
            Family::V6 => (proto::ICMPV6, &[128, 139]),
        };
        for kind in [0, 8, 13, 14, 15, 16, 17, 18, 128, 129, 139, 140, 200] {
            let opened = Flow::open(&message(src, dst, kind, 0, &[0, 7, 0, 1]), &sysctls, now);
            match requests.contains(&kind) {
                true => assert_eq!(opened.unwrap().timeout, 30),
                false => {
                    assert_eq!(opened.unwrap_err(), InvalidReason::IcmpNotOpening { proto: protocol, kind });
                }
            }
        }
    }
}

#[test]
fn the_other_familys_protocol_opens_nothing() {
    let sysctls = Sysctls::default();
    for (family, protocol) in [(Family::V4, proto::ICMPV6), (Family::V6, proto::ICMP)] {
        let (src, dst) = family.ends(Direction::Original);
        let bytes = wrap(src, dst, protocol, &[8, 0, 0, 0, 0, 7, 0, 1]);
        assert_eq!(classified(&bytes), Ok(IcmpClass::Query));
        let error = Flow::open(&bytes, &sysctls, Instant::ZERO).unwrap_err();
        assert_eq!(error, InvalidReason::WrongFamily { proto: protocol });
    }
}

#[test]
fn a_header_of_seven_bytes_is_short() {
    for (family, protocol) in [(Family::V4, proto::ICMP), (Family::V6, proto::ICMPV6)] {
        let (src, dst) = family.ends(Direction::Original);
        let bytes = datagram(src, dst, protocol, vec![8, 0, 0, 0, 0, 7, 0]);
        assert_eq!(classified(&bytes), Err(InvalidReason::ShortPacket { proto: protocol }));
    }
}

#[test]
fn an_answered_query_is_refreshed_and_never_assured() {
    let sysctls = Sysctls::default();
    let (src, dst) = Family::V4.ends(Direction::Original);
    let mut flow = Flow::open(&message(src, dst, ECHO, 0, &[0, 7, 0, 1]), &sysctls, Instant::ZERO).unwrap();
    let answer = message(dst, src, 0, 0, &[0, 7, 0, 1]);
    for _ in 0..3 {
        let outcome = flow.follow(&answer, Direction::Reply, &sysctls, Instant::ZERO);
        assert_eq!(outcome, Outcome::Accept { timeout: 30, assure: false, changed: false });
    }
}
