//! What hosts begin of themselves, and what else comes in from a wire.

use std::net::{IpAddr, SocketAddr};

use hibernet_conntrack::parse;

use super::dice::Dice;
use super::network::Frame;
use crate::notation::{Fragment, build, hex_of};

/// The first packet of something new, from a few hosts and ports, so that flows meet.
pub(super) fn opening(dice: &mut Dice, tcp_echo: bool) -> Frame {
    let v6 = dice.one_in(3);
    let port = 40_000 + dice.below(12);
    let seq = dice.roll() as u32;
    let syn = format!("S seq={seq} mss=1460 sackok wscale=7");
    let inside = inside(v6, 2 + dice.below(4));
    let outside = outside(v6, dice.below(3));
    let service = *dice.pick(&[53, 80, 443]);
    let icmp = if v6 { "icmp6" } else { "icmp" };
    let tcp = |src: IpAddr, dst: SocketAddr| format!("tcp {} > {dst} {syn}", SocketAddr::new(src, port as u16));
    let udp = |src: IpAddr, dst: SocketAddr| format!("udp {} > {dst} len=5", SocketAddr::new(src, port as u16));
    let (link, line) = match dice.below(18) {
        0..=3 => ("in", tcp(inside, (outside, service).into())),
        4..=6 => ("in", udp(inside, (outside, service).into())),
        7 => ("in", format!("{icmp} {inside} > {outside} echo id={} seq=1 len=8", dice.below(5))),
        8 => ("out", tcp(outside, (gateway(v6, "out"), 8080).into())),
        9 => ("out", udp(self::outside(false, 3), (gateway(false, "out"), 8080).into())),
        10 => ("dmz", tcp(dmz(v6), (outside, service).into())),
        11 => ("dmz", udp(dmz(v6), (outside, service).into())),
        12 => ("in", tcp(host(false, "10.0.0.", 64 + dice.below(8)), (self::outside(false, 1), service).into())),
        13 => ("in", tcp(host(false, "10.0.0.", 32 + dice.below(3)), (self::outside(false, 1), service).into())),
        14 => ("in", udp(inside, (gateway(v6, "in"), 7).into())),
        15 => ("out", format!("{icmp} {outside} > {} echo id=9 seq=1 len=8", gateway(v6, "out"))),
        16 if tcp_echo => ("in", tcp(inside, (gateway(v6, "in"), 7).into())),
        16 => ("in", format!("proto47 {inside} > {outside} data={GRE}")),
        _ => ("in", udp(inside, (outside, 123).into())),
    };
    Frame::new(link, built(&line))
}

/// The first packet of a flow that no other number has.
pub(super) fn distinct(number: u32) -> Frame {
    let (host, port) = (u64::from(number % 200) + 2, 1024 + number / 8);
    let (v6, seq) = (number.is_multiple_of(3), number.wrapping_mul(0x9e37_79b9));
    let src = SocketAddr::new(inside(v6, host), port as u16);
    let dst = outside(v6, u64::from(number % 5));
    let line = match number % 8 {
        0..=3 => format!("tcp {src} > {} S seq={seq} mss=1460 sackok wscale=7", SocketAddr::new(dst, 80)),
        4..=6 => format!("udp {src} > {} len=5", SocketAddr::new(dst, 53)),
        _ if v6 => format!("icmp6 {} > {dst} echo id={port} seq=1 len=8", src.ip()),
        _ => format!("icmp {} > {dst} echo id={port} seq=1 len=8", src.ip()),
    };
    Frame::new("in", built(&line))
}

/// What nobody has asked for: what the rules or the headers do not allow, what the router has to answer with an error, and
/// bytes that are no packet at all.
pub(super) fn junk(dice: &mut Dice) -> Frame {
    let v6 = dice.one_in(2);
    let (inside, outside) = (inside(v6, 2), outside(v6, 1));
    let client = SocketAddr::new(inside, 40_000 + dice.below(12) as u16);
    let server = SocketAddr::new(outside, *dice.pick(&[25, 53, 80]));
    let public = SocketAddr::new(gateway(v6, "out"), 1024 + dice.below(60_000) as u16);
    let seq = dice.roll() as u32;
    let (link, line) = match dice.below(12) {
        0 => ("in", format!("tcp {client} > {}:25 S seq={seq}", bracketed(outside))),
        1 => ("in", format!("udp {client} > {}:25 len=700", bracketed(outside))),
        2 => ("in", format!("udp {client} > {server} len=20 ttl=1")),
        3 => ("in", format!("tcp {client} > {server} A seq={seq} ack=1")),
        4 => ("out", format!("tcp {server} > {public} SA seq={seq} ack=1")),
        5 => ("out", format!("udp {server} > {public} len=3")),
        6 => ("in", format!("tcp {client} > {server} S seq={seq} badsum")),
        7 => ("in", format!("udp {client} > {}:9 len=30", bracketed(gateway(v6, "in")))),
        8 => ("in", format!("proto200 {inside} > {} len=12", gateway(v6, "in"))),
        9 => ("in", format!("udp {client} > {server} len=900 trunc=30")),
        10 => ("in", format!("tcp {client} > {server} R seq={seq}")),
        _ => {
            let bytes = (0..dice.below(60)).map(|_| dice.roll() as u8).collect();
            return Frame::new("out", bytes);
        }
    };
    Frame::new(link, built(&line))
}

/// A datagram of a flow in three fragments, of which the last may come first or not at all.
pub(super) fn fragments(dice: &mut Dice) -> Vec<Frame> {
    let v6 = dice.one_in(2);
    let client = SocketAddr::new(inside(v6, 2 + dice.below(3)), 40_000 + dice.below(12) as u16);
    let server = SocketAddr::new(outside(v6, 1), 53);
    let line = format!("udp {client} > {server} len=92 ipid={}", dice.below(4));
    let part =
        |off: u16, mf: bool| Frame::new("in", build(&line, Some(Fragment { off, len: 40, mf })).expect("a fragment"));
    let mut parts = vec![part(0, true), part(40, true), part(80, false)];
    let last = dice.below(3) as usize;
    parts.swap(last, 2);
    if dice.one_in(4) {
        parts.pop();
    }
    parts
}

/// An ICMP error about a frame that left, from a router on its way.
pub(super) fn complaint(dice: &mut Dice, about: &Frame) -> Option<Frame> {
    let parsed = parse(&about.bytes).ok()?;
    let inner = hex_of(about.bytes.get(..about.bytes.len().min(120))?);
    let line = match (parsed.src, dice.below(2)) {
        (IpAddr::V4(src), 0) => format!("icmp 192.0.2.77 > {src} unreach code=1 innerhex={inner}"),
        (IpAddr::V4(src), _) => format!("icmp 192.0.2.77 > {src} ttlexc innerhex={inner}"),
        (IpAddr::V6(src), 0) => format!("icmp6 2001:db8:77::1 > {src} unreach innerhex={inner}"),
        (IpAddr::V6(src), _) => format!("icmp6 2001:db8:77::1 > {src} toobig mtu=1400 innerhex={inner}"),
    };
    Some(Frame::new(about.link, built(&line)))
}

/// GRE of version 0 without keys, and a little payload.
pub(super) const GRE: &str = "0000080045000014";

fn built(line: &str) -> Vec<u8> {
    build(line, None).expect("the line is of the notation")
}

fn host(v6: bool, network: &str, number: u64) -> IpAddr {
    let text = if v6 { format!("{network}{number:x}") } else { format!("{network}{number}") };
    text.parse().expect("an address")
}

fn inside(v6: bool, number: u64) -> IpAddr {
    host(v6, if v6 { "fd00:10::" } else { "10.0.0." }, number)
}

fn outside(v6: bool, number: u64) -> IpAddr {
    host(v6, if v6 { "2001:db8:1::1" } else { "198.51.100.1" }, number)
}

fn dmz(v6: bool) -> IpAddr {
    host(v6, if v6 { "2001:db8:18::" } else { "198.18.0." }, 2)
}

fn gateway(v6: bool, link: &str) -> IpAddr {
    let text = match (link, v6) {
        ("in", false) => "10.0.0.1",
        ("in", true) => "fd00:10::1",
        (_, false) => "203.0.113.1",
        (_, true) => "2001:db8:ff::1",
    };
    text.parse().expect("an address")
}

fn bracketed(addr: IpAddr) -> String {
    if addr.is_ipv6() { format!("[{addr}]") } else { addr.to_string() }
}
