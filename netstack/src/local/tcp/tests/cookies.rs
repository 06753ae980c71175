//! SYN cookies: a flood takes no place, and honest handshakes go on.

use core::net::{Ipv4Addr, SocketAddr};
use core::time::Duration;

use smoltcp::wire::{TcpControl, TcpRepr, TcpTimestampRepr};

use super::*;
use crate::local::tcp::segment::{self, Head};
use crate::local::tcp::seq::Seq;
use crate::local::tcp::shim::{EMPTY, number};
use crate::{DropReason, ListenOptions, StreamOptions, StreamState, TcpListener};

/// Only SYNs open, only to the port, and nothing is picked up in the middle.
const STRICT: &str = r#"{"policy":{"input":"drop"},"rules":[
    {"chain":"input","match":{"ctstate":["established","related"]},"action":"accept"},
    {"chain":"input","match":{"proto":"tcp","dport":80,"ctstate":["new"]},"action":"accept"}]}"#;

fn server(half_open: u32, max: u32) -> (Stack, TcpListener) {
    let mut stack = host(["10.0.0.2/24", "fd00::2/64"], Ruleset::from_json(STRICT).unwrap(), 2);
    stack.set_sysctl("nf_conntrack_tcp_loose", "0").unwrap();
    stack.set_sysctl("nf_conntrack_max", &max.to_string()).unwrap();
    let options = ListenOptions { half_open, ..ListenOptions::default() };
    let listener = stack.tcp_listen("::".parse().unwrap(), 80, options).unwrap();
    (stack, listener)
}

/// A SYN from somewhere; what comes back.
fn spoof(stack: &mut Stack, number_: u32, now: Instant) -> Vec<Head> {
    let peer =
        SocketAddr::new(Ipv4Addr::from_bits(0x0a00_0003 + number_ % 200).into(), (1024 + number_ % 60_000) as u16);
    let repr = TcpRepr { control: TcpControl::Syn, seq_number: number(Seq(number_)), window_len: 1000, ..EMPTY };
    let syn = segment::build(peer, SocketAddr::new(far_addr(false), 80), &repr).unwrap();
    let link = link(stack);
    stack.ingress(link, syn, now);
    core::iter::from_fn(|| stack.egress()).map(|out| Head::read(&out.datagram).unwrap()).collect()
}

#[test]
fn a_flood_fills_neither_table_nor_backlog_and_an_honest_peer_gets_all_it_offered() {
    for v6 in [false, true] {
        let (mut server, listener) = server(4, 4096);
        let mut now = Instant::from_secs(1000);
        for number in 0..2000 {
            assert_eq!(spoof(&mut server, number, now).len(), 1, "every SYN is answered");
        }
        assert_eq!((server.conntrack().len(), server.stats().cookies_sent), (4, 1996));
        let mut client = near();
        let remote = SocketAddr::new(far_addr(v6), 80);
        let options = StreamOptions { receive_buffer: 1 << 20, ..StreamOptions::default() };
        let stream = client.tcp_connect(None, remote, options, now).unwrap();
        exchange(&mut client, &mut server, now);
        assert_eq!(client.tcp_state(stream), Some(StreamState::Established));
        let accepted = server.tcp_accept(listener).unwrap();
        let flow = server.flows(now).pop().unwrap();
        assert!(format!("{flow:?}").contains("Established"), "{flow:?}");
        let shim = &server.local.tcp.live.iter().find(|(_, found)| found.stream == accepted).unwrap().1.shim;
        assert_eq!(
            (shim.offers.scale, shim.offers.sack, shim.offers.mss),
            (Some(5), true, Some(if v6 { 1440 } else { 1460 }))
        );
        let mut room = vec![0; 100_000];
        let mut got = 0;
        let mut sent = 0;
        for _ in 0..100 {
            sent += client.tcp_write(stream, &vec![5; 50_000 - sent], now).unwrap_or(0);
            exchange(&mut client, &mut server, now);
            got += server.tcp_read(accepted, &mut room, now).unwrap_or(0);
            now = now.saturating_add(Duration::from_millis(50));
            client.poll(now);
            server.poll(now);
        }
        assert_eq!((sent, got), (50_000, 50_000));
        assert_eq!(server.stats().cookies_accepted, 1);
        reborn(&server, 8, now);
    }
}

#[test]
fn cookies_are_sent_also_where_the_table_is_full() {
    let (mut server, _) = server(4, 4);
    let now = Instant::from_secs(1000);
    for number in 0..500 {
        assert_eq!(spoof(&mut server, number, now).len(), 1);
    }
    assert_eq!(server.conntrack().totals().early_drop, 0, "nobody had to go for it");
    assert_eq!(server.stats().dropped(DropReason::TableFull), 0);
}

#[test]
fn a_rule_that_drops_a_syn_drops_it_before_a_cookie() {
    let (mut server, _) = server(1, 100);
    let now = Instant::from_secs(1000);
    spoof(&mut server, 1, now);
    assert_eq!(spoof(&mut server, 2, now).len(), 1);
    server.load_rules(Ruleset::from_json(r#"{"policy":{"input":"drop"}}"#).unwrap()).unwrap();
    assert!(spoof(&mut server, 3, now).is_empty());
}

#[test]
fn an_acknowledgement_without_a_cookie_and_one_of_another_time_open_nothing() {
    let (mut server, listener) = server(1, 100);
    let start = Instant::from_secs(1000);
    spoof(&mut server, 1, start);
    let host = SocketAddr::new(far_addr(false), 80);
    let peer: SocketAddr = "10.0.0.77:999".parse().unwrap();
    let link = link(&server);
    let say = |server: &mut Stack, repr: TcpRepr<'_>, now: Instant| {
        let datagram = segment::build(peer, host, &TcpRepr { window_len: 1000, ..repr }).unwrap();
        server.poll(now);
        while server.egress().is_some() {}
        server.ingress(link, datagram, now);
        core::iter::from_fn(|| server.egress()).map(|out| Head::read(&out.datagram).unwrap()).collect::<Vec<_>>()
    };
    let syn = TcpRepr { control: TcpControl::Syn, seq_number: number(Seq(9)), ..EMPTY };
    let ack = |to: Seq| TcpRepr { seq_number: number(Seq(10)), ack_number: Some(number(to)), ..EMPTY };
    let cookie = say(&mut server, syn, start).pop().unwrap().end();
    say(&mut server, ack(cookie.plus(1)), start);
    let late = start.saturating_add(Duration::from_secs(200));
    // Another SYN keeps cookies in flight, so that the late one is looked at and not just unknown.
    spoof(&mut server, 2, late);
    say(&mut server, ack(cookie), late);
    assert_eq!(server.tcp_accept(listener), None);
    // The first handshake has been given up; another takes the place.
    spoof(&mut server, 3, late);
    let fresh = say(&mut server, syn, late).pop().unwrap().end();
    say(&mut server, ack(fresh), late.saturating_add(Duration::from_secs(60)));
    assert!(server.tcp_accept(listener).is_some());
}

#[test]
fn cookies_under_way_die_with_the_key_and_are_counted() {
    let (mut server, listener) = server(1, 100);
    let now = Instant::from_secs(1000);
    spoof(&mut server, 1, now);
    let mut client = near();
    let remote = SocketAddr::new(far_addr(false), 80);
    let stream = client.tcp_connect(None, remote, StreamOptions::default(), now).unwrap();
    let syn = client.egress().unwrap().datagram;
    let at = link(&server);
    server.ingress(at, syn, now);
    let (mut heir, report) = reborn(&server, 21, now);
    assert_eq!(report.cookies_lost, 1);
    let to = link(&client);
    while let Some(out) = server.egress() {
        client.ingress(to, out.datagram, now);
    }
    exchange(&mut client, &mut heir, now);
    assert_eq!(heir.tcp_accept(listener), None);
    assert_eq!(client.tcp_state(stream), Some(StreamState::Established), "it will find out with its first byte");
}

#[test]
fn the_timestamp_of_a_cookie_is_not_ahead_of_the_connections() {
    let (mut server, _) = server(1, 100);
    let now = Instant::from_secs(1000);
    spoof(&mut server, 1, now);
    let peer: SocketAddr = "10.0.0.9:99".parse().unwrap();
    let host = SocketAddr::new(far_addr(false), 80);
    let link = link(&server);
    let mut say = |repr: TcpRepr<'_>| {
        server.ingress(link, segment::build(peer, host, &TcpRepr { window_len: 500, ..repr }).unwrap(), now);
        core::iter::from_fn(|| server.egress()).map(|out| Head::read(&out.datagram).unwrap()).collect::<Vec<_>>()
    };
    let syn = TcpRepr {
        control: TcpControl::Syn,
        seq_number: number(Seq(9)),
        timestamp: Some(TcpTimestampRepr::new(70, 0)),
        ..EMPTY
    };
    let answer = say(syn).pop().unwrap();
    let sent = answer.timestamps.unwrap().value;
    let data = TcpRepr {
        seq_number: number(Seq(10)),
        ack_number: Some(number(answer.end())),
        timestamp: Some(TcpTimestampRepr::new(71, sent)),
        payload: b"hello",
        ..EMPTY
    };
    let next = say(data).pop().unwrap().timestamps.unwrap();
    assert_eq!(next.echo, 71);
    assert!(next.value.wrapping_sub(sent).cast_signed() >= 0);
}

/// Carries datagrams between two stacks until neither has any.
fn exchange(a: &mut Stack, b: &mut Stack, now: Instant) {
    let (to_a, to_b) = (link(a), link(b));
    loop {
        let mut quiet = true;
        while let Some(out) = a.egress() {
            quiet = false;
            b.ingress(to_b, out.datagram, now);
        }
        while let Some(out) = b.egress() {
            quiet = false;
            a.ingress(to_a, out.datagram, now);
        }
        if quiet {
            return;
        }
    }
}
