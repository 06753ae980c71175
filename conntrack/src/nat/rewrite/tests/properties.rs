//! What holds for all datagrams.

use super::*;
use crate::checksum::{crc32c, ones_complement_sum, pseudo_header_sum};

/// A datagram of the protocol with right checksums, IPv4 or IPv6, options or extension headers in front.
fn datagram() -> impl Strategy<Value = Vec<u8>> {
    let protocols =
        prop::sample::select(vec![proto::TCP, proto::UDP, proto::SCTP, proto::ICMP, proto::ICMPV6, proto::GRE, 99]);
    (protocols, any::<bool>(), any::<bool>(), prop::collection::vec(any::<u8>(), 24..80)).prop_map(
        |(protocol, v6, extended, mut segment)| {
            match protocol {
                proto::ICMP => segment[0] = 8,
                proto::ICMPV6 => segment[0] = 128,
                _ => {}
            }
            let mut datagram =
                if v6 { ipv6_header(protocol, extended, &segment) } else { ipv4_header(protocol, extended, &segment) };
            let start = datagram.len();
            datagram.extend(segment);
            mend(&mut datagram, start, protocol);
            datagram
        },
    )
}

fn ipv4_header(protocol: u8, extended: bool, segment: &[u8]) -> Vec<u8> {
    let words: u8 = if extended { 6 } else { 5 };
    let mut header = vec![0x40 | words, 0, 0, 0, 0x12, 0x34, 0, 0, 64, protocol, 0, 0];
    header.extend([10, 0, 0, 2, 198, 51, 100, 10, 0x94, 4, 0, 0]);
    header.truncate(usize::from(words) * 4);
    let total = (header.len() + segment.len()) as u16;
    header[2..4].copy_from_slice(&total.to_be_bytes());
    let sum = !ones_complement_sum(0, &header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header
}

fn ipv6_header(protocol: u8, extended: bool, segment: &[u8]) -> Vec<u8> {
    let (next, extension): (u8, &[u8]) =
        if extended { (60, &[protocol, 0, 1, 4, 0, 0, 0, 0]) } else { (protocol, &[]) };
    let mut header = vec![0x60, 0, 0, 0, 0, (extension.len() + segment.len()) as u8, next, 64];
    for address in [CLIENT6, SERVER6] {
        let IpAddr::V6(address) = address.parse().unwrap() else { unreachable!() };
        header.extend(address.octets());
    }
    header.extend(extension);
    header
}

/// The sum that is 0xffff when the checksum of the transport is right.
fn transport_sum(datagram: &[u8], start: usize, protocol: u8) -> u16 {
    let segment = &datagram[start..];
    let parsed = headers::parse(datagram).unwrap();
    if protocol == proto::ICMP {
        return ones_complement_sum(0, segment);
    }
    ones_complement_sum(pseudo_header_sum(parsed.src, parsed.dst, protocol, segment.len()), segment)
}

fn checksum_offset(protocol: u8) -> Option<usize> {
    match protocol {
        proto::TCP => Some(16),
        proto::UDP => Some(6),
        proto::ICMP | proto::ICMPV6 => Some(2),
        _ => None,
    }
}

fn mend(datagram: &mut [u8], start: usize, protocol: u8) {
    if protocol == proto::SCTP {
        datagram[start + 8..start + 12].fill(0);
        let crc = !crc32c(!0, &datagram[start..]);
        datagram[start + 8..start + 12].copy_from_slice(&crc.to_le_bytes());
    }
    let Some(offset) = checksum_offset(protocol) else { return };
    datagram[start + offset..start + offset + 2].fill(0);
    let checksum = match !transport_sum(datagram, start, protocol) {
        0 if protocol == proto::UDP => 0xffff,
        checksum => checksum,
    };
    datagram[start + offset..start + offset + 2].copy_from_slice(&checksum.to_be_bytes());
}

fn all_right(datagram: &[u8]) -> bool {
    headers::parse(datagram).is_ok_and(|parsed| transport_holds(&parsed, datagram))
}

/// The other address and port of the same family, and what the datagram has now.
fn targets(datagram: &[u8], address: u8, port: u16) -> (Tuple, Tuple) {
    let parsed = headers::parse(datagram).unwrap();
    let segment = &datagram[parsed.header_len..];
    let word = |at: usize| u16::from_be_bytes([segment[at], segment[at + 1]]);
    let (sport, dport) = match parsed.proto {
        proto::ICMP | proto::ICMPV6 => (word(4), word(0)),
        _ => (word(0), word(2)),
    };
    let now = Tuple { src: parsed.src, dst: parsed.dst, proto: parsed.proto, sport, dport };
    let other: IpAddr = if !parsed.is_v6() {
        [203, 0, 113, address].into()
    } else {
        [0x2001, 0xdb8, 0, 0, 0, 0, 7, address.into()].into()
    };
    (now, Tuple { src: other, dst: other, sport: port, dport: port, ..now })
}

fn manips() -> impl Strategy<Value = Manip> {
    prop::sample::select(vec![Manip::Source, Manip::Destination])
}

/// Both ways of writing zero in one's complement are one number: the round trip may turn 0xffff into 0.
fn same_but_for_zero(left: &[u8], right: &[u8], checksums: &[usize]) -> bool {
    let plain = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        for &at in checksums {
            if bytes[at..at + 2] == [0xff, 0xff] {
                bytes[at..at + 2].fill(0);
            }
        }
        bytes
    };
    plain(left) == plain(right)
}

proptest! {
    #[test]
    fn right_checksums_stay_right(datagram in datagram(), manip in manips(), address: u8, port: u16) {
        prop_assert!(all_right(&datagram));
        let (_, other) = targets(&datagram, address, port);
        let mut translated = datagram.clone();
        rewrite(&mut translated, &headers::parse(&datagram).unwrap(), manip, &other).unwrap();
        prop_assert!(all_right(&translated));
    }

    #[test]
    fn there_and_back_restores_the_datagram(
        mut datagram in datagram(), manip in manips(), address: u8, port: u16, damage: u16,
    ) {
        let parsed = headers::parse(&datagram).unwrap();
        let mut checksums = Vec::new();
        if let Some(offset) = checksum_offset(parsed.proto) {
            let at = parsed.header_len + offset;
            let [high, low] = damage.to_be_bytes();
            datagram[at] ^= high;
            datagram[at + 1] ^= low;
            checksums.push(at);
        }
        let (now, other) = targets(&datagram, address, port);
        let mut translated = datagram.clone();
        rewrite(&mut translated, &parsed, manip, &other).unwrap();
        rewrite(&mut translated, &parsed, manip, &now).unwrap();
        prop_assert!(same_but_for_zero(&translated, &datagram, &checksums));
    }

    #[test]
    fn an_error_there_and_back_is_as_before_and_right_between(
        quoted in datagram(), cut in 28_usize..200, manip in manips(), address: u8, port: u16,
    ) {
        let (now, other) = targets(&quoted, address, port);
        let inner = headers::parse(&quoted).unwrap();
        let mut segment = vec![0; 8];
        segment.extend(&quoted[..quoted.len().min(cut.max(inner.header_len + 8))]);
        let (protocol, header) = if !inner.is_v6() {
            segment[0] = 3;
            (proto::ICMP, ipv4_header(proto::ICMP, false, &segment))
        } else {
            segment[0] = 1;
            (proto::ICMPV6, ipv6_header(proto::ICMPV6, true, &segment))
        };
        let mut error = header;
        let start = error.len();
        error.extend(segment);
        mend(&mut error, start, protocol);
        // A cut SCTP quote comes back with the CRC of what is left of it.
        prop_assume!(inner.proto != proto::SCTP || start + 8 + quoted.len() == error.len());

        let mut translated = error.clone();
        let parsed = headers::parse(&error).unwrap();
        let outer = if manip == Manip::Source { parsed.src } else { parsed.dst };
        // `now` and `other` are of the quoted packet; the error sees them from the other end.
        let turned = |tuple: Tuple, address| match tuple.proto {
            proto::ICMP | proto::ICMPV6 => Tuple { src: address, dst: address, ..tuple },
            _ => Tuple { src: address, dst: address, sport: tuple.dport, dport: tuple.sport, ..tuple },
        };
        rewrite_quoted(&mut translated, &parsed, manip, &turned(other, other.src)).unwrap();
        prop_assert!(all_right(&translated));
        let opposite = manip.opposite().address(&now);
        let parsed = headers::parse(&translated).unwrap();
        rewrite_quoted(&mut translated, &parsed, manip, &turned(now, opposite)).unwrap();
        // The outer address went to the inner one's: put it back.
        rewrite(&mut translated, &parsed, manip, &Tuple { src: outer, dst: outer, ..turned(now, outer) }).unwrap();
        prop_assert_eq!(translated, error);
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        mut bytes in prop::collection::vec(any::<u8>(), 0..120),
        like: Option<bool>, place in any::<[u8; 4]>(), manip in manips(), v6: bool, quoted: bool,
    ) {
        if let (Some(v6), Some(first)) = (like, bytes.first_mut()) {
            *first = if v6 { 0x60 } else { 0x45 };
        }
        let parsed = headers::parse(&bytes).or_else(|_| headers::parse(&ipv4_header(place[0], false, &place)));
        let target = if v6 { tuple(PUBLIC6, 1, SERVER6, 2, 6) } else { tuple(PUBLIC, 1, SERVER, 2, 6) };
        if let Ok(parsed) = parsed {
            // What it does with bytes that are not as parsed is of no matter.
            let _outcome = if quoted {
                rewrite_quoted(&mut bytes, &parsed, manip, &target)
            } else {
                rewrite(&mut bytes, &parsed, manip, &target)
            };
        }
    }
}
