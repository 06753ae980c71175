//! TCP segments of the flows, as they come from a link.

use std::net::IpAddr;

use hibernet_conntrack::Tuple;

/// What is in a segment beside its ends.
#[derive(Clone, Copy)]
pub(crate) struct Content {
    pub(crate) flags: u8,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) payload: usize,
}

pub(crate) const SYN: u8 = 0x02;
pub(crate) const ACK: u8 = 0x10;
pub(crate) const SYN_ACK: u8 = SYN | ACK;

/// Writes the datagram with the segment into `out`: options as Linux sends them (the SYN's window scale is 7), sums that hold.
pub(crate) fn write(out: &mut Vec<u8>, tuple: &Tuple, content: Content) {
    let Content { flags, seq, ack, payload } = content;
    out.clear();
    let options: &[u8] = match flags & SYN {
        0 => &[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 1],
        _ => &[2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7],
    };
    let l4 = 20 + options.len() + payload;
    match (tuple.src, tuple.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let [high, low] = ((20 + l4) as u16).to_be_bytes();
            out.extend([0x45, 0, high, low, 0, 0, 0x40, 0, 64, 6, 0, 0]);
            out.extend(src.octets());
            out.extend(dst.octets());
            let sum = (!folded(&[out])).to_be_bytes();
            out[10..12].copy_from_slice(&sum);
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let [high, low] = (l4 as u16).to_be_bytes();
            out.extend([0x60, 0, 0, 0, high, low, 6, 64]);
            out.extend(src.octets());
            out.extend(dst.octets());
        }
        _ => return,
    }
    let (start, addresses) = (out.len(), if tuple.src.is_ipv4() { 12..20 } else { 8..40 });
    out.extend(tuple.sport.to_be_bytes());
    out.extend(tuple.dport.to_be_bytes());
    out.extend(seq.to_be_bytes());
    out.extend(ack.to_be_bytes());
    out.extend([(((20 + options.len()) / 4) << 4) as u8, flags, 0xff, 0xff, 0, 0, 0, 0]);
    out.extend(options);
    out.resize(start + l4, b'x');
    let pseudo = [0, 6, 0, l4 as u8];
    let sum = (!folded(&[&out[addresses], &pseudo, &out[start..]])).to_be_bytes();
    out[start + 16..start + 18].copy_from_slice(&sum);
}

/// One's complement sum of parts of even length (RFC 1071).
fn folded(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks_exact(2));
    let mut sum: u32 = words.map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
