//! A restored stack is the stack that was saved: it saves to the same bytes, and goes on as the other would have.

use std::collections::BTreeSet;
use std::time::Duration;

use hibernet_conntrack::{Direction, EventKind, FlowRecord, ProtocolState, TcpState, TcpTrack, proto};
use hibernet_netstack::{Stack, StackEvent};
use hibernet_snapshot::image::{Image, Limits};
use hibernet_snapshot::{Entropy, GenerationId, Instant};
use hibernet_tests::notation::build;
use hibernet_tests::traffic::{GENERATION, Gateway, START, Session, Trace, body, difference, restored};

const A_DAY: Duration = Duration::from_secs(86_400);

/// A session that has done the first steps of a trace.
fn at(trace: &Trace, keys: u64, step: usize) -> Session {
    let mut stack = trace.gateway.open(keys);
    trace.rewind(&mut stack, 0);
    let mut session = Session::of(stack, 0, START);
    for step in &trace.steps[..step] {
        session.play(step);
    }
    session
}

/// Goes on in a restored stack whose clock stands `later` than its source's.
fn heir(source: &Session, trace: &Trace, keys: u64, later: Duration) -> Session {
    let now = source.now().saturating_add(later);
    let (mut stack, report) = restored(&source.image(), keys, now).unwrap();
    assert_eq!(report.kept as usize, stack.flows(now).len());
    trace.rewind(&mut stack, source.step);
    let mut session = Session::of(stack, source.step, now);
    session.later = later;
    session
}

#[test]
fn save_restore_save_is_the_identity_at_every_tenth_step() {
    let waiting = |image: &[u8]| body(image, b"FRAG").len();
    let mut fragments_waited = false;
    for traffic in 0..4 {
        let trace = Trace::of(&Gateway::with_room_for(128), 1, traffic, 600);
        let mut session = at(&trace, 1, 0);
        let none_waiting = waiting(&session.image());
        for step in &trace.steps {
            session.play(step);
            if session.step.is_multiple_of(10) {
                let image = session.image();
                fragments_waited |= waiting(&image) > none_waiting;
                for now in [session.now(), Instant::ZERO, session.now().saturating_add(A_DAY)] {
                    let (heir, report) = restored(&image, session.step as u64, now).unwrap();
                    assert_eq!((report.reset, report.dropped), (0, 0));
                    assert!(
                        heir.save(GENERATION, now).unwrap() == image,
                        "traffic {traffic}, step {}, restored at {now:?}",
                        session.step
                    );
                }
            }
        }
    }
    assert!(fragments_waited, "no image has held a fragment");
}

#[test]
fn a_save_disturbs_nothing() {
    let trace = Trace::of(&Gateway { tcp_echo: true, ..Gateway::with_room_for(64) }, 1, 5, 1000);
    let (mut saving, mut other) = (at(&trace, 1, 0), at(&trace, 1, 0));
    for step in &trace.steps {
        assert_eq!(saving.play(step), other.play(step));
        assert_eq!(saving.image(), saving.image());
    }
    assert_eq!(difference(&saving.seen, &other.seen), None);
}

#[test]
fn a_restored_stack_and_its_source_show_the_same_for_the_next_10000_packets() {
    let trace = Trace::of(&Gateway::with_room_for(192), 1, 1, 12_000);
    let mut source = at(&trace, 1, 2_000);
    while !source.is_collected() {
        source.play(&trace.steps[source.step]);
    }
    let mut heir = heir(&source, &trace, 2, Duration::ZERO);
    let from = source.step;
    trace.carry_on(&mut heir);
    assert!(heir.seen.frames.len() > 5_000 && heir.seen.images.len() >= 4);
    assert_eq!(difference(&trace.seen.since(from), &heir.seen), None);
}

#[test]
fn the_same_from_many_moments_also_on_a_clock_that_stands_elsewhere() {
    for traffic in 10..14 {
        let trace = Trace::of(&Gateway::with_room_for(48), 1, traffic, 1_500);
        for (number, first) in [20, 333, 790, 1_200].into_iter().enumerate() {
            let mut source = at(&trace, 1, first);
            while !source.is_collected() {
                source.play(&trace.steps[source.step]);
            }
            let later = A_DAY * number as u32 + Duration::from_nanos(number as u64 * 1_234_567);
            let mut heir = heir(&source, &trace, 100 + traffic, later);
            trace.carry_on(&mut heir);
            let expected = trace.seen.since(source.step);
            assert_eq!(difference(&expected, &heir.seen), None, "traffic {traffic} from {first}, {later:?} later");
        }
    }
}

#[test]
fn every_saved_tuple_is_found_under_the_new_keys() {
    let trace = Trace::filled(&Gateway::with_room_for(2_000), 1, 2_000, false);
    let (_, image) = &trace.seen.images[1];
    for keys in 50..53 {
        let (stack, _) = restored(image, keys, START).unwrap();
        let flows = stack.flows(START);
        assert_eq!(flows.len(), 2_000);
        for flow in flows {
            for direction in [Direction::Original, Direction::Reply] {
                let found = stack.conntrack().find(flow.tuple(direction), flow.zone);
                let (handle, as_direction) = found.unwrap_or_else(|| panic!("{direction:?} of {flow}"));
                assert_eq!(as_direction, direction);
                assert_eq!(stack.conntrack().flow(handle).unwrap().to_string(), flow.to_string());
            }
        }
    }
}

#[test]
fn packets_of_saved_flows_pass_a_default_drop_policy_both_ways() {
    let mut passed = BTreeSet::new();
    for traffic in 3..7 {
        let trace = Trace::of(&Gateway::with_room_for(256), 1, traffic, 1_000);
        let (_, image) = trace.seen.images.last().unwrap();
        let (mut stack, _) = restored(image, 9, START).unwrap();
        for flow in stack.flows(START).into_iter().filter(is_answered_and_open) {
            for direction in [Direction::Reply, Direction::Original] {
                let Some((link, line)) = next_packet(&flow, direction) else { continue };
                stack.ingress(stack.link(link).unwrap(), build(&line, None).unwrap(), START);
                assert!(stack.egress().is_some(), "{line} of {flow} ends: {:?}", stack.next_event());
                assert!(stack.egress().is_none());
                assert!(!opened_a_flow(&mut stack), "{line} of {flow} opens a flow of its own");
                passed.insert((flow.orig.proto, flow.orig.is_v6(), direction.index()));
            }
        }
    }
    // TCP, UDP and pings, in IPv4 and IPv6, both ways.
    let expected = [6, 17, 1].map(|proto| [(proto, false, 0), (proto, false, 1)]).concat();
    let expected_v6 = [6, 17, 58].map(|proto| [(proto, true, 0), (proto, true, 1)]).concat();
    assert!(expected.iter().chain(&expected_v6).all(|kind| passed.contains(kind)), "{passed:?}");
}

#[test]
fn packets_of_a_flow_that_is_not_saved_are_dropped_by_the_same_stack() {
    let trace = Trace::of(&Gateway::with_room_for(256), 1, 3, 2_000);
    let mut stack = trace.gateway.open(9);
    let flows = restored(&trace.seen.images.last().unwrap().1, 9, START).unwrap().0.flows(START);
    let mut asked = 0;
    for flow in flows.iter().filter(|flow| is_answered_and_open(flow)) {
        let Some(("out", line)) = next_packet(flow, Direction::Reply) else { continue };
        stack.ingress(stack.link("out").unwrap(), build(&line, None).unwrap(), START);
        while let Some(sent) = stack.egress() {
            assert_eq!(stack.link_name(sent.link), Some("out"), "at most an error goes back: {line}");
        }
        asked += 1;
    }
    assert!(asked > 20);
}

#[test]
fn two_restores_of_one_image_share_no_key_and_become_two_generations() {
    let source = at(&Trace::of(&Gateway::with_room_for(64), 1, 3, 300), 1, 0);
    let image = source.image();
    let mut entropy = Entropy::from_test_seed(77);
    let generations = [entropy.public_id(), entropy.public_id()];
    assert_ne!(generations[0], generations[1]);
    let heirs = [3, 4].map(|seed| restored(&image, seed, START).unwrap().0);

    let stacks: [&Stack; 3] = [&source.stack, &heirs[0], &heirs[1]];
    let keys: Vec<u64> = stacks.iter().flat_map(|stack| stack.key_fingerprints()).map(|(_, key)| key).collect();
    assert_eq!(keys.iter().collect::<BTreeSet<_>>().len(), keys.len());
    assert!(keys.len() >= 3 * 4);

    let second = [0, 1].map(|at: usize| heirs[at].save(generations[at], START).unwrap());
    let named = second.each_ref().map(|image| Image::parse(image, &Limits::default()).unwrap().header().generation);
    assert_eq!(named, generations);
    let lineage = |image: &[u8]| -> Vec<GenerationId> { restored(image, 5, START).unwrap().0.lineage().to_vec() };
    assert_eq!(lineage(&second[0]), [GENERATION, generations[0]]);
    assert_eq!(lineage(&second[1]), [GENERATION, generations[1]]);
    for image in &second {
        for stack in stacks {
            assert_eq!(stack.canary_scan(image).hits, [], "no key of any relative is in an image");
        }
    }
}

fn is_answered_and_open(flow: &FlowRecord) -> bool {
    match flow.protocol {
        ProtocolState::Tcp(TcpTrack { state, .. }) => state == TcpState::Established,
        _ => flow.counters.packets.iter().all(|packets| *packets > 0),
    }
}

/// The next packet of a flow, as it comes in from its side.
fn next_packet(flow: &FlowRecord, direction: Direction) -> Option<(&'static str, String)> {
    let tuple = flow.tuple(direction);
    let (src, dst) =
        (std::net::SocketAddr::new(tuple.src, tuple.sport), std::net::SocketAddr::new(tuple.dst, tuple.dport));
    let link = match tuple.src.to_string() {
        src if src == "10.0.0.1" || src == "fd00:10::1" => return None, // the gateway answers by itself
        src if src.starts_with("10.") || src.starts_with("fd00:") => "in",
        src if src.starts_with("198.18.") || src.starts_with("2001:db8:18:") => "dmz",
        src if src.starts_with("198.51.") || src.starts_with("2001:db8:1:") => "out",
        _ => return None,
    };
    let line = match &flow.protocol {
        ProtocolState::Tcp(TcpTrack { sides, .. }) => {
            let (own, peer) = match direction {
                Direction::Original => (sides[0], sides[1]),
                Direction::Reply => (sides[1], sides[0]),
            };
            format!("tcp {src} > {dst} PA seq={} ack={} len=10", own.td_end, peer.td_end)
        }
        ProtocolState::Udp(_) => format!("udp {src} > {dst} len=4"),
        _ if tuple.proto == proto::ICMP || tuple.proto == proto::ICMPV6 => {
            let name = if tuple.proto == proto::ICMP { "icmp" } else { "icmp6" };
            let word = if direction == Direction::Original { "echo" } else { "echoreply" };
            format!("{name} {} > {} {word} id={} seq=2 len=8", tuple.src, tuple.dst, tuple.sport)
        }
        _ => return None,
    };
    Some((link, line))
}

fn opened_a_flow(stack: &mut Stack) -> bool {
    let mut opened = false;
    while let Some(event) = stack.next_event() {
        opened |= matches!(event, StackEvent::Conntrack(event) if event.kind == EventKind::New);
    }
    opened
}
