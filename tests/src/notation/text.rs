//! The one-line text of a decoded packet, as records carry it beside the bytes.

use std::fmt;

use super::decode::{Decoded, Icmp};
use super::{ICMP4, ICMP6, PROTO_ICMP, PROTO_ICMP6, PROTO_TCP, PROTO_UDP};

impl fmt::Display for Decoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.proto {
            Some(PROTO_TCP) => write!(f, "tcp")?,
            Some(PROTO_UDP) => write!(f, "udp")?,
            Some(PROTO_ICMP) => write!(f, "icmp")?,
            Some(PROTO_ICMP6) => write!(f, "icmp6")?,
            Some(number) => write!(f, "proto{number}")?,
            None => write!(f, "protoNone")?,
        }
        let src = endpoint(self.src.as_deref(), self.ports.map(|(src, _)| src));
        let dst = endpoint(self.dst.as_deref(), self.ports.map(|(_, dst)| dst));
        write!(f, " {src} > {dst}")?;
        if let Some(tcp) = &self.tcp {
            write!(f, " {} seq={} ack={} win={} len={}", tcp.flags, tcp.seq, tcp.ack, tcp.window, tcp.len)?;
        } else if let Some(icmp) = &self.icmp {
            icmp.write(f, if self.proto == Some(PROTO_ICMP) { &ICMP4 } else { &ICMP6 })?;
        } else if let Some(len) = self.udp_len {
            write!(f, " len={len}")?;
        }
        if let Some((offset, more)) = self.fragment {
            write!(f, " frag={offset}{} l4len={}", if more { "+" } else { "" }, self.l4_len.unwrap_or(0))?;
        }
        if self.short {
            write!(f, " short")?;
        }
        match self.ttl {
            Some(ttl) => write!(f, " ttl={ttl}"),
            None => write!(f, " ttl=None"),
        }
    }
}

impl Icmp {
    fn write(&self, f: &mut fmt::Formatter<'_>, names: &[(&str, u8)]) -> fmt::Result {
        match names.iter().find(|(_, kind)| *kind == self.kind) {
            Some((name, _)) => write!(f, " {name} code={}", self.code)?,
            None => write!(f, " type={} code={}", self.kind, self.code)?,
        }
        if let Some((id, seq)) = self.id_and_seq {
            write!(f, " id={id} seq={seq}")?;
        }
        if let Some(mtu) = self.mtu {
            write!(f, " mtu={mtu}")?;
        }
        if let Some(inner) = &self.inner {
            write!(f, " inner=({inner})")?;
        }
        Ok(())
    }
}

fn endpoint(addr: Option<&str>, port: Option<u16>) -> String {
    match (addr.unwrap_or("?"), port) {
        (addr, None) => addr.to_owned(),
        (addr, Some(port)) if addr.contains(':') => format!("[{addr}]:{port}"),
        (addr, Some(port)) => format!("{addr}:{port}"),
    }
}
