//! Many heirs of one image: what goes on in each, and that nothing of the rest is heard outside.

use std::collections::BTreeSet;

use smoltcp::wire::TcpPacket;

use super::*;
use crate::{
    ClonePolicy, DropCause, FlowOutcome, ForkRules, ListenOptions, ResetCause, StreamError, StreamOptions,
    StreamOutcome,
};

const ROUTER: &str = r#"[
    {"chain":"dstnat","match":{"iif":"out","proto":"tcp","dport":8080},"action":{"dnat":"GUEST"}},
    {"chain":"srcnat","match":{"oif":"out","proto":"tcp"},"action":"masquerade"}]"#;

fn router(version: Version) -> Stack {
    let guest = if matches!(version, Version::V4) { "10.0.0.2:80" } else { "[fd00:10::2]:80" };
    stack(&ROUTER.replace("GUEST", guest))
}

/// A connection each way through the router, one that is being opened, and datagrams.
fn busy_router(version: Version) -> Stack {
    let mut stack = router(version);
    for (link, words) in [
        ("in", "tcp client:1000 > server:80 S seq=5"),
        ("out", "tcp server:80 > public:1000 SA seq=800 ack=6"),
        ("in", "tcp client:1000 > server:80 A seq=6 ack=801"),
        ("out", "tcp server:80 > public:1000 AP seq=801 ack=6 len=100"),
        ("in", "tcp client:1000 > server:80 AP seq=6 ack=901 len=10"),
        ("out", "tcp server:80 > public:1000 AP seq=901 ack=16 len=50"),
        ("out", "tcp server2:3000 > public:8080 S seq=50"),
        ("in", "tcp client:80 > server2:3000 SA seq=70 ack=51"),
        ("out", "tcp server2:3000 > public:8080 A seq=51 ack=71"),
        ("in", "tcp client:1001 > server:80 S seq=40"),
        ("in", "udp client:2000 > server:53"),
        ("in", "ping client > server id=3"),
    ] {
        play(&mut stack, version, link, words);
    }
    while stack.egress().is_some() {}
    while stack.next_event().is_some() {}
    stack
}

fn fork(rules: &str) -> RestorePolicy {
    let clone = ClonePolicy::Fork(ForkRules::from_json(rules).unwrap());
    RestorePolicy { clone, inside: vec!["in".into()], ..RestorePolicy::default() }
}

fn forked(source: &Stack, rules: &str, seed: u64) -> (Stack, RestoreReport) {
    let image = source.save(GENERATION, Instant::ZERO).unwrap();
    let mut entropy = Entropy::from_test_seed(seed);
    let now = Instant::from_secs(9);
    let validated = Decoded::open(&image, &Limits::default()).unwrap().validate(&mut entropy, now).unwrap();
    validated.rehash(entropy, fork(rules)).unwrap().open(Supplied::default())
}

/// What has left, with TCP's numbers, and what was dropped.
fn heard(stack: &mut Stack, version: Version) -> Vec<String> {
    let mut numbers = Vec::new();
    let mut held = std::collections::VecDeque::new();
    while let Some(out) = stack.egress() {
        let parsed = hibernet_conntrack::parse(&out.datagram).unwrap();
        let segment = TcpPacket::new_checked(parsed.l4(&out.datagram)).ok().filter(|_| parsed.proto == 6);
        numbers.push(segment.map_or(String::new(), |segment| {
            format!(" seq={} ack={}", segment.seq_number().0.cast_unsigned(), segment.ack_number().0.cast_unsigned())
        }));
        held.push_back(out);
    }
    stack.egress = held;
    let mut numbers = numbers.into_iter();
    let lines = outcome(stack, version);
    let numbered = |line: String| if line.starts_with("drop") { line } else { line + &numbers.next().unwrap() };
    lines.into_iter().map(numbered).collect()
}

fn said(stack: &mut Stack, version: Version, link: &str, words: &str) -> Vec<String> {
    let link = stack.link(link).unwrap();
    stack.ingress(link, version.datagram(words), Instant::from_secs(9));
    heard(stack, version)
}

#[test]
fn a_fork_that_resets_tells_the_guest_its_own_numbers_and_the_outside_nothing() {
    for version in [Version::V4, Version::V6] {
        let (mut heir, report) = forked(&busy_router(version), "[]", 2);
        assert_eq!((report.kept, report.reset, report.dropped), (0, 5, 0));
        assert!(report.flows.iter().all(|flow| flow.outcome == FlowOutcome::Reset(ResetCause::Fork { rule: None })));
        assert_eq!(
            heard(&mut heir, version),
            [
                // What the server has sent up to, and what the guest has acknowledged.
                "in: tcp server:80 > client:1000 AR ttl=64 seq=951 ack=16",
                "in: tcp server:80 > client:1000 AR ttl=64 seq=901 ack=16",
                // A connection that came in by destination NAT, as the guest sees it.
                "in: tcp server2:3000 > client:80 AR ttl=64 seq=51 ack=71",
                // A refused SYN.
                "in: tcp server:80 > client:1001 AR ttl=64 seq=0 ack=41",
            ]
        );
    }
}

#[test]
fn late_packets_of_a_reset_flow_are_answered_inside_alone() {
    for version in [Version::V4, Version::V6] {
        let (mut heir, _) = forked(&busy_router(version), "[]", 2);
        while heir.egress().is_some() {}
        let (unreachable, code) = if matches!(version, Version::V4) { (3, 3) } else { (1, 4) };
        for (link, words, answer) in [
            (
                "in",
                "tcp client:1000 > server:80 A seq=16 ack=930",
                "in: tcp server:80 > client:1000 R ttl=64 seq=930 ack=0",
            ),
            (
                "in",
                "tcp client:1000 > server:80 FA seq=16 ack=930",
                "in: tcp server:80 > client:1000 R ttl=64 seq=930 ack=0",
            ),
            (
                "in",
                "tcp client:80 > server2:3000 AP seq=71 ack=51 len=9",
                "in: tcp server2:3000 > client:80 R ttl=64 seq=51 ack=0",
            ),
            ("in", "tcp client:1001 > server:80 S seq=40", "in: tcp server:80 > client:1001 AR ttl=64 seq=0 ack=41"),
            ("in", "tcp client:1000 > server:80 R seq=16", ""),
            ("in", "udp client:2000 > server:53", "icmp"),
            ("in", "ping client > server id=3", "icmp"),
            ("out", "tcp server:80 > public:1000 AP seq=951 ack=16 len=5", ""),
            ("out", "tcp server2:3000 > public:8080 A seq=51 ack=71", ""),
            ("out", "tcp server:80 > public:1001 SA seq=1 ack=41", ""),
            ("out", "udp server:53 > client:2000", ""),
        ] {
            let told = said(&mut heir, version, link, words);
            let reason = if link == "in" { "drop fork_reset" } else { "drop fork_severed" };
            let about = words.split_whitespace().nth(3).unwrap().split(':').next().unwrap();
            let gateway = format!("in: icmp gateway > client type={unreachable} code={code} about (");
            match answer {
                "" => assert_eq!(told, [reason], "{words}"),
                "icmp" => {
                    assert_eq!((told.len(), told[0].as_str()), (2, reason), "{words}: {told:?}");
                    assert!(told[1].starts_with(&gateway) && told[1].contains(about), "{told:?}");
                }
                answer => assert_eq!(told, [reason, answer], "{words}"),
            }
        }
        assert!(heir.flows(Instant::from_secs(9)).iter().all(|flow| flow.to_string().contains("[SEVERED]")));
    }
}

#[test]
fn an_error_of_the_guest_about_a_severed_flow_stays_inside() {
    let (mut heir, _) = forked(&busy_router(Version::V4), "[]", 2);
    while heir.egress().is_some() {}
    let late = Version::V4.datagram("tcp server2:3000 > client:80 A seq=51 ack=71");
    let mut error = vec![0x45, 0, 0, 56, 0, 0, 0, 0, 64, 1, 0, 0, 10, 0, 0, 2, 198, 51, 100, 11];
    error.extend([3, 3, 0, 0, 0, 0, 0, 0]);
    error.extend(&late[..28]);
    smoltcp::wire::Icmpv4Packet::new_unchecked(&mut error[20..]).fill_checksum();
    crate::test_packets::fill_header_checksum(&mut error);
    let link = heir.link("in").unwrap();
    heir.ingress(link, error, Instant::from_secs(9));
    assert_eq!(heard(&mut heir, Version::V4), ["drop fork_severed"]);
}

#[test]
fn a_new_connection_between_the_ends_of_a_reset_one_is_none_of_the_inherited() {
    for version in [Version::V4, Version::V6] {
        let (mut heir, _) = forked(&busy_router(version), "[]", 2);
        while heir.egress().is_some() {}
        let told = said(&mut heir, version, "in", "tcp client:1000 > server:80 S seq=77000");
        assert_eq!(told.len(), 1);
        assert!(told[0].starts_with("out: tcp public:1000 > server:80 S"), "{told:?}");
        assert_eq!(said(&mut heir, version, "out", "tcp server:80 > public:1000 SA seq=5 ack=77001").len(), 1);
        let told = said(&mut heir, version, "out", "tcp server2:3000 > public:8080 S seq=9000");
        assert!(told[0].starts_with("in: tcp server2:3000 > client:80 S"), "{told:?}");
    }
}

#[test]
fn rules_decide_in_their_order_and_the_report_names_them() {
    let rules = r#"{"rules": [
        {"match": {"direction": "inbound"}, "action": "keep"},
        {"match": {"proto": "tcp", "dport": 80, "state": ["established"]}, "action": "drop"},
        {"match": {"proto": "udp"}, "action": "reset"}], "default": "drop"}"#;
    for version in [Version::V4, Version::V6] {
        let (mut heir, report) = forked(&busy_router(version), rules, 2);
        assert_eq!((report.kept, report.reset, report.dropped), (1, 1, 3));
        let outcomes: Vec<_> = report.flows.iter().map(|flow| flow.outcome).collect();
        assert_eq!(
            outcomes,
            [
                FlowOutcome::Dropped(DropCause::Fork { rule: Some(1) }),
                FlowOutcome::Kept,
                FlowOutcome::Dropped(DropCause::Fork { rule: None }),
                FlowOutcome::Reset(ResetCause::Fork { rule: Some(2) }),
                FlowOutcome::Dropped(DropCause::Fork { rule: None }),
            ]
        );
        assert_eq!(heard(&mut heir, version), [""; 0], "nothing of TCP was reset");
        let late = said(&mut heir, version, "in", "tcp client:1000 > server:80 A seq=16 ack=951");
        assert_eq!(late, ["drop fork_severed"]);
        let again = said(&mut heir, version, "in", "tcp client:1000 > server:80 S seq=77000");
        assert_eq!(again, ["drop fork_severed"], "who is told nothing may not begin anew");
        let kept = said(&mut heir, version, "in", "tcp client:80 > server2:3000 A seq=71 ack=51");
        assert!(kept[0].starts_with("out: tcp public:8080 > server2:3000 A"), "{kept:?}");
    }
}

#[test]
fn flows_that_stay_inside_are_kept_unless_a_rule_says_otherwise() {
    let mut source = router(Version::V4);
    play(&mut source, Version::V4, "in", "udp client:1 > gateway:7 len=3");
    play(&mut source, Version::V4, "in", "udp client:2 > server:7 len=3");
    let outcomes = |rules| -> Vec<_> { forked(&source, rules, 2).1.flows.iter().map(|flow| flow.outcome).collect() };
    let reset = |rule| FlowOutcome::Reset(ResetCause::Fork { rule });
    assert_eq!(outcomes("[]"), [FlowOutcome::Kept, reset(None)]);
    let rules = r#"[{"match": {"direction": "internal"}, "action": "reset"}, {"action": "keep"}]"#;
    assert_eq!(outcomes(rules), [reset(Some(0)), FlowOutcome::Kept]);
    let rules = r#"[{"match": {"oif": "lo"}, "action": "drop"}, {"match": {"oif": "out"}, "action": "keep"}]"#;
    assert_eq!(outcomes(rules), [FlowOutcome::Dropped(DropCause::Fork { rule: Some(0) }), FlowOutcome::Kept]);
}

/// A stack with a stream of its own to the outside, one from the inside, and one of each kept from tracking if asked.
fn with_streams(version: Version, tracked: bool) -> (Stack, [crate::TcpStream; 2]) {
    let rules = match tracked {
        true => "[]",
        false => r#"[{"chain":"raw_prerouting","action":"notrack"},{"chain":"raw_output","action":"notrack"}]"#,
    };
    let mut stack = stack(rules);
    let any = "::".parse().unwrap();
    let listener = stack.tcp_listen(any, 443, ListenOptions::default()).unwrap();
    let remote = (version.addr("server"), 80).into();
    let outward = stack.tcp_connect(None, remote, StreamOptions::default(), Instant::ZERO).unwrap();
    stack.poll(Instant::ZERO);
    let number = |bytes: &[u8]| {
        let parsed = hibernet_conntrack::parse(bytes).unwrap();
        TcpPacket::new_checked(parsed.l4(bytes)).unwrap().seq_number().0.cast_unsigned()
    };
    let iss = number(&stack.egress().unwrap().datagram);
    let port = stack.tcp_local_addr(outward).unwrap().port();
    let ack = iss.wrapping_add(1);
    play(&mut stack, version, "out", &format!("tcp server:80 > public:{port} SA seq=500 ack={ack}"));
    while stack.egress().is_some() {}
    play(&mut stack, version, "in", "tcp client:4000 > gateway:443 S seq=100");
    let ack = number(&stack.egress().unwrap().datagram).wrapping_add(1);
    play(&mut stack, version, "in", &format!("tcp client:4000 > gateway:443 A seq=101 ack={ack}"));
    play(&mut stack, version, "in", &format!("tcp client:4000 > gateway:443 AP seq=101 ack={ack} len=5"));
    while stack.egress().is_some() {}
    while stack.next_event().is_some() {}
    let inward = stack.tcp_accept(listener).unwrap();
    (stack, [outward, inward])
}

#[test]
fn a_stream_of_the_host_ends_for_its_owner_and_in_silence_for_its_peer_outside() {
    for (version, tracked) in [(Version::V4, true), (Version::V6, true), (Version::V4, false), (Version::V6, false)] {
        let (source, [outward, inward]) = with_streams(version, tracked);
        let (mut heir, report) = forked(&source, "[]", 2);
        assert_eq!((report.streams_kept, report.streams_reset, report.streams_dropped), (1, 1, 0));
        assert_eq!(report.streams[0].outcome, StreamOutcome::ForkReset { rule: None });
        assert_eq!(heard(&mut heir, version), [""; 0]);
        let now = Instant::from_secs(9);
        assert_eq!(heir.tcp_read(outward, &mut [0; 8], now), Err(StreamError::Reset));
        assert_eq!(heir.tcp_read(inward, &mut [0; 8], now), Ok(5));
        let port = report.streams[0].local.port();
        for words in ["A seq=501 ack=1", "AP seq=501 ack=1 len=7", "FA seq=501 ack=1", "SA seq=500 ack=1", "R seq=501"]
        {
            let late = said(&mut heir, version, "out", &format!("tcp server:80 > public:{port} {words}"));
            assert_eq!(late, ["drop fork_severed"], "tracked: {tracked}");
        }
        heir.poll(Instant::from_secs(10));
        assert_eq!(heard(&mut heir, version), [""; 0]);
    }
}

#[test]
fn a_peer_inside_of_a_stream_that_a_rule_resets_is_told_at_once() {
    for (version, tracked) in [(Version::V4, true), (Version::V6, true), (Version::V4, false), (Version::V6, false)] {
        let (source, [outward, inward]) = with_streams(version, tracked);
        let rules = r#"[{"match": {"dport": 443}, "action": "reset"}, {"action": "drop"}]"#;
        let (mut heir, report) = forked(&source, rules, 2);
        assert_eq!((report.streams_kept, report.streams_reset, report.streams_dropped), (0, 1, 1));
        let told = heard(&mut heir, version);
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].starts_with("in: tcp gateway:443 > client:4000 AR ttl=64 seq="), "{told:?}");
        assert!(told[0].ends_with(" ack=106"), "{told:?}");
        for stream in [outward, inward] {
            assert_eq!(heir.tcp_read(stream, &mut [0; 8], Instant::from_secs(9)), Err(StreamError::Reset));
        }
    }
}

#[test]
fn what_a_fork_has_severed_stays_so_through_a_save_and_a_move() {
    let (mut heir, _) = forked(&busy_router(Version::V4), "[]", 2);
    while heir.egress().is_some() {}
    let now = Instant::from_secs(9);
    let image = heir.save(GENERATION, now).unwrap();
    let (mut second, report) = restored(&image, 3, now);
    assert_eq!(report.kept, 5);
    assert!(second.save(GENERATION, now).unwrap() == image, "save, restore, save is the identity");
    let late = said(&mut second, Version::V4, "in", "tcp client:1000 > server:80 A seq=16 ack=951");
    assert_eq!(late, ["drop fork_reset", "in: tcp server:80 > client:1000 R ttl=64 seq=951 ack=0"]);
    let (mut third, _) = forked(&second, "[{\"action\": \"keep\"}]", 4);
    let late = said(&mut third, Version::V4, "out", "tcp server:80 > public:1000 A seq=951 ack=16");
    assert_eq!(late, ["drop fork_severed"], "a later fork brings nothing back");
}

#[test]
fn a_severed_flow_is_remembered_for_two_minutes_at_least_and_each_late_packet_puts_that_off() {
    let (mut heir, _) = forked(&busy_router(Version::V4), "[]", 2);
    while heir.egress().is_some() {}
    let udp = Version::V4.datagram("udp client:2000 > server:53");
    let link = heir.link("in").unwrap();
    for (at, reason) in [(128, "drop fork_reset"), (247, "drop fork_reset"), (368, "")] {
        heir.ingress(link, udp.clone(), Instant::from_secs(at));
        let told = heard(&mut heir, Version::V4);
        match reason {
            "" => assert!(told[0].starts_with("out: udp"), "{told:?}"),
            reason => assert_eq!(told[0], reason),
        }
    }
}

#[test]
fn a_hundred_clones_share_no_key_no_id_and_no_number() {
    let mut source = busy_router(Version::V4);
    source
        .add_rule(
            "srcnat",
            serde_json::from_str(r#"{"match":{"oif":"out","proto":"udp"},"action":"masquerade fully-random"}"#)
                .unwrap(),
        )
        .unwrap();
    let image = source.save(GENERATION, Instant::ZERO).unwrap();
    let mut seeds = Entropy::from_test_seed(99);
    let mut fingerprints: BTreeSet<u64> = source.key_fingerprints().into_iter().map(|(_, print)| print).collect();
    let mut all = fingerprints.len();
    let (mut instances, mut ports, mut numbers, mut own_ports) =
        (BTreeSet::new(), BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for _ in 0..100 {
        let mut entropy = seeds.fork();
        let now = Instant::ZERO;
        let validated = Decoded::open(&image, &Limits::default()).unwrap().validate(&mut entropy, now).unwrap();
        let (mut clone, report) = validated.rehash(entropy, fork("[]")).unwrap().open(Supplied::default());
        while clone.egress().is_some() {}
        let prints = clone.key_fingerprints();
        all += prints.len();
        fingerprints.extend(prints.into_iter().map(|(_, print)| print));
        instances.insert(report.instance.0);
        assert_eq!(clone.lineage(), [GENERATION], "the same parent");
        assert_eq!(clone.links(), source.links(), "the same addresses");
        play(&mut clone, Version::V4, "in", "udp client:9000 > server:123");
        let datagram = clone.egress().unwrap().datagram;
        ports.insert(u16::from_be_bytes([datagram[20], datagram[21]]));
        let remote = (Version::V4.addr("server"), 80).into();
        clone.tcp_connect(None, remote, StreamOptions::default(), now).unwrap();
        clone.poll(now);
        let syn = clone.egress().unwrap().datagram;
        own_ports.insert(u16::from_be_bytes([syn[20], syn[21]]));
        numbers.insert(u32::from_be_bytes(syn[24..28].try_into().unwrap()));
    }
    assert_eq!(fingerprints.len(), all, "no key twice");
    assert_eq!((instances.len(), numbers.len()), (100, 100));
    // Of 100 draws from tens of thousands of ports a few may meet; of one generator all would.
    assert!(ports.len() > 90 && own_ports.len() > 90, "{} and {}", ports.len(), own_ports.len());
}

#[test]
fn whatever_guest_and_peers_still_say_of_reset_flows_nothing_of_it_is_heard_outside() {
    for version in [Version::V4, Version::V6] {
        let (mut heir, _) = forked(&busy_router(version), "[]", 2);
        while heir.egress().is_some() {}
        let mut dice = Entropy::from_test_seed(5);
        let ends = [
            ("in", "client:1000 > server:80"),
            ("in", "client:1001 > server:80"),
            ("in", "client:80 > server2:3000"),
            ("out", "server:80 > public:1000"),
            ("out", "server:80 > public:1001"),
            ("out", "server2:3000 > public:8080"),
        ];
        let flags = ["A", "AP", "FA", "R", "RA", "SA", "F", "P", "SF", ""];
        for _ in 0..5000 {
            let [a, b, c, d, e, f, ..] = dice.public_id().0.map(usize::from);
            let (link, ends) = ends[a % ends.len()];
            let (seq, ack) = (d * 8 + e, e * 8 + f);
            let words = format!("tcp {ends} {} seq={seq} ack={ack} len={}", flags[b % flags.len()], c % 3);
            let at = heir.link(link).unwrap();
            heir.ingress(at, version.datagram(&words), Instant::from_secs(9));
            while let Some(out) = heir.egress() {
                assert_eq!(heir.link_name(out.link), Some("in"), "{words}");
            }
        }
    }
}

#[test]
fn a_fork_takes_over_no_half_of_a_datagram_from_outside() {
    let mut source = stack("");
    for link in ["in", "out"] {
        let (src, dst) = if link == "in" { ("client:1", "server:2") } else { ("server:2", "client:1") };
        let mut datagram = Version::V4.datagram(&format!("udp {src} > {dst} len=100"));
        datagram[6] = 0x20;
        datagram.truncate(20 + 64);
        datagram[2..4].copy_from_slice(&84_u16.to_be_bytes());
        crate::test_packets::fill_header_checksum(&mut datagram);
        let link = source.link(link).unwrap();
        source.ingress(link, datagram, Instant::ZERO);
    }
    let (heir, report) = forked(&source, "[]", 2);
    assert_eq!(report.fragments_dropped, 1);
    assert!(heir.next_deadline(Instant::from_secs(9)).is_some(), "the guest's own half waits for the rest");
}
