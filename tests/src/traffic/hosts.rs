//! Hosts at both sides of the gateway. They remember nothing: what they answer depends on the frame alone, and on chance.

use std::net::{IpAddr, SocketAddr};

use hibernet_conntrack::{Parsed, parse, proto};

use super::dice::Dice;
use super::openings::GRE;
use crate::notation::build;

/// What the host answers that a frame is for; `None` if it keeps silent.
pub(super) fn answer(dice: &mut Dice, frame: &[u8]) -> Option<Vec<u8>> {
    let parsed = parse(frame).ok()?;
    let l4 = parsed.l4(frame);
    let line = match parsed.proto {
        proto::TCP => Segment::read(&parsed, l4)?.answer(dice)?,
        proto::UDP => {
            let (src, dst) = ends(&parsed, l4)?;
            let again = if is_service(dst.port()) { dice.below(8) < 7 } else { dice.one_in(3) };
            again.then(|| format!("udp {dst} > {src} len={}", dice.below(40)))?
        }
        proto::ICMP | proto::ICMPV6 => {
            let (name, request) = if parsed.proto == proto::ICMP { ("icmp", 8) } else { ("icmp6", 128) };
            let id = u16::from_be_bytes([*l4.get(4)?, *l4.get(5)?]);
            let asked = l4.first() == Some(&request) && dice.below(8) < 7;
            asked.then(|| format!("{name} {} > {} echoreply id={id} seq=1 len=8", parsed.dst, parsed.src))?
        }
        proto::GRE => format!("proto47 {} > {} data={GRE}", parsed.dst, parsed.src),
        _ => return None,
    };
    Some(build(&line, None).expect("the line is of the notation"))
}

/// Ports at which hosts serve rather than ask.
pub(super) const SERVICES: [u16; 7] = [7, 25, 53, 80, 123, 443, 8080];

fn is_service(port: u16) -> bool {
    SERVICES.contains(&port)
}

struct Segment {
    src: SocketAddr,
    dst: SocketAddr,
    seq: u32,
    ack: u32,
    flags: u8,
    len: u32,
}

impl Segment {
    fn read(parsed: &Parsed, l4: &[u8]) -> Option<Self> {
        let (src, dst) = ends(parsed, l4)?;
        let word = |at: usize| Some(u32::from_be_bytes(*l4.get(at..)?.first_chunk()?));
        let header = usize::from(*l4.get(12)? >> 4) * 4;
        let len = l4.len().saturating_sub(header) as u32;
        Some(Self { src, dst, seq: word(4)?, ack: word(8)?, flags: *l4.get(13)?, len })
    }

    fn answer(&self, dice: &mut Dice) -> Option<String> {
        let Self { src, dst, seq, ack, flags, len } = *self;
        let (syn, fin, rst, acks) = (flags & 2 != 0, flags & 1 != 0, flags & 4 != 0, flags & 16 != 0);
        let server = is_service(dst.port());
        let next = seq.wrapping_add(len).wrapping_add(u32::from(syn) + u32::from(fin));
        let line =
            |flags: &str, seq: u32, len: u64| format!("tcp {dst} > {src} {flags} seq={seq} ack={next} len={len}");
        match () {
            () if rst => None,
            () if syn && acks && dice.one_in(8) => Some(line("R", ack, 0)),
            () if syn && acks => Some(line("PA", ack, 1 + dice.below(200))),
            () if syn && server => {
                let first = u64::from(seq).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
                Some(format!("{} mss=1460 sackok wscale=7", line("SA", first as u32, 0)))
            }
            () if syn || !acks => None,
            () if fin => Some(line(if server { "FA" } else { "A" }, ack, 0)),
            () if len == 0 => None,
            () => match dice.below(12) {
                0 => Some(line("A", ack, 0)),
                1 if !server => Some(line("FA", ack, 0)),
                2 if dice.one_in(4) => Some(line("RA", ack, 0)),
                _ => Some(line("PA", ack, 1 + dice.below(200))),
            },
        }
    }
}

fn ends(parsed: &Parsed, l4: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let port = |at: usize| Some(u16::from_be_bytes(*l4.get(at..)?.first_chunk()?));
    let end = |addr: IpAddr, at: usize| Some(SocketAddr::new(addr, port(at)?));
    Some((end(parsed.src, 0)?, end(parsed.dst, 2)?))
}
