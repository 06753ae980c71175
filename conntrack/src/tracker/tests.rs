use core::time::Duration;

use hibernet_snapshot::Instant;
use proptest::prelude::*;

use super::testing::{Family, Flow, datagram, wrap};
use super::*;
use crate::headers::{parse, tuple_of};
use crate::protocol::{SctpState, SctpTrack, TcpSegmentKind, TcpSide, TcpSideFlags, TcpState, TcpTrack, UdpTrack};

const NOW: Instant = Instant::ZERO;

fn udp(family: Family, direction: Direction, stated: Option<u16>, payload: &[u8]) -> Vec<u8> {
    let (src, dst) = family.ends(direction);
    let ports = match direction {
        Direction::Original => [5353_u16, 53],
        Direction::Reply => [53, 5353],
    };
    let length = stated.unwrap_or(8 + payload.len() as u16);
    let header = [ports[0], ports[1], length, 0].map(u16::to_be_bytes).concat();
    datagram(src, dst, proto::UDP, [&header[..], payload].concat())
}

/// UDP-Lite whose checksum covers `coverage` bytes, summed with this protocol number in the pseudo header.
fn udp_lite(family: Family, direction: Direction, coverage: u16, summed_as: u8) -> Vec<u8> {
    let (src, dst) = family.ends(direction);
    let mut l4 = [5353_u16, 53, coverage, 0].map(u16::to_be_bytes).concat();
    l4.extend(*b"data");
    let covered = if coverage == 0 { l4.len() } else { usize::from(coverage).min(l4.len()) };
    let start = checksum::pseudo_header_sum(src, dst, summed_as, l4.len());
    let sum = !checksum::ones_complement_sum(start, &l4[..covered]);
    l4[6..8].copy_from_slice(&sum.to_be_bytes());
    wrap(src, dst, proto::UDP_LITE, &l4)
}

fn at_seconds(seconds: f64) -> Instant {
    NOW.saturating_add(Duration::from_secs_f64(seconds))
}

fn accept(timeout: u32, assure: bool) -> Outcome {
    Outcome::Accept { timeout, assure, changed: false }
}

#[test]
fn udp_is_a_stream_once_it_was_answered_and_is_older_than_two_seconds() {
    let sysctls = Sysctls::default();
    for family in Family::BOTH {
        let request = udp(family, Direction::Original, None, b"question");
        let answer = udp(family, Direction::Reply, None, b"answer");
        let mut flow = Flow::open(&request, &sysctls, NOW).unwrap();
        assert_eq!(flow.timeout, 30);
        let mut follow = |direction: Direction, seconds| {
            let datagram = if direction == Direction::Original { &request } else { &answer };
            flow.follow(datagram, direction, &sysctls, at_seconds(seconds))
        };
        assert_eq!(follow(Direction::Original, 3.0), accept(30, false), "unanswered, however old");
        assert_eq!(follow(Direction::Reply, 3.5), accept(30, false), "the first reply itself");
        assert_eq!(follow(Direction::Original, 3.6), accept(120, true));
    }
}

#[test]
fn udp_lite_is_a_stream_once_it_was_answered_however_young() {
    let sysctls = Sysctls { checksum: false, ..Sysctls::default() };
    for family in Family::BOTH {
        let packet = |direction| udp_lite(family, direction, 8, proto::UDP_LITE);
        let mut flow = Flow::open(&packet(Direction::Original), &sysctls, NOW).unwrap();
        assert_eq!(flow.timeout, 30);
        let mut follow = |direction| flow.follow(&packet(direction), direction, &sysctls, NOW);
        assert_eq!(follow(Direction::Reply), accept(30, false), "the first reply itself");
        assert_eq!(follow(Direction::Original), accept(120, true));
    }
}

#[test]
fn udp_lite_must_have_a_checksum_over_what_it_has() {
    let sysctls = Sysctls { checksum: false, ..Sysctls::default() };
    let proto = proto::UDP_LITE;
    let with = |coverage| udp_lite(Family::V4, Direction::Original, coverage, proto);
    for (coverage, fits) in [(0, true), (1, false), (7, false), (8, true), (12, true), (13, false)] {
        let outcome = Flow::open(&with(coverage), &sysctls, NOW).map(|_| ());
        assert_eq!(outcome, if fits { Ok(()) } else { Err(InvalidReason::Malformed { proto }) }, "{coverage}");
    }
    let mut without = with(8);
    without[26..28].fill(0);
    assert_eq!(Flow::open(&without, &sysctls, NOW).unwrap_err(), InvalidReason::NoChecksum { proto });
    let short = wrap(Family::V4.ends(Direction::Original).0, Family::V4.ends(Direction::Original).1, proto, &[1; 7]);
    assert_eq!(Flow::open(&short, &sysctls, NOW).unwrap_err(), InvalidReason::ShortPacket { proto });
}

#[test]
fn udp_lite_is_summed_as_if_it_were_udp_as_the_kernel_does() {
    let sysctls = Sysctls::default();
    let proto = proto::UDP_LITE;
    for family in Family::BOTH {
        for coverage in [0, 8, 12] {
            let with = |summed_as| udp_lite(family, Direction::Original, coverage, summed_as);
            Flow::open(&with(proto::UDP), &sysctls, NOW).unwrap();
            let refused = Flow::open(&with(proto), &sysctls, NOW).unwrap_err();
            assert_eq!(refused, InvalidReason::BadChecksum { proto });
        }
    }
}

#[test]
fn udp_that_is_answered_at_once_waits_two_seconds_for_its_long_timeout() {
    let sysctls = Sysctls::default();
    let request = udp(Family::V4, Direction::Original, None, b"");
    let mut flow = Flow::open(&request, &sysctls, NOW).unwrap();
    flow.follow(&udp(Family::V4, Direction::Reply, None, b""), Direction::Reply, &sysctls, NOW);
    assert_eq!(flow.follow(&request, Direction::Original, &sysctls, at_seconds(2.0)), accept(30, false));
    assert_eq!(flow.follow(&request, Direction::Original, &sysctls, at_seconds(2.1)), accept(120, true));
}

#[test]
fn udp_that_lost_its_port_to_a_clash_is_never_assured() {
    let sysctls = Sysctls::default();
    let request = udp(Family::V4, Direction::Original, None, b"");
    let mut flow = Flow::open(&request, &sysctls, NOW).unwrap();
    flow.status |= Status::NAT_CLASH | Status::SEEN_REPLY;
    assert_eq!(flow.follow(&request, Direction::Original, &sysctls, at_seconds(9.0)), accept(120, false));
}

#[test]
fn udp_lengths_below_the_header_or_above_the_datagram_are_invalid_and_shorter_ones_are_fine() {
    let sysctls = Sysctls::default();
    for family in Family::BOTH {
        let opened = |stated, payload: &[u8]| {
            Flow::open(&udp(family, Direction::Original, stated, payload), &sysctls, NOW).map(|flow| flow.timeout)
        };
        assert_eq!(opened(Some(7), b"abcdef"), Err(InvalidReason::Malformed { proto: proto::UDP }));
        assert_eq!(opened(Some(15), b"abcdef"), Err(InvalidReason::Malformed { proto: proto::UDP }));
        assert_eq!(opened(Some(8), b"abcdef"), Ok(30));
        assert_eq!(opened(None, b""), Ok(30));
    }
}

#[test]
fn a_udp_header_of_seven_bytes_is_short_though_its_ports_are_there() {
    let sysctls = Sysctls::default();
    let (src, dst) = Family::V4.ends(Direction::Original);
    let error = Flow::open(&wrap(src, dst, proto::UDP, &[0, 1, 0, 2, 0, 8, 0]), &sysctls, NOW).unwrap_err();
    assert_eq!(error, InvalidReason::ShortPacket { proto: proto::UDP });
}

#[test]
fn a_wrong_udp_checksum_is_invalid_and_none_is_fine_in_both_families() {
    let sysctls = Sysctls::default();
    let lax = Sysctls { checksum: false, ..Sysctls::default() };
    for family in Family::BOTH {
        let mut request = udp(family, Direction::Original, None, b"payload");
        let at = parse(&request).unwrap().header_len + 6;
        request[at] ^= 0x55;
        let bad = Err(InvalidReason::BadChecksum { proto: proto::UDP });
        assert_eq!(Flow::open(&request, &sysctls, NOW).map(|flow| flow.timeout), bad);
        assert!(Flow::open(&request, &lax, NOW).is_ok(), "not looked at with nf_conntrack_checksum off");
        request[at..at + 2].fill(0);
        assert!(Flow::open(&request, &sysctls, NOW).is_ok());
    }
}

#[test]
fn an_invalid_packet_leaves_a_flow_as_it_was() {
    let sysctls = Sysctls::default();
    let mut flow = Flow::open(&udp(Family::V4, Direction::Original, None, b""), &sysctls, NOW).unwrap();
    let before = flow.clone();
    let bad = udp(Family::V4, Direction::Reply, Some(4), b"");
    let outcome = flow.follow(&bad, Direction::Reply, &sysctls, at_seconds(1.0));
    assert_eq!(outcome, Outcome::Invalid(InvalidReason::Malformed { proto: proto::UDP }));
    assert_eq!((flow.state, flow.status, flow.timeout), (before.state, before.status, before.timeout));
}

#[test]
fn gre_both_ways_gets_a_longer_timeout_with_the_packet_after_the_first_reply() {
    let sysctls = Sysctls::default();
    for family in Family::BOTH {
        let (src, dst) = family.ends(Direction::Original);
        let packet = wrap(src, dst, proto::GRE, &[0, 0, 8, 0]);
        let answer = wrap(dst, src, proto::GRE, &[0, 0, 8, 0]);
        let mut flow = Flow::open(&packet, &sysctls, NOW).unwrap();
        assert_eq!(flow.timeout, 30);
        assert_eq!(flow.follow(&packet, Direction::Original, &sysctls, NOW), accept(30, false));
        assert_eq!(flow.follow(&answer, Direction::Reply, &sysctls, NOW), accept(30, false));
        assert_eq!(flow.follow(&packet, Direction::Original, &sysctls, NOW), accept(180, true));
    }
}

#[test]
fn a_protocol_without_a_tracker_keeps_its_timeout_and_is_never_assured() {
    let sysctls = Sysctls::default();
    let (src, dst) = Family::V6.ends(Direction::Original);
    let mut flow = Flow::open(&wrap(src, dst, 253, b""), &sysctls, NOW).unwrap();
    assert_eq!(flow.timeout, 600);
    let answer = wrap(dst, src, 253, b"");
    assert_eq!(flow.follow(&answer, Direction::Reply, &sysctls, NOW), accept(600, false));
    assert_eq!(flow.follow(&answer, Direction::Reply, &sysctls, NOW), accept(600, false));
}

#[test]
fn bytes_behind_the_stated_length_are_not_part_of_the_packet() {
    let sysctls = Sysctls::default();
    for family in Family::BOTH {
        let mut request = udp(family, Direction::Original, None, b"abc");
        request.extend([0xaa; 7]);
        assert!(Flow::open(&request, &sysctls, NOW).is_ok(), "padding would break the checksum");
    }
}

fn direction() -> impl Strategy<Value = Direction> {
    prop::sample::select(vec![Direction::Original, Direction::Reply])
}

fn tcp_side() -> impl Strategy<Value = TcpSide> {
    (any::<[u32; 4]>(), 0..=14_u8, any::<u8>()).prop_map(|([td_end, td_maxend, td_maxwin, td_maxack], scale, flags)| {
        TcpSide { td_end, td_maxend, td_maxwin, td_maxack, scale, flags: TcpSideFlags::from_bits_truncate(flags) }
    })
}

fn protocol_state() -> impl Strategy<Value = ProtocolState> {
    let tcp = (
        prop::sample::select(TcpState::ALL.to_vec()),
        [tcp_side(), tcp_side()],
        any::<(u8, u32, u32, u16, u16, u8, u8)>(),
        direction(),
        prop::sample::select(TcpSegmentKind::ALL.to_vec()),
    )
        .prop_map(
            |(state, sides, (retrans, last_seq, last_ack, last_len, last_win, wscale, last_flags), dir, kind)| {
                ProtocolState::Tcp(TcpTrack {
                    state,
                    sides,
                    retrans,
                    last_dir: dir,
                    last_index: kind,
                    last_seq,
                    last_ack,
                    last_len,
                    last_win,
                    last_wscale: wscale % 15,
                    last_flags,
                })
            },
        );
    let sctp = (prop::sample::select(SctpState::ALL.to_vec()), any::<[u32; 2]>(), direction(), 0..8_u8)
        .prop_map(|(state, vtag, last_dir, flags)| ProtocolState::Sctp(SctpTrack { state, vtag, last_dir, flags }));
    prop_oneof![
        3 => tcp,
        2 => sctp,
        1 => any::<u64>().prop_map(|at| ProtocolState::Udp(UdpTrack { stream_at: Instant::from_nanos(at) })),
        1 => Just(ProtocolState::Other),
    ]
}

fn family() -> impl Strategy<Value = Family> {
    prop::sample::select(Family::BOTH.to_vec())
}

fn protocol_number() -> impl Strategy<Value = u8> {
    prop_oneof![
        4 => prop::sample::select(vec![proto::TCP, proto::UDP, proto::SCTP, proto::ICMP, proto::ICMPV6, proto::GRE]),
        1 => prop::sample::select(vec![0_u8, 43, 44, 51, 59, 60]),
        1 => any::<u8>(),
    ]
}

proptest! {
    #[test]
    fn no_bytes_whatever_make_a_tracker_panic(
        family in family(),
        protocol in protocol_number(),
        l4 in prop::collection::vec(any::<u8>(), 0..160),
        fill in any::<bool>(),
        verify_checksum in any::<bool>(),
        mut state in protocol_state(),
        direction in direction(),
        status in any::<u16>(),
    ) {
        let (src, dst) = family.ends(direction);
        let bytes = if fill { datagram(src, dst, protocol, l4) } else { wrap(src, dst, protocol, &l4) };
        let Ok(parsed) = parse(&bytes) else { return Ok(()) };
        let packet = Packet { datagram: &bytes, parsed: &parsed, verify_checksum };
        let sysctls = Sysctls::default();
        let _ = icmp::classify(&packet);
        if let Ok(tuple) = tuple_of(&parsed, &bytes) {
            let _ = open(&packet, &tuple, &sysctls, NOW);
        }
        update(&mut state, &packet, direction, Status::from_bits_truncate(status), &sysctls, NOW);
    }

    #[test]
    fn a_quoted_packet_lies_within_its_datagram(
        family in family(),
        kind in any::<u8>(),
        quoted in prop::collection::vec(any::<u8>(), 0..120),
    ) {
        let (src, dst) = family.ends(Direction::Reply);
        let protocol = if family == Family::V4 { proto::ICMP } else { proto::ICMPV6 };
        let bytes = datagram(src, dst, protocol, [&[kind, 0, 0, 0, 0, 0, 0, 0], &quoted[..]].concat());
        let parsed = parse(&bytes).unwrap();
        let packet = Packet { datagram: &bytes, parsed: &parsed, verify_checksum: true };
        if let Ok(icmp::IcmpClass::Error { inner }) = icmp::classify(&packet) {
            prop_assert!(parsed.header_len < inner.ip_at && inner.ip_at <= inner.l4_at && inner.l4_at <= parsed.end);
            prop_assert_eq!(inner.tuple.src, parsed.dst);
        }
    }
}
