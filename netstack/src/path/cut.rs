//! Fragmentation of datagrams that are larger than their link takes.

use core::net::IpAddr;

use hibernet_conntrack::Parsed;
use smoltcp::wire::{Ipv4Packet, Ipv6Packet};

/// A datagram in pieces of at most `limit` bytes each, in order. `id` names the pieces of IPv6; IPv4 has a name in its
/// header. `None` if no piece of payload fits, or headers are longer than can be.
///
/// Options of IPv4 that are not copied into later pieces (RFC 791, section 3.1) stay in all of them, as padding would.
pub(super) fn cut(datagram: &[u8], parsed: &Parsed, limit: usize, id: u32) -> Option<Vec<Vec<u8>>> {
    match parsed.src {
        IpAddr::V4(_) => cut_v4(datagram, parsed, limit),
        IpAddr::V6(_) => cut_v6(datagram, parsed, limit, id),
    }
}

fn cut_v4(datagram: &[u8], parsed: &Parsed, limit: usize) -> Option<Vec<Vec<u8>>> {
    let header = datagram.get(..parsed.header_len)?;
    let payload = datagram.get(parsed.header_len..)?;
    let (at_first, more_follow) = parsed.fragment.map_or((0, false), |fragment| (fragment.offset, fragment.more));
    let pieces = pieces(payload, limit.checked_sub(header.len())?)?;
    let last = pieces.len().checked_sub(1)?;
    let mut at = at_first;
    let mut datagrams = Vec::with_capacity(pieces.len());
    for (number, piece) in pieces.into_iter().enumerate() {
        let mut bytes = [header, piece].concat();
        let len = u16::try_from(bytes.len()).ok()?;
        let mut packet = Ipv4Packet::new_unchecked(bytes.as_mut_slice());
        packet.set_total_len(len);
        packet.set_frag_offset(u16::try_from(at).ok()?);
        packet.set_more_frags(more_follow || number < last);
        packet.fill_checksum();
        at = at.saturating_add(piece.len());
        datagrams.push(bytes);
    }
    Some(datagrams)
}

/// The pieces of a datagram without extension headers: those made here have none.
fn cut_v6(datagram: &[u8], parsed: &Parsed, limit: usize, id: u32) -> Option<Vec<Vec<u8>>> {
    if parsed.fragment.is_some() || parsed.header_len != V6_HEADER {
        return None;
    }
    let header = datagram.get(..V6_HEADER)?;
    let payload = datagram.get(V6_HEADER..)?;
    let pieces = pieces(payload, limit.checked_sub(V6_HEADER)?.checked_sub(FRAGMENT_HEADER)?)?;
    let last = pieces.len().checked_sub(1)?;
    let mut at = 0_usize;
    let mut datagrams = Vec::with_capacity(pieces.len());
    for (number, piece) in pieces.into_iter().enumerate() {
        let [offset_high, offset_low] = u16::try_from(at).ok()?.to_be_bytes();
        let more = u8::from(number < last);
        let [id3, id2, id1, id0] = id.to_be_bytes();
        let extension = [parsed.proto, 0, offset_high, offset_low | more, id3, id2, id1, id0];
        let mut bytes = [header, extension.as_slice(), piece].concat();
        let len = u16::try_from(bytes.len().checked_sub(V6_HEADER)?).ok()?;
        let mut packet = Ipv6Packet::new_unchecked(bytes.as_mut_slice());
        packet.set_payload_len(len);
        packet.set_next_header(FRAGMENT.into());
        at = at.saturating_add(piece.len());
        datagrams.push(bytes);
    }
    Some(datagrams)
}

/// The payload in multiples of eight bytes, but for the last.
fn pieces(payload: &[u8], room: usize) -> Option<Vec<&[u8]>> {
    let step = room & !7;
    if step == 0 { None } else { Some(payload.chunks(step).collect()) }
}

const V6_HEADER: usize = 40;
const FRAGMENT_HEADER: usize = 8;
/// Protocol number of the fragment header (RFC 8200, section 4.5).
const FRAGMENT: u8 = 44;

#[cfg(test)]
mod tests {
    use hibernet_conntrack::parse;

    use super::*;
    use crate::test_packets::udp;

    #[test]
    fn pieces_are_as_long_as_the_kernel_makes_them() {
        let datagram = udp("10.0.0.2:1", "198.51.100.10:25", &[7; 1300]);
        let pieces = cut(&datagram, &parse(&datagram).unwrap(), 1280, 0).unwrap();
        assert_eq!(pieces.iter().map(Vec::len).collect::<Vec<_>>(), [1276, 72]);
        let read: Vec<_> = pieces.iter().map(|piece| parse(piece).unwrap().fragment.unwrap()).collect();
        assert_eq!((read[0].offset, read[0].more, read[1].offset, read[1].more), (0, true, 1256, false));
    }

    #[test]
    fn pieces_put_together_are_the_datagram() {
        for (src, dst) in [("10.0.0.2:1", "198.51.100.10:25"), ("[fd00::2]:1", "[2001:db8::9]:25")] {
            let datagram = udp(src, dst, &(0..3000_u32).map(|n| n.to_be_bytes()[3]).collect::<Vec<_>>());
            let parsed = parse(&datagram).unwrap();
            let mut payload = Vec::new();
            for piece in cut(&datagram, &parsed, 1280, 9).unwrap() {
                assert!(piece.len() <= 1280);
                let read = parse(&piece).unwrap();
                assert_eq!(read.fragment.unwrap().offset, payload.len());
                let header = if read.is_v6() { V6_HEADER + FRAGMENT_HEADER } else { read.header_len };
                payload.extend_from_slice(&piece[header..]);
            }
            assert_eq!(payload, datagram[parsed.header_len..]);
        }
    }
}
