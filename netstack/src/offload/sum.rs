//! The Internet checksum (RFC 1071) over parts.

use core::net::IpAddr;

/// Sum of the pseudo header of TCP and UDP (RFC 9293 section 3.1, RFC 8200 section 8.1), not inverted.
pub(super) fn pseudo_header(src: IpAddr, dst: IpAddr, protocol: u8, len: usize) -> u16 {
    let start = u64::from(protocol).saturating_add(len as u64);
    folded([src, dst].into_iter().fold(start, |sum, address| match address {
        IpAddr::V4(address) => add(sum, &address.octets()),
        IpAddr::V6(address) => add(sum, &address.octets()),
    }))
}

/// Sums up all from `start` on and writes the inverted sum at `field`. UDP has 0xffff for 0, which says that there is none
/// (RFC 768); TCP has no such word.
pub(super) fn complete(bytes: &mut [u8], start: usize, field: usize) {
    let sum = !folded(add(0, bytes.get(start..).unwrap_or_default()));
    let is_udp = field.checked_sub(start) == Some(usize::from(super::UDP_CHECKSUM));
    put(bytes, field, if sum == 0 && is_udp { 0xffff } else { sum });
}

/// Writes a word.
pub(super) fn put(bytes: &mut [u8], at: usize, word: u16) {
    if let Some(field) = bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut) {
        *field = word.to_be_bytes();
    }
}

/// Adds 16-bit words, an odd last byte padded with zero. At most 2^32 bytes do not overflow.
pub(super) fn add(start: u64, bytes: &[u8]) -> u64 {
    // The sum of words in the machine's order is that of words in the network's, with its bytes turned (RFC 1071, section 2). Two
    // words at a time: carries between them are folded in at the end, as 2^16 is 1 in one's complement.
    let (pairs, rest) = bytes.as_chunks::<4>();
    let sum = pairs.iter().fold(0_u64, |sum, pair| sum.wrapping_add(u32::from_ne_bytes(*pair).into()));
    let mut last = [0; 4];
    if let Some(room) = last.get_mut(..rest.len()) {
        room.copy_from_slice(rest);
    }
    let turned = folded(sum.wrapping_add(u32::from_ne_bytes(last).into()));
    start.wrapping_add(u16::from_be(turned).into())
}

/// The sum in 16 bits.
pub(super) const fn folded(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff).wrapping_add(sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_of_nothing_is_written_otherwise_for_udp_alone() {
        for (field, written) in [(6, 0xffff_u16), (16, 0)] {
            let mut segment = [0; 20];
            segment[..2].copy_from_slice(&[0xff, 0xff]);
            complete(&mut segment, 0, field);
            assert_eq!(segment[field..field + 2], written.to_be_bytes());
        }
    }

    #[test]
    fn the_sum_is_that_of_words_one_by_one_at_every_length() {
        let bytes: Vec<u8> = (0..100_u32).map(|at| (at * at * 251 + 0xf7) as u8 | 0x80).collect();
        for len in 0..=bytes.len() {
            let words = bytes[..len]
                .chunks(2)
                .map(|word| u64::from(word[0]) << 8 | u64::from(word.get(1).copied().unwrap_or(0)));
            assert_eq!(folded(add(7, &bytes[..len])), folded(words.sum::<u64>() + 7), "{len} bytes");
        }
    }
}
