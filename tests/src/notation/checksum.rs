//! The Internet checksum (RFC 1071), as the notation's packets carry it.

use std::net::IpAddr;

/// Checksum of `bytes`, an odd last byte padded with zero.
pub(super) fn internet(bytes: &[u8]) -> u16 {
    let mut sum = 0_u64;
    for pair in bytes.chunks(2) {
        let low = pair.get(1).copied().unwrap_or(0);
        sum += u64::from(u16::from_be_bytes([pair[0], low]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Checksum of a segment under its pseudo header (RFC 9293 section 3.1, RFC 8200 section 8.1).
pub(super) fn transport(src: IpAddr, dst: IpAddr, proto: u8, segment: &[u8]) -> u16 {
    let mut covered = [octets(src), octets(dst)].concat();
    match src {
        IpAddr::V4(_) => {
            covered.extend([0, proto]);
            covered.extend((segment.len() as u16).to_be_bytes());
        }
        IpAddr::V6(_) => {
            covered.extend((segment.len() as u32).to_be_bytes());
            covered.extend([0, 0, 0, proto]);
        }
    }
    covered.extend(segment);
    internet(&covered)
}

/// The address as it stands in a header.
pub(super) fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    }
}

/// What `badsum` and `badipsum` flip in a checksum.
pub(super) const FAULT: u16 = 0x5555;
