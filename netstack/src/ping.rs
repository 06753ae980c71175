//! Answers to ICMP queries: echo and, in IPv4, timestamp (RFC 792, RFC 4443).

use core::net::IpAddr;

use hibernet_conntrack::{Parsed, proto};
use smoltcp::wire::{Icmpv4Packet, Icmpv6Packet, IpProtocol, Ipv4Packet};

use crate::reject::{V4_HEADER, V6_HEADER, header, set_tos};

/// Whether the datagram asks for an echo, of its own IP version.
pub(crate) fn is_echo_request(bytes: &[u8], parsed: &Parsed) -> bool {
    let kind = parsed.l4(bytes).first();
    match (parsed.proto, parsed.is_v6()) {
        (proto::ICMP, false) => kind == Some(&ECHO),
        (proto::ICMPV6, true) => kind == Some(&V6_ECHO),
        _ => false,
    }
}

/// The answer to a query, from `source`; `None` for anything that is not answered. `id` is IPv4's identification.
///
/// As the kernel does: an echo keeps its request's code, payload, and type of service or traffic class.
pub(crate) fn reply(bytes: &[u8], parsed: &Parsed, source: IpAddr, id: u16) -> Option<Vec<u8>> {
    if is_echo_request(bytes, parsed) {
        let request = parsed.l4(bytes);
        let kind = if parsed.is_v6() { V6_ECHO_REPLY } else { ECHO_REPLY };
        let code = *request.get(1)?;
        return message(bytes, parsed, source, id, [kind, code], request.get(ICMP_HEADER_START..)?);
    }
    match parsed.l4(bytes) {
        [TIMESTAMP, _, _, _, asked @ ..] if parsed.proto == proto::ICMP && !parsed.is_v6() => {
            // The times say nothing: this host has no time of day, and sets the high bit, which is how one says so.
            let body = [asked.get(..8)?, &[0x80, 0, 0, 0, 0x80, 0, 0, 0]].concat();
            message(bytes, parsed, source, id, [TIMESTAMP_REPLY, 0], &body)
        }
        _ => None,
    }
}

/// A message back to the datagram's source: type and code, a checksum, and what follows that.
fn message(bytes: &[u8], parsed: &Parsed, source: IpAddr, id: u16, kind: [u8; 2], body: &[u8]) -> Option<Vec<u8>> {
    let (protocol, at) = match source {
        IpAddr::V4(_) => (IpProtocol::Icmp, V4_HEADER),
        IpAddr::V6(_) => (IpProtocol::Icmpv6, V6_HEADER),
    };
    let mut datagram = header(source, parsed.src, protocol, body.len().saturating_add(ICMP_HEADER_START))?;
    if source.is_ipv4() {
        let mut ip = Ipv4Packet::new_unchecked(datagram.as_mut_slice());
        ip.set_ident(id);
        ip.set_dont_frag(false);
    }
    set_tos(&mut datagram, tos(bytes));
    let message = datagram.get_mut(at..)?;
    message.get_mut(..2)?.copy_from_slice(&kind);
    message.get_mut(ICMP_HEADER_START..)?.copy_from_slice(body);
    match (source, parsed.src) {
        (IpAddr::V6(source), IpAddr::V6(dst)) => Icmpv6Packet::new_unchecked(message).fill_checksum(&source, &dst),
        _ => Icmpv4Packet::new_unchecked(message).fill_checksum(),
    }
    Some(datagram)
}

/// Type of service or traffic class.
fn tos(bytes: &[u8]) -> u8 {
    match *bytes {
        [first, second, ..] if first >> 4 == 6 => first << 4 | second >> 4,
        [_, tos, ..] => tos,
        _ => 0,
    }
}

/// Type, code and checksum.
const ICMP_HEADER_START: usize = 4;
const ECHO_REPLY: u8 = 0;
const ECHO: u8 = 8;
const TIMESTAMP: u8 = 13;
const TIMESTAMP_REPLY: u8 = 14;
const V6_ECHO: u8 = 128;
const V6_ECHO_REPLY: u8 = 129;

#[cfg(test)]
mod tests {
    use hibernet_conntrack::parse;

    use super::*;
    use crate::test_packets::{hex, icmp_echo, unhex};

    fn answer(bytes: &[u8], source: &str) -> Option<String> {
        reply(bytes, &parse(bytes).unwrap(), source.parse().unwrap(), 0x78a1).map(|datagram| hex(&datagram))
    }

    #[test]
    fn an_echo_with_a_code_is_answered_as_the_kernel_answers_it() {
        let mut request = unhex("4510002442420000400100000a0000020a0000010805ebe7000100020001020304050607");
        crate::test_packets::fill_header_checksum(&mut request);
        let expected = "4510002478a100004001ee250a0000010a0000020005f3e7000100020001020304050607";
        assert_eq!(answer(&request, "10.0.0.1").as_deref(), Some(expected));
    }

    #[test]
    fn answers_errors_and_other_protocols_queries_are_not_answered() {
        for (kind, answered) in [(0, false), (3, false), (8, true), (13, true), (15, false), (17, false)] {
            let mut message = icmp_echo("10.0.0.2", "10.0.0.1", 1, 1);
            message.truncate(28);
            message[20] = kind;
            message.extend([0; 12]);
            message[3] = 40;
            crate::test_packets::fill_header_checksum(&mut message);
            assert_eq!(answer(&message, "10.0.0.1").is_some(), answered, "ICMP type {kind}");
        }
        let mut foreign = icmp_echo("fd00:10::2", "fd00:10::1", 1, 1);
        foreign[6] = proto::ICMP;
        assert_eq!(answer(&foreign, "fd00:10::1"), None);
    }
}
