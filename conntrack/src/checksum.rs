//! The Internet checksum (RFC 1071) and SCTP's CRC32c (RFC 9260, appendix A), as the trackers verify them.

use core::net::{IpAddr, Ipv4Addr};

use crate::headers::{Parsed, udp_lite_coverage};
use crate::tuple::proto;

/// Sum of 16-bit words in one's complement, not inverted: 0xffff over bytes that include their own right checksum.
#[inline]
pub(crate) fn ones_complement_sum(start: u16, bytes: &[u8]) -> u16 {
    folded(u64::from(start.to_be()).wrapping_add(native_sum(bytes)))
}

/// The sum of words in the order the machine has them, two at a time: carries between them are folded in at the end, as 2^16
/// is 1 in one's complement, and so are the bytes turned then (RFC 1071, section 2).
#[inline]
fn native_sum(bytes: &[u8]) -> u64 {
    let (pairs, rest) = bytes.as_chunks::<4>();
    let sum = pairs.iter().fold(0_u64, |sum, pair| sum.wrapping_add(u64::from(u32::from_ne_bytes(*pair))));
    let last = match *rest {
        [a, b, c] => [a, b, c, 0],
        [a, b] => [a, b, 0, 0],
        [a] => [a, 0, 0, 0],
        _ => [0; 4],
    };
    sum.wrapping_add(u64::from(u32::from_ne_bytes(last)))
}

/// A sum of words as one, in the order of the network.
#[inline]
fn folded(mut sum: u64) -> u16 {
    while let carry @ 1.. = sum >> 16 {
        sum = (sum & 0xffff).wrapping_add(carry);
    }
    // Below 2^16 now: nothing is cut.
    u16::from_be((sum & 0xffff) as u16)
}

/// Whether bytes that contain their own checksum add up.
#[inline]
pub(crate) fn adds_up(start: u16, bytes: &[u8]) -> bool {
    ones_complement_sum(start, bytes) == 0xffff
}

/// Sum over the pseudo header of TCP, UDP and ICMPv6 (RFC 9293 section 3.1, RFC 8200 section 8.1).
pub(crate) fn pseudo_header_sum(src: IpAddr, dst: IpAddr, proto: u8, len: usize) -> u16 {
    let of = |address| match address {
        IpAddr::V4(address) => u64::from(u32::from_ne_bytes(Ipv4Addr::octets(&address))),
        IpAddr::V6(address) => native_sum(&address.octets()),
    };
    let length = native_sum(&(len as u64).to_be_bytes());
    folded(of(src).wrapping_add(of(dst)).wrapping_add(length).wrapping_add(u64::from(u16::from(proto).to_be())))
}

/// Whether the transport checksum of a whole datagram holds; true for protocols that have none we know.
///
/// The length in the pseudo header is that of the IP payload, not UDP's own length field, and a UDP checksum of zero means
/// "none" in both families: so does the kernel.
pub(crate) fn transport_holds(parsed: &Parsed, datagram: &[u8]) -> bool {
    let l4 = parsed.l4(datagram);
    match parsed.proto {
        proto::UDP if l4.get(6..8) == Some(&[0, 0]) => true,
        proto::TCP | proto::UDP | proto::ICMPV6 => {
            adds_up(pseudo_header_sum(parsed.src, parsed.dst, parsed.proto, l4.len()), l4)
        }
        proto::ICMP => adds_up(0, l4),
        proto::SCTP => sctp_holds(l4),
        proto::UDP_LITE => udp_lite_holds(parsed, l4),
        _ => true,
    }
}

/// Whether the CRC32c in an SCTP common header is that of the packet with the field zero.
fn sctp_holds(packet: &[u8]) -> bool {
    let (Some(before), Some(field), Some(after)) = (packet.get(..8), packet.get(8..12), packet.get(12..)) else {
        return false;
    };
    let crc = !crc32c(crc32c(crc32c(!0, before), &[0; 4]), after);
    *field == crc.to_le_bytes()
}

/// Whether UDP-Lite's checksum holds as the kernel's conntrack takes it, which is with UDP's number in the pseudo header.
///
/// So every rightly summed UDP-Lite packet from a link is INVALID while `nf_conntrack_checksum` is set. Measured on 6.18.
fn udp_lite_holds(parsed: &Parsed, l4: &[u8]) -> bool {
    let start = pseudo_header_sum(parsed.src, parsed.dst, proto::UDP, l4.len());
    udp_lite_coverage(l4).is_some_and(|covered| adds_up(start, covered))
}

/// Continues a CRC32c (Castagnoli, reflected) over `bytes`; the caller inverts at start and end.
pub(crate) fn crc32c(start: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(start, |crc, byte| {
        let [low, ..] = crc.to_le_bytes();
        let entry = CRC32C.get(usize::from(low ^ byte)).copied().unwrap_or_default();
        (crc >> 8) ^ entry
    })
}

const CRC32C: [u32; 256] = crc32c_table();

#[expect(clippy::indexing_slicing, reason = "evaluated at compile time")]
#[expect(clippy::arithmetic_side_effects, reason = "evaluated at compile time")]
const fn crc32c_table() -> [u32; 256] {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut crc = index as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ POLYNOMIAL } else { crc >> 1 };
            bit += 1;
        }
        table[index] = crc;
        index += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_of_the_check_string_is_the_published_value() {
        assert_eq!(!crc32c(!0, b"123456789"), 0xe306_9283);
    }

    #[test]
    fn an_odd_last_byte_counts_as_the_high_half_of_a_word() {
        assert_eq!(ones_complement_sum(0, &[0x12, 0x34, 0x56]), 0x1234 + 0x5600);
    }

    #[test]
    fn the_sum_is_that_of_words_one_by_one_at_every_length() {
        let bytes: Vec<u8> = (0..200_u32).map(|at| (at * at * 251 + 0xf7) as u8 | 0x80).collect();
        for len in 0..=bytes.len() {
            let part = &bytes[..len];
            let words =
                part.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word.get(1).copied().unwrap_or(0)));
            let one_by_one = words.fold(0xfedc_u32, |sum, word| {
                let sum = sum + word;
                (sum & 0xffff) + (sum >> 16)
            });
            assert_eq!(u32::from(ones_complement_sum(0xfedc, part)), one_by_one, "{len} bytes");
        }
    }

    #[test]
    fn carries_are_folded_back_in() {
        assert_eq!(ones_complement_sum(0xffff, &[0xff, 0xff, 0x00, 0x01]), 1);
    }
}
