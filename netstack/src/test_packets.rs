//! Datagrams for tests, built from a few words.

use std::net::{IpAddr, SocketAddr};

use smoltcp::wire::{
    Icmpv4Packet, Icmpv6Packet, IpAddress, IpProtocol, Ipv4Packet, TcpPacket, TcpSeqNumber, UdpPacket,
};

use crate::reject::{V4_HEADER, V6_HEADER, header};

fn ends(src: &str, dst: &str) -> (SocketAddr, SocketAddr) {
    (src.parse().unwrap(), dst.parse().unwrap())
}

fn with_header(src: IpAddr, dst: IpAddr, protocol: IpProtocol, payload: usize) -> (Vec<u8>, usize) {
    let bytes = header(src, dst, protocol, payload).unwrap();
    (bytes, if src.is_ipv4() { V4_HEADER } else { V6_HEADER })
}

/// A UDP datagram without don't-fragment.
pub(crate) fn udp(src: &str, dst: &str, payload: &[u8]) -> Vec<u8> {
    let (src, dst) = ends(src, dst);
    let (mut bytes, at) = with_header(src.ip(), dst.ip(), IpProtocol::Udp, 8 + payload.len());
    if src.is_ipv4() {
        Ipv4Packet::new_unchecked(bytes.as_mut_slice()).set_dont_frag(false);
        fill_header_checksum(&mut bytes);
    }
    let mut datagram = UdpPacket::new_unchecked(&mut bytes[at..]);
    datagram.set_src_port(src.port());
    datagram.set_dst_port(dst.port());
    datagram.set_len(u16::try_from(8 + payload.len()).unwrap());
    datagram.payload_mut().copy_from_slice(payload);
    datagram.fill_checksum(&IpAddress::from(src.ip()), &IpAddress::from(dst.ip()));
    bytes
}

/// A TCP segment; `flags` of the letters S, A, F, R, P.
pub(crate) fn tcp(src: &str, dst: &str, flags: &str, seq: u32, ack: u32, payload: &[u8]) -> Vec<u8> {
    let (src, dst) = ends(src, dst);
    let (mut bytes, at) = with_header(src.ip(), dst.ip(), IpProtocol::Tcp, 20 + payload.len());
    let mut segment = TcpPacket::new_unchecked(&mut bytes[at..]);
    segment.set_header_len(20);
    segment.set_src_port(src.port());
    segment.set_dst_port(dst.port());
    segment.set_seq_number(TcpSeqNumber(seq.cast_signed()));
    segment.set_ack_number(TcpSeqNumber(ack.cast_signed()));
    segment.set_syn(flags.contains('S'));
    segment.set_ack(flags.contains('A'));
    segment.set_fin(flags.contains('F'));
    segment.set_rst(flags.contains('R'));
    segment.set_psh(flags.contains('P'));
    segment.set_window_len(65_535);
    segment.payload_mut().copy_from_slice(payload);
    segment.fill_checksum(&IpAddress::from(src.ip()), &IpAddress::from(dst.ip()));
    bytes
}

/// An echo request of ICMP or ICMPv6 with eight bytes of payload.
pub(crate) fn icmp_echo(src: &str, dst: &str, ident: u16, seq: u16) -> Vec<u8> {
    let (src, dst): (IpAddr, IpAddr) = (src.parse().unwrap(), dst.parse().unwrap());
    let v6 = src.is_ipv6();
    let protocol = if v6 { IpProtocol::Icmpv6 } else { IpProtocol::Icmp };
    let (mut bytes, at) = with_header(src, dst, protocol, 16);
    let message = &mut bytes[at..];
    message[0] = if v6 { 128 } else { 8 };
    message[4..6].copy_from_slice(&ident.to_be_bytes());
    message[6..8].copy_from_slice(&seq.to_be_bytes());
    match (src, dst) {
        (IpAddr::V6(src), IpAddr::V6(dst)) => Icmpv6Packet::new_unchecked(message).fill_checksum(&src, &dst),
        _ => Icmpv4Packet::new_unchecked(message).fill_checksum(),
    }
    bytes
}

/// Makes the IPv4 header checksum right again; other datagrams are left alone.
pub(crate) fn fill_header_checksum(bytes: &mut [u8]) {
    if bytes[0] >> 4 == 4 {
        Ipv4Packet::new_unchecked(bytes).fill_checksum();
    }
}

/// The same for bytes that may not be a header any more.
pub(crate) fn fill_header_checksum_if_whole(bytes: &mut [u8]) {
    if bytes[0] == 0x45 {
        Ipv4Packet::new_unchecked(bytes).fill_checksum();
    }
}

/// Bytes as text.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Text as bytes.
pub(crate) fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// A datagram in one line: protocol, ends, flags, length.
pub(crate) fn text(bytes: &[u8]) -> String {
    let parsed = hibernet_conntrack::parse(bytes).unwrap();
    let l4 = parsed.l4(bytes);
    let end = |addr: IpAddr, port: u16| SocketAddr::new(addr, port).to_string();
    match parsed.proto {
        6 => {
            let s = TcpPacket::new_checked(l4).unwrap();
            let flags = [(s.syn(), 'S'), (s.ack(), 'A'), (s.fin(), 'F'), (s.rst(), 'R')];
            let flags: String = flags.iter().filter(|(set, _)| *set).map(|(_, letter)| *letter).collect();
            let good = s.verify_checksum(&parsed.src.into(), &parsed.dst.into());
            let (src, dst) = (end(parsed.src, s.src_port()), end(parsed.dst, s.dst_port()));
            format!("tcp {src} > {dst} {flags} ttl={}{}", parsed.ttl, if good { "" } else { " badsum" })
        }
        17 => {
            let d = UdpPacket::new_checked(l4).unwrap();
            let good = d.verify_checksum(&parsed.src.into(), &parsed.dst.into());
            let (src, dst) = (end(parsed.src, d.src_port()), end(parsed.dst, d.dst_port()));
            let len = d.payload().len();
            format!("udp {src} > {dst} len={len} ttl={}{}", parsed.ttl, if good { "" } else { " badsum" })
        }
        1 | 58 => {
            let (kind, code) = (l4[0], l4[1]);
            let error = (parsed.proto == 1 && matches!(kind, 3 | 11)) || (parsed.proto == 58 && kind < 128);
            let tail = if error {
                format!(" about ({})", quoted(&l4[8..]))
            } else {
                format!(" id={} seq={}", u16::from_be_bytes([l4[4], l4[5]]), u16::from_be_bytes([l4[6], l4[7]]))
            };
            format!("icmp {} > {} type={kind} code={code}{tail} ttl={}", parsed.src, parsed.dst, parsed.ttl)
        }
        proto => format!("proto{proto} {} > {} ttl={}", parsed.src, parsed.dst, parsed.ttl),
    }
}

/// The ends of a quoted datagram, which may be cut.
fn quoted(bytes: &[u8]) -> String {
    let v4 = bytes[0] >> 4 == 4;
    let (at, src, dst) = if v4 {
        let addr = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&bytes[at..at + 4]).unwrap());
        (V4_HEADER, addr(12), addr(16))
    } else {
        let addr = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&bytes[at..at + 16]).unwrap());
        (V6_HEADER, addr(8), addr(24))
    };
    let port = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    format!("{} > {}", SocketAddr::new(src, port(at)), SocketAddr::new(dst, port(at + 2)))
}
