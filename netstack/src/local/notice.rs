//! ICMP errors about what a socket of this host has sent.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use hibernet_conntrack::proto;
use hibernet_snapshot::Instant;

use super::sockets::Notice;
use super::{Ends, Local};
use crate::packet::Packet;

impl Local {
    /// Tells the socket that has sent what the error quotes. Errors about anything else have nobody here who waits for them.
    pub(crate) fn heed_icmp_error(&mut self, packet: &Packet, now: Instant) {
        let [kind, code, _, _, _, _, _, _, quote @ ..] = packet.parsed().l4(packet.bytes()) else { return };
        let by = packet.src();
        let Some(quoted) = Quoted::read(quote) else { return };
        // Only an error about a datagram of the address it was sent to is about one of this host.
        if quoted.src != packet.dst() {
            return;
        }
        let Some(notice) = Notice::of(by, *kind, *code) else { return };
        match (quoted.proto, quoted.l4) {
            (proto::UDP, [s1, s0, d1, d0, ..]) if notice.is_fatal() => {
                let own = SocketAddr::new(quoted.src, u16::from_be_bytes([*s1, *s0]));
                let peer = SocketAddr::new(quoted.dst, u16::from_be_bytes([*d1, *d0]));
                self.fail_udp(own, peer, notice);
            }
            (proto::TCP, [s1, s0, d1, d0, n3, n2, n1, n0, ..]) => {
                let local = SocketAddr::new(quoted.src, u16::from_be_bytes([*s1, *s0]));
                let remote = SocketAddr::new(quoted.dst, u16::from_be_bytes([*d1, *d0]));
                let number = u32::from_be_bytes([*n3, *n2, *n1, *n0]);
                self.fail_tcp(&Ends { local, remote }, number, notice, now);
            }
            (proto::ICMP, [ECHO_REQUEST, _, _, _, id1, id0, ..])
            | (proto::ICMPV6, [ECHO_REQUEST_V6, _, _, _, id1, id0, ..]) => {
                // An echo request has no port that could be refused.
                let notice = match notice {
                    Notice::Refused(by) => Notice::Unreachable(by, *code),
                    other => other,
                };
                self.fail_ping(quoted.src, u16::from_be_bytes([*id1, *id0]), quoted.dst, notice);
            }
            _ => {}
        }
    }
}

impl Notice {
    /// What an error of `by` means to who sent the datagram (RFC 792, RFC 4443).
    fn of(by: IpAddr, kind: u8, code: u8) -> Option<Self> {
        match (by.is_ipv4(), kind, code) {
            (true, 3, 3) | (false, 1, 4) => Some(Self::Refused(by)),
            (true, 3, 4) | (false, 2, _) => Some(Self::TooBig(by)),
            (true, 3, _) | (false, 1, _) => Some(Self::Unreachable(by, code)),
            (true, 11, 0) | (false, 3, 0) => Some(Self::TimeExceeded(by)),
            (true, 12, _) | (false, 4, _) => Some(Self::Parameter(by, code)),
            _ => None,
        }
    }
}

/// The beginning of a datagram that an error quotes.
struct Quoted<'a> {
    src: IpAddr,
    dst: IpAddr,
    proto: u8,
    l4: &'a [u8],
}

impl<'a> Quoted<'a> {
    /// Reads a quote as far as sockets of this host can have sent it: without options, and with no extension header but that
    /// of a first fragment.
    fn read(bytes: &'a [u8]) -> Option<Self> {
        match bytes.first()? >> 4 {
            4 => {
                let header: &[u8; 20] = bytes.first_chunk()?;
                let [_, _, _, _, _, _, flags, offset, _, proto, ..] = *header;
                let later = flags & 0x1f != 0 || offset != 0;
                let src: [u8; 4] = *bytes.get(12..)?.first_chunk()?;
                let dst: [u8; 4] = *bytes.get(16..)?.first_chunk()?;
                let len = usize::from(bytes.first()? & 0x0f).saturating_mul(4);
                let l4 = bytes.get(len.max(header.len())..)?;
                let (src, dst) = (Ipv4Addr::from(src).into(), Ipv4Addr::from(dst).into());
                (!later).then_some(Self { src, dst, proto, l4 })
            }
            6 => {
                let src: [u8; 16] = *bytes.get(8..)?.first_chunk()?;
                let dst: [u8; 16] = *bytes.get(24..)?.first_chunk()?;
                let (mut proto, mut l4) = (*bytes.get(6)?, bytes.get(40..)?);
                if proto == FRAGMENT {
                    let [next, _, offset1, offset0, _, _, _, _, rest @ ..] = l4 else { return None };
                    if u16::from_be_bytes([*offset1, *offset0]) >> 3 != 0 {
                        return None;
                    }
                    (proto, l4) = (*next, rest);
                }
                let (src, dst) = (Ipv6Addr::from(src).into(), Ipv6Addr::from(dst).into());
                Some(Self { src, dst, proto, l4 })
            }
            _ => None,
        }
    }
}

/// Type of an echo request (RFC 792).
const ECHO_REQUEST: u8 = 8;
/// Type of an echo request of ICMPv6 (RFC 4443).
const ECHO_REQUEST_V6: u8 = 128;
/// Extension header of a fragment.
const FRAGMENT: u8 = 44;
