//! What the time between save and restore counts for, policy by policy.

use core::time::Duration;

use super::*;
use crate::{LinkConfig, MacAddr, Medium, StackConfig, StreamError, StreamOptions, TimePolicy};

const DAY: Duration = Duration::from_secs(86_400);

fn restored_after(image: &[u8], policy: RestorePolicy, now: Instant) -> (Stack, RestoreReport) {
    let mut entropy = Entropy::from_test_seed(2);
    let validated = Decoded::open(image, &Limits::default()).unwrap().validate(&mut entropy, now).unwrap();
    validated.rehash(entropy, policy).unwrap().open(Supplied::default())
}

/// A connection in each state, and datagram flows answered or not.
fn every_timeout(version: Version) -> Stack {
    let mut stack = stack(
        r#"[{"chain":"input","action":"accept"},{"chain":"srcnat","match":{"oif":"out"},"action":"masquerade"}]"#,
    );
    for (link, words) in [
        ("in", "tcp client:1 > server:80 S seq=5"),
        ("in", "tcp client:2 > server:80 S seq=5"),
        ("out", "tcp server:80 > public:2 SA seq=8 ack=6"),
        ("in", "tcp client:2 > server:80 A seq=6 ack=9"),
        ("in", "tcp client:3 > server:80 S seq=5"),
        ("out", "tcp server:80 > public:3 SA seq=8 ack=6"),
        ("in", "tcp client:3 > server:80 A seq=6 ack=9"),
        ("in", "tcp client:3 > server:80 FA seq=6 ack=9"),
        ("out", "tcp server:80 > public:3 FA seq=9 ack=7"),
        ("in", "tcp client:3 > server:80 A seq=7 ack=10"),
        ("in", "udp client:1 > server:53"),
        ("in", "ping client > server id=1"),
    ] {
        play(&mut stack, version, link, words);
    }
    for (at, link, words) in [
        (0, "in", "udp client:2 > server:53"),
        (1000, "out", "udp server:53 > public:2"),
        (3001, "in", "udp client:2 > server:53"),
    ] {
        let link = stack.link(link).unwrap();
        stack.ingress(link, version.datagram(words), Instant::from_nanos(at * 1_000_000));
    }
    while stack.egress().is_some() {}
    stack
}

/// What is left of each flow, in seconds, by name.
fn left(stack: &Stack, now: Instant) -> Vec<(String, u64)> {
    let name = |flow: &hibernet_conntrack::FlowRecord| {
        let line = flow.to_string();
        let words: Vec<&str> = line.split_whitespace().collect();
        let state = if words[3].contains('=') { "" } else { words[3] };
        let answered = if line.contains("[ASSURED]") && state.is_empty() { "stream" } else { "" };
        format!("{} {state}{answered}", words[0]).trim().replace("icmpv6", "icmp")
    };
    stack.flows(now).iter().map(|flow| (name(flow), flow.remaining.as_secs())).collect()
}

#[test]
fn a_day_under_each_policy_leaves_of_every_timeout_what_is_documented() {
    let now = Instant::from_secs(4);
    let cap = |seconds| TimePolicy::Cap(Duration::from_secs(seconds));
    for version in [Version::V4, Version::V6] {
        let image = {
            let mut stack = every_timeout(version);
            stack.poll(now);
            stack.save(GENERATION, now).unwrap()
        };
        let expect = |time, expected: &[(&str, u64)]| {
            for wakes in [Instant::ZERO, Instant::from_secs(1 << 20)] {
                let policy = RestorePolicy { time, elapsed: DAY, ..RestorePolicy::default() };
                let (heir, report) = restored_after(&image, policy, wakes);
                let found = left(&heir, wakes);
                let found: Vec<_> = found.iter().map(|(name, left)| (name.as_str(), *left)).collect();
                assert_eq!(found, expected, "{time:?}");
                assert_eq!(report.kept as usize, expected.len());
                assert_eq!((report.dropped as usize, report.reset), (6 - expected.len(), 0));
                assert_eq!((report.elapsed, report.counted), (DAY, time.counted(DAY)));
            }
        };
        // Four seconds have passed before the save, but for the flow that was answered.
        let all = [
            ("tcp SYN_SENT", 116),
            ("tcp ESTABLISHED", 431_996),
            ("tcp TIME_WAIT", 116),
            ("udp", 26),
            ("icmp", 26),
            ("udp stream", 119),
        ];
        expect(TimePolicy::Freeze, &all);
        expect(TimePolicy::Elapse, &[("tcp ESTABLISHED", 345_596)]);
        expect(cap(3600), &[("tcp ESTABLISHED", 428_396)]);
        expect(
            cap(30),
            &[("tcp SYN_SENT", 86), ("tcp ESTABLISHED", 431_966), ("tcp TIME_WAIT", 86), ("udp stream", 89)],
        );
        expect(cap(0), &all);
    }
}

#[test]
fn under_elapse_the_heir_saves_what_the_source_would_have_saved_then() {
    for version in [Version::V4, Version::V6] {
        for gone in [1, 7_812_499, 7_812_500, 999_999_999, 26_000_000_000, 116_000_000_000, 86_400_000_000_001] {
            let gone = Duration::from_nanos(gone);
            let mut source = every_timeout(version);
            let saved_at = Instant::from_secs(4);
            source.poll(saved_at);
            let image = source.save(GENERATION, saved_at).unwrap();
            let woken = Instant::from_secs(10);
            let policy = RestorePolicy { time: TimePolicy::Elapse, elapsed: gone, ..RestorePolicy::default() };
            let (mut heir, _) = restored_after(&image, policy, woken);
            let later = saved_at.saturating_add(gone);
            source.poll(later);
            assert!(heir.save(GENERATION, woken).unwrap() == source.save(GENERATION, later).unwrap(), "{gone:?}");
            // They stay in step.
            for wait in [1, 40_000_000, 95_000_000_000] {
                let wait = Duration::from_nanos(wait);
                let (here, there) = (woken.saturating_add(wait), later.saturating_add(wait));
                heir.poll(here);
                source.poll(there);
                assert!(heir.save(GENERATION, here).unwrap() == source.save(GENERATION, there).unwrap(), "{gone:?}");
            }
        }
    }
}

#[test]
fn more_time_than_any_timeout_forgets_every_flow_and_nothing_wraps() {
    for days in [195, 388, 389, 1_000_000] {
        let mut source = every_timeout(Version::V4);
        source.poll(Instant::from_secs(4));
        let image = source.save(GENERATION, Instant::from_secs(4)).unwrap();
        let elapsed = DAY.saturating_mul(days);
        let policy = RestorePolicy { time: TimePolicy::Elapse, elapsed, ..RestorePolicy::default() };
        let (heir, report) = restored_after(&image, policy, Instant::ZERO);
        assert_eq!(heir.flows(Instant::ZERO), []);
        assert_eq!((report.kept, report.dropped), (0, 6));
    }
}

#[test]
fn fragments_age_where_they_came_from_outside_and_stand_still_where_the_guest_sent_them() {
    let fragment = |link: &str, stack: &mut Stack| {
        let (src, dst) = if link == "in" { ("client:1", "server:2") } else { ("server:2", "client:1") };
        let mut datagram = Version::V4.datagram(&format!("udp {src} > {dst} len=100"));
        datagram[6] = 0x20;
        datagram.truncate(20 + 64);
        datagram[2..4].copy_from_slice(&84_u16.to_be_bytes());
        crate::test_packets::fill_header_checksum(&mut datagram);
        let link = stack.link(link).unwrap();
        stack.ingress(link, datagram, Instant::ZERO);
    };
    let mut source = stack("");
    fragment("in", &mut source);
    fragment("out", &mut source);
    let image = source.save(GENERATION, Instant::ZERO).unwrap();
    let now = Instant::from_secs(100);
    for (time, inside, timed_out) in [
        (TimePolicy::Freeze, vec![], 0),
        (TimePolicy::Elapse, vec![], 2),
        (TimePolicy::Elapse, vec!["in".to_owned()], 1),
    ] {
        let policy = RestorePolicy { time, inside, elapsed: DAY, ..RestorePolicy::default() };
        let (mut heir, _) = restored_after(&image, policy, now);
        heir.poll(now);
        let drops: u64 = heir.stats().drops().map(|(_, count)| count).sum();
        assert_eq!(drops, timed_out, "{time:?}");
    }
}

#[test]
fn neighbours_grow_stale_as_the_policy_counts() {
    let mac = MacAddr::locally_administered([1, 2, 3, 4, 5, 6]);
    let link = |name: &str, addr: &str| LinkConfig {
        name: name.into(),
        mtu: 1500,
        addrs: vec![addr.parse().unwrap()],
        medium: Medium::Ethernet { mac },
    };
    let config = StackConfig {
        links: vec![link("in", "10.0.0.1/24"), link("out", "203.0.113.1/24")],
        rules: Ruleset::open(),
        ..StackConfig::default()
    };
    let mut source = Stack::new(config, Entropy::from_test_seed(1), Instant::ZERO).unwrap();
    for (link, name) in [("in", "10.0.0.2"), ("out", "203.0.113.9")] {
        let addr: core::net::Ipv4Addr = name.parse().unwrap();
        let host: core::net::Ipv4Addr = if link == "in" { "10.0.0.1" } else { "203.0.113.1" }.parse().unwrap();
        let id = source.link(link).unwrap();
        // It asks, is answered, and so is known; then it answers our own question.
        for operation in [1_u8, 2] {
            let mut frame = vec![0xff; 6];
            frame.extend([2, 0, 0, 0, 0, 9]);
            frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, operation, 2, 0, 0, 0, 0, 9]);
            frame.extend(addr.octets());
            frame.extend([0; 6]);
            frame.extend(host.octets());
            if operation == 2 {
                frame.splice(..6, mac.octets());
                let ping = crate::test_packets::icmp_echo(&host.to_string(), name, 1, 1);
                source.local_output(ping, Instant::ZERO).unwrap();
                source.poll(Instant::from_secs(6));
            }
            source.ingress(id, frame, Instant::from_secs(if operation == 1 { 0 } else { 6 }));
        }
    }
    let now = Instant::from_secs(6);
    source.poll(now);
    let states = |stack: &Stack, now| -> Vec<String> {
        stack.neighbours(now).iter().map(|entry| format!("{} {}", entry.link, entry.state)).collect()
    };
    assert_eq!(states(&source, now), ["in REACHABLE", "out REACHABLE"]);
    let image = source.save(GENERATION, now).unwrap();
    for (time, expected) in [
        (TimePolicy::Freeze, ["in REACHABLE", "out REACHABLE"]),
        (TimePolicy::Elapse, ["in REACHABLE", "out STALE"]),
        (TimePolicy::Cap(Duration::from_secs(1)), ["in REACHABLE", "out REACHABLE"]),
    ] {
        let policy = RestorePolicy { time, inside: vec!["in".into()], elapsed: DAY, ..RestorePolicy::default() };
        let (mut heir, _) = restored_after(&image, policy, Instant::ZERO);
        heir.poll(Instant::ZERO);
        assert_eq!(states(&heir, Instant::ZERO), expected, "{time:?}");
    }
}

#[test]
fn connections_of_the_host_age_towards_the_outside_and_stand_still_towards_the_guest() {
    let mut source = stack("");
    let options = StreamOptions::default();
    let server = (Version::V4.addr("server"), 80).into();
    let stream = source.tcp_connect(None, server, options, Instant::ZERO).unwrap();
    let image = source.save(GENERATION, Instant::ZERO).unwrap();
    let now = Instant::from_secs(7);
    for (time, inside, ended) in [
        (TimePolicy::Freeze, vec![], Ok(())),
        (TimePolicy::Cap(Duration::from_secs(100)), vec![], Ok(())),
        (TimePolicy::Elapse, vec![], Err(StreamError::TimedOut)),
        (TimePolicy::Elapse, vec!["out".to_owned()], Ok(())),
    ] {
        let policy = RestorePolicy { time, inside, elapsed: DAY, ..RestorePolicy::default() };
        let (mut heir, report) = restored_after(&image, policy, now);
        assert_eq!(report.streams_kept, 1);
        heir.poll(now);
        let found = match heir.tcp_read(stream, &mut [0; 4], now) {
            Err(StreamError::WouldBlock) => Ok(()),
            Err(error) => Err(error),
            Ok(read) => panic!("{read} bytes from nowhere"),
        };
        assert_eq!(found, ended, "{time:?}");
    }
}

#[test]
fn a_link_that_the_image_does_not_have_is_named() {
    let image = busy().save(GENERATION, Instant::ZERO).unwrap();
    let mut entropy = Entropy::from_test_seed(1);
    let validated = Decoded::open(&image, &Limits::default()).unwrap().validate(&mut entropy, Instant::ZERO).unwrap();
    let policy = RestorePolicy { inside: vec!["guest0".into()], ..RestorePolicy::default() };
    let error = validated.rehash(entropy, policy).unwrap_err().to_string();
    assert_eq!(error, "the restore policy names the link `guest0`, which the image does not have: it has in, out");
}
