//! Single cases: what is refused, what waits, what is for this host.

use super::*;

fn run(version: Version, is_tcp: bool, size: u16, count: u16) -> Run {
    Run { version, is_tcp, seq: 100, flags: "PA", size, data: vec![b'x'; usize::from(size * count)] }
}

#[test]
fn words_that_do_not_fit_the_packet_are_a_reason_to_drop_it() {
    let partial = |start, offset| ChecksumState::Partial { start, offset };
    let cut = |kind, size| Some(Segmentation { kind, size });
    for version in VERSIONS {
        let header = if matches!(version, Version::V4) { 20 } else { 40 };
        let (kind, other) = match version {
            Version::V4 => (SegmentationKind::Tcp4, SegmentationKind::Tcp6),
            Version::V6 => (SegmentationKind::Tcp6, SegmentationKind::Tcp4),
        };
        let (good, bad) = (partial(header, TCP_CHECKSUM), DropReason::OffloadInvalid);
        for (offload, flags, dropped) in [
            (Offload { checksum: good, segmentation: cut(kind, 100) }, "A", false),
            (Offload { checksum: good, segmentation: cut(kind, 20) }, "A", false),
            (Offload { checksum: good, segmentation: cut(kind, 5000) }, "A", false),
            (Offload { checksum: good, segmentation: cut(kind, 0) }, "A", true),
            (Offload { checksum: good, segmentation: cut(kind, 1) }, "A", true),
            (Offload { checksum: good, segmentation: cut(other, 100) }, "A", true),
            (Offload { checksum: good, segmentation: cut(SegmentationKind::Udp, 100) }, "A", true),
            (Offload { checksum: good, segmentation: cut(SegmentationKind::Other, 100) }, "A", true),
            (Offload { checksum: good, segmentation: cut(kind, 100) }, "S", true),
            (Offload { checksum: good, segmentation: cut(kind, 100) }, "RA", true),
            (Offload { checksum: ChecksumState::Complete, segmentation: cut(kind, 100) }, "A", true),
            (Offload { checksum: partial(header, 6), segmentation: cut(kind, 100) }, "A", true),
            (Offload { checksum: partial(header + 2, 16), segmentation: cut(kind, 100) }, "A", true),
            (Offload { checksum: partial(60_000, 16), segmentation: None }, "A", true),
            (Offload { checksum: partial(header, u16::MAX), segmentation: None }, "A", true),
        ] {
            let mut stack = stack("");
            let link = stack.link("in").unwrap();
            let [from, to] = [end(version, "client", 1000), end(version, "server", 80)];
            let frame = tcp(&from, &to, flags, 1, 1, &[7; 2000]);
            stack.ingress_burst(link, [Ingress { frame, offload }], Instant::ZERO);
            let reasons = drops(&mut stack);
            assert_eq!(reasons.contains(&bad), dropped, "{offload:?}: {reasons:?}");
        }
    }
}

#[test]
fn what_another_protocol_leaves_out_is_completed_at_once() {
    for version in VERSIONS {
        let mut stack = stack("");
        let (link, out) = (stack.link("in").unwrap(), stack.link("out").unwrap());
        stack.set_link_offloads(out, LinkOffloads::ALL);
        let ping = version.datagram("ping client > server id=1");
        let start = if matches!(version, Version::V4) { 20 } else { 40 };
        let mut frame = ping.clone();
        // ICMP has no pseudo header, ICMPv6 has: what stands in the field is the sender's sum over it.
        let parsed = parse(&ping).unwrap();
        let pseudo = match version {
            Version::V4 => 0,
            Version::V6 => sum::pseudo_header(parsed.src, parsed.dst, parsed.proto, ping.len() - 40),
        };
        sum::put(&mut frame, usize::from(start) + 2, pseudo);
        let offload = Offload { checksum: ChecksumState::Partial { start, offset: 2 }, segmentation: None };
        stack.ingress_burst(link, [Ingress { frame, offload }], Instant::ZERO);
        let sent = stack.egress().unwrap();
        assert_eq!(sent.offload, Offload::NONE);
        assert_eq!(sent.datagram[usize::from(start)..], ping[usize::from(start)..]);
    }
}

#[test]
fn a_checksum_that_the_link_has_verified_is_not_looked_at_again() {
    for (checksum, state) in [(ChecksumState::Complete, "invalid"), (ChecksumState::Verified, "new")] {
        let rules = format!(r#"[{{"chain":"forward","match":{{"ctstate":["{state}"]}},"action":"drop"}}]"#);
        let mut stack = stack(&rules);
        let link = stack.link("in").unwrap();
        let mut frame = Version::V4.datagram("udp client:1000 > server:53 len=9");
        let last = frame.len() - 1;
        frame[last] ^= 1;
        let offload = Offload { checksum, segmentation: None };
        stack.ingress_burst(link, [Ingress { frame, offload }], Instant::ZERO);
        assert_eq!(drops(&mut stack), [DropReason::Rule], "{checksum:?}");
    }
}

#[test]
fn the_mtu_is_held_against_the_segments_not_the_whole() {
    for version in VERSIONS {
        for (size, fits) in [(1400, true), (1461, false)] {
            let run = run(version, true, size, 8);
            let mut stack = run.opened("");
            let (link, out) = (stack.link("in").unwrap(), stack.link("out").unwrap());
            stack.set_link_offloads(out, LinkOffloads::ALL);
            stack.ingress_burst(link, [run.whole()], Instant::ZERO);
            let expected = if fits { vec![] } else { vec![DropReason::PacketTooBig] };
            assert_eq!(drops(&mut stack), expected, "{size} bytes over {version:?}");
            let sent = drain(&mut stack);
            assert_eq!(sent.len(), 1);
            assert_eq!(sent[0].link, if fits { out } else { link }, "passed on, or told");
        }
    }
}

#[test]
fn segments_that_are_too_long_and_may_be_cut_leave_in_fragments() {
    let run = run(Version::V4, false, 2000, 3);
    let mut stack = run.opened(MASQUERADE);
    let (link, out) = (stack.link("in").unwrap(), stack.link("out").unwrap());
    stack.set_link_offloads(out, LinkOffloads::ALL);
    stack.ingress_burst(link, [run.whole()], Instant::ZERO);
    let sent = drain(&mut stack);
    assert_eq!(sent.len(), 6, "each of three datagrams in two fragments");
    let mut again = super::stack("");
    let (out, back) = (again.link("out").unwrap(), again.link("in").unwrap());
    again.add_rule("input", serde_json::from_str(r#"{"match":{},"action":"accept"}"#).unwrap()).unwrap();
    for fragment in sent {
        assert_eq!((fragment.link, fragment.offload), (out, Offload::NONE));
        again.ingress(back, fragment.datagram, Instant::ZERO);
    }
    let lines = outcome(&mut again, Version::V4);
    assert!(lines.iter().all(|line| !line.contains("badsum")), "{lines:?}");
}

#[test]
fn each_datagram_of_a_super_packet_for_this_host_is_answered() {
    for version in VERSIONS {
        let mut stack = stack("");
        let link = stack.link("in").unwrap();
        stack.set_link_offloads(link, LinkOffloads::ALL);
        let data: Vec<u8> = (0..250).collect();
        let mut frame = udp(&end(version, "client", 1000), &end(version, "gateway", 7), &data);
        let offload = left_out(&mut frame, Some(Segmentation { kind: SegmentationKind::Udp, size: 100 }));
        stack.ingress_burst(link, [Ingress { frame, offload }], Instant::ZERO);
        let lines = outcome(&mut stack, version);
        let answers = [100, 100, 50].map(|len| format!("in: udp gateway:7 > client:1000 len={len} ttl=64"));
        assert_eq!(lines, answers);
    }
}

#[test]
fn a_super_packet_that_is_refused_is_answered_like_any_segment() {
    for (rules, to) in [(r#"[{"chain":"forward","match":{},"action":"reject-tcp"}]"#, "server"), ("", "gateway")] {
        for version in VERSIONS {
            let mut stack = stack(rules);
            let link = stack.link("in").unwrap();
            let mut frame = tcp(&end(version, "client", 1000), &end(version, to, 81), "A", 1, 77, &[1; 3000]);
            let kind = if matches!(version, Version::V4) { SegmentationKind::Tcp4 } else { SegmentationKind::Tcp6 };
            let offload = left_out(&mut frame, Some(Segmentation { kind, size: 1000 }));
            stack.ingress_burst(link, [Ingress { frame, offload }], Instant::ZERO);
            let lines = outcome(&mut stack, version);
            assert_eq!(lines.last().unwrap(), &format!("in: tcp {to}:81 > client:1000 R ttl=64"), "{lines:?}");
        }
    }
}

#[test]
fn what_waits_for_a_neighbour_waits_in_segments_as_on_the_wire() {
    let station = |last| MacAddr::new([2, 0, 0, 0, 0, last]);
    let base = config(Ruleset::open());
    let mut links = base.links.clone();
    links[1].medium = Medium::Ethernet { mac: station(1) };
    let routes =
        vec![Route { destination: Cidr::all_v4(), via: Some("203.0.113.9".parse().unwrap()), link: "out".into() }];
    let config = StackConfig { links, routes, ..base };
    let mut stack = Stack::new(config, hibernet_snapshot::Entropy::from_test_seed(1), Instant::ZERO).unwrap();
    let (link, out) = (stack.link("in").unwrap(), stack.link("out").unwrap());
    stack.set_link_offloads(out, LinkOffloads::ALL);
    let run = run(Version::V4, false, 500, 3);
    stack.ingress_burst(link, [run.whole()], Instant::ZERO);
    assert_eq!(drain(&mut stack).len(), 1, "a question for the next hop");
    let mut answer = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9, 8, 6];
    answer.extend([0, 1, 8, 0, 6, 4, 0, 2, 2, 0, 0, 0, 0, 9, 203, 0, 113, 9, 2, 0, 0, 0, 0, 1, 203, 0, 113, 1]);
    stack.ingress(out, answer, Instant::ZERO);
    let sent = drain(&mut stack);
    assert_eq!(sent.len(), 3);
    for sent in sent {
        assert_eq!(sent.offload.segmentation, None);
        assert_eq!(text(&sent.datagram[14..]), "udp 10.0.0.2:1000 > 198.51.100.10:80 len=500 ttl=63");
    }
    // Known now, the next hop gets the packet whole.
    stack.ingress_burst(link, [run.whole()], Instant::ZERO);
    let sent = drain(&mut stack);
    assert_eq!(sent.len(), 1);
    let ChecksumState::Partial { start, .. } = sent[0].offload.checksum else { panic!("left out") };
    assert_eq!(start, 14 + 20);
}

#[test]
fn a_super_packet_that_finds_no_room_leaves_nothing_of_itself() {
    let mut config = config(Ruleset::open());
    config.queues.egress = 7;
    let mut stack = Stack::new(config, hibernet_snapshot::Entropy::from_test_seed(1), Instant::ZERO).unwrap();
    let link = stack.link("in").unwrap();
    stack.ingress_burst(link, [run(Version::V4, false, 100, 8).whole()], Instant::ZERO);
    assert_eq!((drops(&mut stack), drain(&mut stack).len()), (vec![DropReason::EgressFull], 0));
    assert_eq!(stack.link_offloads(LinkId::LOOPBACK), LinkOffloads::ALL);
}
