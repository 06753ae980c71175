//! From bytes to named fields: for people, for captured values and for loose comparison.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde_json::{Value, json};

use super::{PROTO_ICMP, PROTO_ICMP6, PROTO_TCP, PROTO_UDP, TCP_FLAGS, hex_of};

/// What could be read from a packet. A field that the packet has no room for, or no such thing, is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decoded {
    pub(super) version: Option<u8>,
    pub(super) src: Option<String>,
    pub(super) dst: Option<String>,
    pub(super) ttl: Option<u8>,
    pub(super) proto: Option<u8>,
    pub(super) ip_id: Option<u16>,
    pub(super) fragment: Option<(u16, bool)>,
    pub(super) dont_fragment: bool,
    pub(super) l4_len: Option<usize>,
    pub(super) ports: Option<(u16, u16)>,
    pub(super) tcp: Option<Tcp>,
    pub(super) udp_len: Option<i32>,
    pub(super) icmp: Option<Icmp>,
    pub(super) short: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tcp {
    pub(super) flags: String,
    pub(super) seq: u32,
    pub(super) ack: u32,
    pub(super) window: u16,
    pub(super) len: i64,
    pub(super) options: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Icmp {
    pub(super) kind: u8,
    pub(super) code: u8,
    pub(super) id_and_seq: Option<(u16, u16)>,
    pub(super) inner: Option<Box<Decoded>>,
    pub(super) mtu: Option<u32>,
}

/// Reads as far as the bytes go; a packet that ends early keeps what was read and is marked short.
pub fn decode(packet: &[u8]) -> Decoded {
    let mut decoded = Decoded::default();
    decoded.short = decoded.read_ip(packet).is_none();
    decoded
}

impl Decoded {
    /// The field of that name in the scenario language, as a capture or a comparison takes it.
    pub fn field(&self, name: &str) -> Option<Value> {
        let (tcp, icmp) = (self.tcp.as_ref(), self.icmp.as_ref());
        let id_and_seq = icmp.and_then(|icmp| icmp.id_and_seq);
        Some(match name {
            "v" => json!(self.version?),
            "src" => json!(self.src.as_ref()?),
            "dst" => json!(self.dst.as_ref()?),
            "ttl" => json!(self.ttl?),
            "num" => json!(self.proto?),
            "ipid" => json!(self.ip_id?),
            "fragoff" => json!(self.fragment?.0),
            "mf" => json!(self.fragment?.1),
            "df" if self.dont_fragment => json!(true),
            "l4len" => json!(self.l4_len?),
            "sport" => json!(self.ports?.0),
            "dport" => json!(self.ports?.1),
            "seq" => tcp.map(|tcp| json!(tcp.seq)).or_else(|| Some(json!(id_and_seq?.1)))?,
            "ack" => json!(tcp?.ack),
            "win" => json!(tcp?.window),
            "flags" => json!(tcp?.flags),
            "opts" => json!(tcp?.options),
            "len" => tcp.map(|tcp| json!(tcp.len)).or_else(|| Some(json!(self.udp_len?)))?,
            "type" => json!(icmp?.kind),
            "code" => json!(icmp?.code),
            "id" => json!(id_and_seq?.0),
            "mtu" => json!(icmp?.mtu?),
            _ => return None,
        })
    }

    /// Whether the router's own IPv6 or IGMP housekeeping sent it, which no scenario is about.
    pub fn is_housekeeping(&self) -> bool {
        let from_link = self.src.as_deref().is_some_and(|src| src == "::" || src.starts_with("fe80"));
        let kind = self.icmp.as_ref().map(|icmp| icmp.kind);
        let multicast = matches!(kind, Some(131 | 132 | 133 | 135 | 136 | 143));
        self.proto == Some(PROTO_IGMP)
            || (self.version == Some(6) && self.proto == Some(PROTO_ICMP6) && multicast && from_link)
    }

    fn read_ip(&mut self, packet: &[u8]) -> Option<()> {
        let first = *packet.first()?;
        let l4 = if first >> 4 == 4 { self.read_ipv4(packet)? } else { self.read_ipv6(packet)? };
        self.l4_len = Some(l4.len());
        if self.fragment.is_some_and(|(offset, _)| offset > 0) {
            return Some(());
        }
        match self.proto? {
            PROTO_TCP => self.read_tcp(l4),
            PROTO_UDP => self.read_udp(l4),
            PROTO_ICMP | PROTO_ICMP6 => self.read_icmp(l4),
            _ => Some(()),
        }
    }

    fn read_ipv4<'a>(&mut self, packet: &'a [u8]) -> Option<&'a [u8]> {
        let (total, id, flags) = (u16_at(packet, 2)?, u16_at(packet, 4)?, u16_at(packet, 6)?);
        let (src, dst) = (packet.get(12..16)?, packet.get(16..20)?);
        let dotted = |octets: &[u8]| Some(Ipv4Addr::from(<[u8; 4]>::try_from(octets).ok()?).to_string());
        self.version = Some(4);
        self.src = dotted(src);
        self.dst = dotted(dst);
        self.ttl = Some(packet[8]);
        self.proto = Some(packet[9]);
        self.ip_id = Some(id);
        if flags & 0x3fff != 0 {
            self.fragment = Some(((flags & 0x1fff) << 3, flags & 0x2000 != 0));
        }
        self.dont_fragment = flags & 0x4000 != 0;
        Some(slice(packet, usize::from(packet[0] & 15) * 4, usize::from(total)))
    }

    fn read_ipv6<'a>(&mut self, packet: &'a [u8]) -> Option<&'a [u8]> {
        let (src, dst) = (packet.get(8..24)?, packet.get(24..40)?);
        self.version = Some(6);
        self.src = colons(src);
        self.dst = colons(dst);
        self.ttl = Some(packet[7]);
        self.proto = Some(packet[6]);
        let mut l4 = slice(packet, 40, 40 + usize::from(u16_at(packet, 4)?));
        while let Some(HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | FRAGMENT) = self.proto {
            if self.proto == Some(FRAGMENT) {
                let offset = u16_at(l4, 2)?;
                self.fragment = Some((offset & 0xfff8, offset & 1 != 0));
                self.proto = Some(*l4.first()?);
                return Some(slice(l4, 8, l4.len()));
            }
            let (next, len) = (*l4.first()?, *l4.get(1)?);
            self.proto = Some(next);
            l4 = slice(l4, (usize::from(len) + 1) * 8, l4.len());
        }
        Some(l4)
    }

    fn read_tcp(&mut self, l4: &[u8]) -> Option<()> {
        let (offset, bits) = (usize::from(*l4.get(12)? >> 4) * 4, *l4.get(13)?);
        let window = u16_at(l4, 14)?;
        self.ports = Some((u16_at(l4, 0)?, u16_at(l4, 2)?));
        let flags: String = TCP_FLAGS.iter().filter(|(_, bit)| bits & bit != 0).map(|(letter, _)| letter).collect();
        self.tcp = Some(Tcp {
            flags: if flags.is_empty() { "none".to_owned() } else { flags },
            seq: u32_at(l4, 4)?,
            ack: u32_at(l4, 8)?,
            window,
            len: l4.len() as i64 - offset as i64,
            options: hex_of(slice(l4, 20, offset)),
        });
        Some(())
    }

    fn read_udp(&mut self, l4: &[u8]) -> Option<()> {
        let len = u16_at(l4, 4)?;
        u16_at(l4, 6)?;
        self.ports = Some((u16_at(l4, 0)?, u16_at(l4, 2)?));
        self.udp_len = Some(i32::from(len) - 8);
        Some(())
    }

    fn read_icmp(&mut self, l4: &[u8]) -> Option<()> {
        let (kind, code) = (*l4.first()?, *l4.get(1)?);
        let icmp = self.icmp.insert(Icmp { kind, code, id_and_seq: None, inner: None, mtu: None });
        let second_word = (u16_at(l4, 4)?, u16_at(l4, 6)?);
        let is_error = match self.proto {
            Some(PROTO_ICMP) => matches!(kind, 3 | 4 | 5 | 11 | 12),
            _ => kind < 128,
        };
        if !is_error {
            icmp.id_and_seq = Some(second_word);
            return Some(());
        }
        icmp.inner = Some(Box::new(decode(slice(l4, 8, l4.len()))));
        icmp.mtu = match (self.proto, kind, code) {
            (Some(PROTO_ICMP), 3, 4) => Some(u32::from(second_word.1)),
            (Some(PROTO_ICMP6), 2, _) => u32_at(l4, 4),
            _ => None,
        };
        Some(())
    }
}

/// An IPv6 address as C libraries print it: the low half of an IPv4-compatible address is dotted.
fn colons(octets: &[u8]) -> Option<String> {
    let octets: [u8; 16] = octets.try_into().ok()?;
    let [high @ .., a, b, c, d] = octets;
    let compatible = high == [0; 12] && (a, b) != (0, 0);
    Some(if compatible { format!("::{a}.{b}.{c}.{d}") } else { Ipv6Addr::from(octets).to_string() })
}

/// The part of `bytes` between two offsets that may both lie behind its end.
fn slice(bytes: &[u8], from: usize, to: usize) -> &[u8] {
    let to = to.min(bytes.len());
    bytes.get(from..to).unwrap_or(&[])
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

const PROTO_IGMP: u8 = 2;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;
