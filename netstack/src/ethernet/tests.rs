//! Traces on Ethernet links, as text. Link `in` has the hardware address of `gateway`, link `out` that of `public`; the
//! way to all else leads over `neighbour`. One trace serves both IP versions: to ask is an ARP request or a neighbour
//! solicitation, to answer an ARP reply or a solicited advertisement.

use core::time::Duration;
use std::net::IpAddr;

use hibernet_snapshot::image::Limits;
use hibernet_snapshot::{Entropy, GenerationId, Instant};

use super::MacAddr;
use super::arp::Arp;
use super::frame::{Carries, HEADER, framed, group_mac};
use super::ndp::{self, Ndp};
use crate::packet::Packet;
use crate::test_packets::text;
use crate::test_stack::{Version, config};
use crate::{
    Decoded, DropEvent, DropReason, Egress, LinkId, LogEvent, Medium, RestorePolicy, Ruleset, Stack, StackConfig,
    StackEvent, Supplied,
};

mod answers;
mod damage;
mod floods;
mod restoring;

/// Stations by name.
const MACS: [(&str, MacAddr); 6] = [
    ("gateway", MacAddr::new([2, 0, 0, 0, 0, 1])),
    ("public", MacAddr::new([2, 0, 0, 0, 0, 2])),
    ("client", MacAddr::new([2, 0, 0, 0, 1, 1])),
    ("other", MacAddr::new([2, 0, 0, 0, 1, 2])),
    ("neighbour", MacAddr::new([2, 0, 0, 0, 2, 9])),
    ("impostor", MacAddr::new([2, 0, 0, 0, 6, 6])),
];

fn mac(name: &str) -> MacAddr {
    let known = MACS.iter().find(|(known, _)| *known == name);
    known.map_or_else(|| panic!("no station: {name}"), |(_, mac)| *mac)
}

fn mac_name(mac: MacAddr) -> String {
    let known = MACS.iter().find(|(_, known)| *known == mac);
    match known {
        Some((name, _)) => (*name).to_owned(),
        None if mac.is_group() => "all".to_owned(),
        None => mac.to_string(),
    }
}

fn ethernet_config(rules: Ruleset) -> StackConfig {
    let mut config = config(rules);
    for (link, name) in config.links.iter_mut().zip(["gateway", "public"]) {
        link.medium = Medium::Ethernet { mac: mac(name) };
    }
    for (route, via) in config.routes.iter_mut().zip([Version::V4, Version::V6]) {
        route.via = Some(via.addr("neighbour"));
    }
    config
}

/// A stack with a clock.
struct Bench {
    stack: Stack,
    now: Instant,
    version: Version,
}

impl Bench {
    fn new(version: Version, rules: &str) -> Self {
        let rules = if rules.is_empty() { Ruleset::open() } else { Ruleset::from_json(rules).unwrap() };
        let now = Instant::from_secs(1000);
        Self { stack: Stack::new(ethernet_config(rules), Entropy::from_test_seed(1), now).unwrap(), now, version }
    }

    fn link(&self, name: &str) -> LinkId {
        self.stack.link(name).unwrap()
    }

    /// One line of a trace: `+5s` (time passes), `LINK: MESSAGE`.
    fn play(&mut self, line: &str) {
        if let Some(time) = line.strip_prefix('+') {
            let (number, unit) = time.split_at(time.find(|c: char| !c.is_ascii_digit()).unwrap());
            let number: u64 = number.parse().unwrap();
            self.now = self.now.saturating_add(match unit {
                "s" => Duration::from_secs(number),
                "ms" => Duration::from_millis(number),
                _ => panic!("no time: {line}"),
            });
            self.stack.poll(self.now);
            return;
        }
        let (link, words) = line.split_once(": ").unwrap();
        let frame = self.frame(link, words);
        self.stack.ingress(self.link(link), frame, self.now);
    }

    /// `STATION asks TARGET`, `STATION as NAME asks TARGET`, `STATION answers TARGET`, `STATION announces`; or a datagram, from
    /// the station its source names.
    fn frame(&self, link: &str, words: &str) -> Vec<u8> {
        let own = if link == "in" { mac("gateway") } else { mac("public") };
        let parts: Vec<&str> = words.split_whitespace().collect();
        let (station, name, rest) = match parts.as_slice() {
            [station, "as", name, rest @ ..] => (*station, *name, rest),
            [station, rest @ ..] => (*station, *station, rest),
            [] => panic!("nothing to play"),
        };
        match rest {
            ["asks", target] => self.question(mac(station), name, target),
            ["answers", to] => self.answer(mac(station), name, Some((own, *to))),
            ["announces"] => self.answer(mac(station), name, None),
            _ => {
                let datagram = self.version.datagram(words);
                let source = words.split_whitespace().nth(1).unwrap();
                let source = source.rsplit_once(':').map_or(source, |(name, _)| name);
                let station = MACS.iter().find(|(name, _)| *name == source).map_or(mac("neighbour"), |(_, mac)| *mac);
                framed(own, station, self.carries(), &datagram)
            }
        }
    }

    fn carries(&self) -> Carries {
        match self.version {
            Version::V4 => Carries::Ipv4,
            Version::V6 => Carries::Ipv6,
        }
    }

    fn question(&self, station: MacAddr, name: &str, target: &str) -> Vec<u8> {
        match (self.version.addr(name), self.version.addr(target)) {
            (IpAddr::V4(sender), IpAddr::V4(target)) => {
                let request = Arp::request(station, sender, target);
                framed(MacAddr::BROADCAST, station, Carries::Arp, &request.bytes())
            }
            (IpAddr::V6(sender), IpAddr::V6(target)) => {
                let group = ndp::solicited_node(target);
                let datagram = ndp::solicitation(station, sender, group, target).unwrap();
                framed(group_mac(group.into()).unwrap(), station, Carries::Ipv6, &datagram)
            }
            _ => unreachable!("both are of one version"),
        }
    }

    /// An answer to a station, or an announcement to all.
    fn answer(&self, station: MacAddr, name: &str, to: Option<(MacAddr, &str)>) -> Vec<u8> {
        match self.version.addr(name) {
            IpAddr::V4(sender) => {
                let mut arp = Arp::request(station, sender, sender);
                if let Some((target_mac, target)) = to
                    && let IpAddr::V4(target) = self.version.addr(target)
                {
                    arp = Arp { reply: true, target_mac, target, ..arp };
                }
                framed(to.map_or(MacAddr::BROADCAST, |(mac, _)| mac), station, Carries::Arp, &arp.bytes())
            }
            IpAddr::V6(sender) => {
                let dst = match to.map(|(_, target)| self.version.addr(target)) {
                    Some(IpAddr::V6(dst)) => dst,
                    _ => ndp::ALL_NODES,
                };
                let datagram = ndp::advertisement(station, dst, sender, to.is_some(), true).unwrap();
                let to = to.map_or_else(|| group_mac(dst.into()).unwrap(), |(mac, _)| mac);
                framed(to, station, Carries::Ipv6, &datagram)
            }
        }
    }

    /// What came of it: drops, then frames as `LINK: STATION < CONTENT`.
    fn outcome(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        while let Some(event) = self.stack.next_event() {
            if let StackEvent::Drop(DropEvent { reason, .. }) = event {
                lines.push(format!("drop {reason}"));
            }
        }
        while let Some(Egress { link, datagram, .. }) = self.stack.egress() {
            let name = self.stack.link_name(link).unwrap().to_owned();
            lines.push(format!("{name}: {}", self.frame_text(&datagram)));
        }
        lines
    }

    fn frame_text(&self, frame: &[u8]) -> String {
        let to = mac_name(MacAddr::new(frame[..6].try_into().unwrap()));
        let payload = &frame[HEADER..];
        let named = |addr: IpAddr| self.version.named(&addr.to_string());
        let content = match frame[12..14] {
            [8, 6] => {
                let arp = Arp::parse(payload).unwrap();
                match arp.reply {
                    false => format!("asks {}", named(arp.target.into())),
                    true => format!("answers for {}", named(arp.sender.into())),
                }
            }
            [8, 0] | [0x86, 0xdd] => {
                let packet = Packet::received(LinkId::LOOPBACK, payload.to_vec()).unwrap();
                let is_icmpv6 = packet.parsed().proto == 58;
                match ndp::parse(&packet) {
                    Ok(Some(Ndp::Solicitation { target, .. })) if is_icmpv6 => format!("asks {}", named(target.into())),
                    Ok(Some(Ndp::Advertisement { target, .. })) if is_icmpv6 => {
                        format!("answers for {}", named(target.into()))
                    }
                    _ => self.version.named(&text(payload)),
                }
            }
            _ => panic!("no such frame"),
        };
        format!("{to} < {content}")
    }

    /// The neighbours in lines, with names.
    fn neighbours(&self) -> Vec<String> {
        let line = |entry: &crate::NeighbourEntry| {
            let station = entry.mac.map_or_else(|| "?".to_owned(), mac_name);
            format!("{} {station} {}", self.version.named(&entry.addr.to_string()), entry.state)
        };
        self.stack.neighbours(self.now).iter().map(line).collect()
    }

    fn states(&mut self, lines: &[&str]) -> Vec<String> {
        for line in lines {
            self.play(line);
        }
        self.outcome();
        self.neighbours()
    }

    fn restored(&self, seed: u64) -> Self {
        let image = self.stack.save(GENERATION, self.now).unwrap();
        let mut entropy = Entropy::from_test_seed(seed);
        let validated = Decoded::open(&image, &Limits::default()).unwrap().validate(&mut entropy, self.now).unwrap();
        let rehashed = validated.rehash(entropy, RestorePolicy::default()).unwrap();
        let (stack, _) = rehashed.open(Supplied::default());
        assert_eq!(stack.save(GENERATION, self.now).unwrap(), image, "save, restore, save is the identity");
        Self { stack, ..*self }
    }
}

const GENERATION: GenerationId = GenerationId([7; 16]);

/// Plays a trace on both IP versions and compares what came of each line with the indented lines below it.
fn check(rules: &str, trace: &str) {
    for version in [Version::V4, Version::V6] {
        let mut bench = Bench::new(version, rules);
        let lines: Vec<&str> = trace.lines().map(str::trim_end).filter(|line| !line.trim().is_empty()).collect();
        let indent = lines.iter().map(|line| line.len() - line.trim_start().len()).min().unwrap_or(0);
        let mut happened = String::new();
        for line in lines.iter().map(|line| &line[indent..]).filter(|line| !line.starts_with(' ')) {
            happened.push_str(&format!("{line}\n"));
            bench.play(line);
            for event in bench.outcome() {
                happened.push_str(&format!("  {event}\n"));
            }
        }
        let expected: String = lines.iter().map(|line| format!("{}\n", &line[indent..])).collect();
        let name = if matches!(version, Version::V4) { "IPv4" } else { "IPv6" };
        assert_eq!(happened, expected, "on {name}, happened on the left");
    }
}

#[test]
fn a_question_for_an_address_of_this_host_is_answered_and_the_asker_is_known_from_then_on() {
    check(
        "",
        "
        in: client asks gateway
          in: client < answers for gateway
        in: udp client:1000 > gateway:7 len=3
          in: client < udp gateway:7 > client:1000 len=3 ttl=64
        ",
    );
}

#[test]
fn packets_wait_for_the_next_hop_and_leave_in_order_once_it_answers() {
    check(
        "",
        "
        in: udp client:1000 > server:53 len=1
          out: all < asks neighbour
        in: udp client:1000 > server:53 len=2
        in: udp client:1000 > server2:53 len=3
        out: neighbour answers public
          out: neighbour < udp client:1000 > server:53 len=1 ttl=63
          out: neighbour < udp client:1000 > server:53 len=2 ttl=63
          out: neighbour < udp client:1000 > server2:53 len=3 ttl=63
        out: udp server:53 > client:1000 len=4
          in: all < asks client
        in: client answers gateway
          in: client < udp server:53 > client:1000 len=4 ttl=63
        in: udp client:1000 > server:53 len=5
          out: neighbour < udp client:1000 > server:53 len=5 ttl=63
        ",
    );
}

#[test]
fn a_next_hop_that_does_not_answer_is_asked_three_times_and_the_senders_are_told() {
    for version in [Version::V4, Version::V6] {
        let mut bench = Bench::new(version, "");
        for line in
            ["in: client asks gateway", "in: udp client:1000 > other:53 len=1", "in: udp client:1000 > other:53 len=2"]
        {
            bench.play(line);
        }
        assert_eq!(bench.outcome(), ["in: client < answers for gateway", "in: all < asks other"]);
        for _ in 0..2 {
            bench.play("+1s");
            assert_eq!(bench.outcome(), ["in: all < asks other"]);
        }
        bench.play("+1s");
        let told = bench.outcome();
        assert_eq!(told[..2], ["drop neighbour_unreachable", "drop neighbour_unreachable"]);
        let kind = if matches!(version, Version::V4) { "type=3 code=1" } else { "type=1 code=3" };
        for line in &told[2..] {
            assert!(
                line.starts_with(&format!("in: client < icmp gateway > client {kind} about (client:1000")),
                "{line}"
            );
        }
        assert_eq!((told.len(), bench.neighbours().len()), (4, 1));
        bench.play("in: udp client:1000 > other:53 len=3");
        assert_eq!(bench.outcome(), ["in: all < asks other"], "the next packet asks anew");
    }
}

#[test]
fn an_error_about_a_translated_packet_finds_the_inside_sender() {
    let masquerade = r#"[{"chain":"srcnat","match":{"oif":"out"},"action":"masquerade"}]"#;
    for version in [Version::V4, Version::V6] {
        for restore in [false, true] {
            let mut bench = Bench::new(version, masquerade);
            bench.play("in: client asks gateway");
            bench.play("in: udp client:1000 > server:53 len=1");
            bench.outcome();
            if restore {
                bench = bench.restored(2);
                bench.play("+0s");
                assert_eq!(bench.outcome(), ["out: all < asks neighbour"]);
            }
            for line in ["+1s", "+1s", "+1s"] {
                bench.play(line);
            }
            let told = bench.outcome().pop().unwrap();
            assert!(told.starts_with("in: client < icmp public > client type="), "{told}");
            assert!(told.ends_with("about (client:1000 > server:53) ttl=64"), "{told}");
        }
    }
}

#[test]
fn a_neighbour_goes_through_the_states_of_the_rfc() {
    for version in [Version::V4, Version::V6] {
        let mut bench = Bench::new(version, "");
        assert_eq!(bench.states(&["in: client asks other"]), [""; 0], "others' questions make no neighbours");
        assert_eq!(bench.states(&["in: udp server:1 > client:1 len=1"]), ["client ? INCOMPLETE"]);
        assert_eq!(bench.states(&["in: client answers gateway"]), ["client client REACHABLE"]);
        assert_eq!(bench.states(&["+14s"]), ["client client REACHABLE"]);
        assert_eq!(bench.states(&["+31s"]), ["client client STALE"]);
        assert_eq!(bench.states(&["+1000s"]), ["client client STALE"]);
        assert_eq!(bench.states(&["in: udp server:1 > client:1 len=1"]), ["client client DELAY"]);
        bench.play("+5s");
        assert_eq!(bench.outcome(), ["in: client < asks client"]);
        assert_eq!(bench.neighbours(), ["client client PROBE"]);
        bench.play("in: udp server:1 > client:1 len=2");
        assert_eq!(bench.outcome(), ["in: client < udp server:1 > client:1 len=2 ttl=63"], "packets go on meanwhile");
        assert_eq!(bench.states(&["+1s", "in: client answers gateway"]), ["client client REACHABLE"]);
        assert_eq!(bench.states(&["+46s", "in: udp server:1 > client:1 len=1"]), ["client client DELAY"]);
        bench.states(&["+5s"]);
        bench.play("+1s");
        bench.play("+1s");
        assert_eq!(bench.outcome(), ["in: client < asks client"; 2]);
        assert_eq!(bench.states(&["+1s"]), [""; 0]);
        assert_eq!(bench.stack.next_deadline(bench.now), bench.stack.conntrack().next_expiry());
    }
}

#[test]
fn announcements_change_neighbours_that_are_known_and_make_none() {
    for version in [Version::V4, Version::V6] {
        let mut bench = Bench::new(version, "");
        assert_eq!(bench.states(&["in: client announces"]), [""; 0]);
        // In IPv6 the answer is a packet like any other, so that the asker is checked.
        let asked = if matches!(version, Version::V4) { "client client STALE" } else { "client client DELAY" };
        assert_eq!(bench.states(&["in: client asks gateway"]), [asked]);
        assert_eq!(bench.states(&["in: impostor as client announces"]), ["client impostor STALE"]);
    }
}

#[test]
fn of_two_that_answer_to_arp_the_first_wins() {
    let mut bench = Bench::new(Version::V4, "");
    bench.states(&["in: udp server:1 > client:1 len=1", "in: client answers gateway"]);
    assert_eq!(bench.states(&["in: impostor as client answers gateway"]), ["client client REACHABLE"]);
    assert_eq!(bench.states(&["+1s", "in: impostor as client answers gateway"]), ["client impostor REACHABLE"]);
}

#[test]
fn an_advertisement_that_is_not_to_override_puts_the_known_address_in_doubt() {
    let mut bench = Bench::new(Version::V6, "");
    let doubt = |bench: &mut Bench| {
        let (IpAddr::V6(client), IpAddr::V6(gateway)) = (Version::V6.addr("client"), Version::V6.addr("gateway"))
        else {
            unreachable!("both are IPv6");
        };
        let advertisement = ndp::advertisement(mac("impostor"), gateway, client, true, false).unwrap();
        let frame = framed(mac("gateway"), mac("impostor"), Carries::Ipv6, &advertisement);
        bench.stack.ingress(bench.link("in"), frame, bench.now);
        bench.neighbours()
    };
    bench.states(&["in: udp server:1 > client:1 len=1", "in: client answers gateway"]);
    assert_eq!(doubt(&mut bench), ["client client STALE"]);
    bench.states(&["in: udp server:1 > client:1 len=1"]);
    assert_eq!(doubt(&mut bench), ["client client DELAY"]);
}

#[test]
fn who_looks_for_duplicates_of_an_own_address_is_told_and_a_claim_to_it_changes_nothing() {
    let mut bench = Bench::new(Version::V4, "");
    let gateway = "10.0.0.1".parse().unwrap();
    let probe = Arp::request(mac("impostor"), "0.0.0.0".parse().unwrap(), gateway);
    let frame = framed(MacAddr::BROADCAST, mac("impostor"), Carries::Arp, &probe.bytes());
    bench.stack.ingress(bench.link("in"), frame, bench.now);
    assert_eq!(bench.outcome(), ["in: impostor < answers for gateway"]);
    let mut bench6 = Bench::new(Version::V6, "");
    let IpAddr::V6(gateway) = Version::V6.addr("gateway") else { unreachable!("it is IPv6") };
    let group = ndp::solicited_node(gateway);
    let mut search = ndp::solicitation(mac("impostor"), "fe80::1".parse().unwrap(), group, gateway).unwrap();
    search[8..24].fill(0);
    search.truncate(64);
    search[5] = 24;
    smoltcp::wire::Icmpv6Packet::new_unchecked(&mut search[40..]).fill_checksum(&"::".parse().unwrap(), &group);
    let frame = framed(group_mac(group.into()).unwrap(), mac("impostor"), Carries::Ipv6, &search);
    bench6.stack.ingress(bench6.link("in"), frame, bench6.now);
    assert_eq!(bench6.outcome(), ["in: all < answers for gateway"]);
    for mut bench in [bench, bench6] {
        assert_eq!(
            bench.states(&["in: impostor as gateway announces", "in: impostor as gateway asks gateway"]),
            [""; 0]
        );
    }
}

#[test]
fn rules_see_neighbour_discovery_untracked_and_do_not_see_arp() {
    let rules = r#"{"policy":{"input":"drop","forward":"accept"},"rules":[
        {"chain":"input","action":{"log":"in"}}, {"chain":"output","action":{"log":"out"}},
        {"chain":"input","match":{"ctstate":["untracked"],"proto":"icmp6"},"action":"accept"}]}"#;
    for (version, expected) in [(Version::V4, vec![]), (Version::V6, vec![("in", "untracked"), ("out", "untracked")])] {
        let mut bench = Bench::new(version, rules);
        bench.play("in: client asks gateway");
        let mut seen = Vec::new();
        while let Some(event) = bench.stack.next_event() {
            if let StackEvent::Log(LogEvent { prefix, state, .. }) = event {
                seen.push((prefix, state.unwrap().to_string()));
            }
        }
        let expected: Vec<_> = expected.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        assert_eq!(seen, expected);
        assert_eq!(bench.outcome(), ["in: client < answers for gateway"]);
        assert!(bench.stack.flows(bench.now).is_empty());
    }
    let mut bench = Bench::new(Version::V6, r#"{"policy":{"input":"drop"},"rules":[]}"#);
    bench.play("in: client asks gateway");
    assert_eq!(bench.outcome(), ["drop policy"], "a rule set that lets no neighbour discovery in has no neighbours");
}

#[test]
fn a_link_local_address_follows_from_the_hardware_address_and_is_answered_on_its_link() {
    let mut bench = Bench::new(Version::V6, "");
    for (link, station, own) in [("in", "client", "fe80::ff:fe00:1"), ("out", "neighbour", "fe80::ff:fe00:2")] {
        let peer = mac(station).link_local().to_string();
        bench.stack.ingress(bench.link(link), bench.question(mac(station), &peer, own), bench.now);
        assert_eq!(bench.outcome(), [format!("{link}: {station} < answers for {own}")]);
        let ping = Version::V6.datagram(&format!("ping {peer} > {own} id=1"));
        let to = if link == "in" { mac("gateway") } else { mac("public") };
        bench.stack.ingress(bench.link(link), framed(to, mac(station), Carries::Ipv6, &ping), bench.now);
        let pong = bench.outcome().pop().unwrap();
        assert!(pong.starts_with(&format!("{link}: {station} < icmp {own} > {peer} type=129")), "{pong}");
        let wrong =
            bench.question(mac(station), &peer, if link == "in" { "fe80::ff:fe00:2" } else { "fe80::ff:fe00:1" });
        bench.stack.ingress(bench.link(link), wrong, bench.now);
        let told = bench.outcome();
        assert!(
            !told.iter().any(|line| line.contains("answers")),
            "{told:?}: in IPv6 a link answers for its own addresses"
        );
    }
}

#[test]
fn groups_and_broadcasts_need_no_neighbour() {
    let mut bench = Bench::new(Version::V4, "");
    for (dst, to) in [("224.0.0.5", "01:00:5e:00:00:05"), ("10.0.0.255", "ff:ff:ff:ff:ff:ff")] {
        let datagram = Version::V4.datagram(&format!("udp gateway:9 > {dst}:9 len=1"));
        bench.stack.local_output(datagram, bench.now).unwrap();
        let frame = bench.stack.egress().unwrap().datagram;
        assert_eq!(MacAddr::new(frame[..6].try_into().unwrap()).to_string(), to);
    }
}

#[test]
fn a_packet_that_came_in_a_frame_to_a_group_is_not_routed_on_and_nobody_is_told() {
    for version in [Version::V4, Version::V6] {
        let mut bench = Bench::new(version, "");
        for (words, drop) in [
            ("udp client:1 > server:53 len=1", "not_forwardable"),
            ("udp client:1 > gateway:9 len=1", "port_unreachable"),
            ("tcp client:1 > gateway:7 S", "no_listener"),
        ] {
            let frame = framed(MacAddr::BROADCAST, mac("client"), bench.carries(), &version.datagram(words));
            bench.stack.ingress(bench.link("in"), frame, bench.now);
            assert_eq!(bench.outcome(), [format!("drop {drop}")], "{words}");
        }
    }
}

#[test]
fn a_datagram_that_is_cut_waits_in_its_pieces() {
    let mut bench = Bench::new(Version::V4, "");
    bench.stack.local_output(Version::V4.datagram("udp gateway:9 > client:9 len=3000"), bench.now).unwrap();
    assert_eq!(bench.outcome(), ["in: all < asks client"]);
    bench.play("in: client answers gateway");
    let lengths: Vec<usize> = core::iter::from_fn(|| bench.stack.egress()).map(|sent| sent.datagram.len()).collect();
    assert_eq!(lengths, [1514, 1514, 82]);
}
