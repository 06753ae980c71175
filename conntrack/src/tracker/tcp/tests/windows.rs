//! The window: what fits, what is let through, what it does to the timeout.

use super::*;

fn over(bound: u32) -> Outcome {
    Outcome::Invalid(InvalidReason::TcpSeqOverUpper { bound })
}

#[test]
fn data_may_start_at_the_right_edge_and_overshoot_by_less_than_a_window() {
    for family in Family::BOTH {
        let flow = established(family);
        flow.clone().pass(segment(Original, "A", 11_001, 5001).len(10));
        let mut past = flow.clone();
        let overshoot = past.send(segment(Original, "A", 11_002, 5001).len(10));
        assert_eq!(overshoot, Outcome::ignored(IgnoreReason::TcpOvershoot { bytes: 12 }));
        assert_eq!(past.track().sides[0].td_end, 11_012, "the peer may acknowledge it");
        past.pass(segment(Reply, "A", 5001, 11_012));
        let widest = flow.clone().send(segment(Original, "A", 11_002, 5001).len(9998));
        assert_eq!(widest, Outcome::ignored(IgnoreReason::TcpOvershoot { bytes: 10_000 }));
        assert_eq!(flow.clone().send(segment(Original, "A", 11_002, 5001).len(9999)), over(11_002));
    }
}

#[test]
fn an_ack_of_data_that_was_not_sent_is_invalid() {
    let mut flow = established(Family::V4);
    for draft in [segment(Reply, "A", 5001, 1002), segment(Reply, "A", 5001, 9000).len(10)] {
        assert_eq!(flow.send(draft), Outcome::Invalid(InvalidReason::TcpAckOverUpper { bound: 1002 }));
    }
    flow.pass(segment(Original, "A", 1001, 5001).len(1)).pass(segment(Reply, "A", 5001, 1002));
}

#[test]
fn data_of_more_than_a_window_ago_and_acks_long_overdue_pass_unheeded() {
    let mut flow = established(Family::V4);
    for start in (0..8).map(|index| 1001 + index * 10_000) {
        flow.pass(segment(Original, "A", start, 5001).len(10_000));
        flow.pass(segment(Reply, "A", 5001, start + 10_000));
    }
    let sent = 81_001;
    flow.clone().pass(segment(Original, "A", sent - 10_010, 5001).len(10));
    let repeated = flow.send(segment(Original, "A", sent - 10_011, 5001).len(10));
    assert_eq!(repeated, Outcome::ignored(IgnoreReason::TcpSeqUnderLower { bound: sent - 10_001 }));
    flow.clone().pass(segment(Reply, "A", 5001, sent - 66_000));
    let overdue = flow.send(segment(Reply, "A", 5001, sent - 66_001));
    assert_eq!(overdue, Outcome::ignored(IgnoreReason::TcpAckUnderLower { bound: sent - 66_001 }));
}

#[test]
fn a_sack_counts_as_an_ack_where_it_was_offered() {
    let sack = |right: u32| [&[1, 1, 5, 10], &3001_u32.to_be_bytes()[..], &right.to_be_bytes()].concat();
    for offers in [true, false] {
        let options: &[u8] = if offers { &[4, 2, 1, 1] } else { &[1, 1, 1, 1] };
        let mut flow = Flow::open(Family::V4, &segment(Original, "S", 1000, 0).opts(options));
        flow.pass(segment(Reply, "SA", 5000, 1001).opts(options)).pass(segment(Original, "A", 1001, 5001));
        flow.pass(segment(Original, "A", 1001, 5001).len(1000)).pass(segment(Original, "A", 3001, 5001).len(1000));
        flow.clone().pass(segment(Reply, "A", 5001, 2001).opts(&sack(4001)));
        let beyond = flow.clone().send(segment(Reply, "A", 5001, 2001).opts(&sack(4002)));
        let expected = Outcome::Invalid(InvalidReason::TcpAckOverUpper { bound: 4002 });
        assert_eq!(beyond == expected, offers, "{beyond:?}");
    }
}

#[test]
fn a_closed_window_admits_a_probe_of_one_byte() {
    let mut flow = established(Family::V4);
    flow.pass(segment(Original, "A", 1001, 5001).len(10_000)).pass(segment(Reply, "A", 5001, 11_001).win(0));
    assert_eq!(flow.inner.timeout, 300, "and caps the timeout");
    flow.pass(segment(Original, "A", 11_001, 5001).len(1));
    assert_eq!(flow.track().sides[0].td_maxend, 11_002);
}

#[test]
fn data_that_is_not_acknowledged_caps_the_timeout() {
    let mut flow = established(Family::V6);
    flow.pass(segment(Original, "A", 1001, 5001).len(10));
    assert_eq!(flow.inner.timeout, 300);
    flow.pass(segment(Reply, "A", 5001, 1005));
    assert_eq!(flow.inner.timeout, 300, "only part of it is");
    flow.pass(segment(Reply, "A", 5001, 1011));
    assert_eq!(flow.inner.timeout, 432_000);
}

#[test]
fn the_same_segment_over_and_over_caps_the_timeout() {
    let sysctls = Sysctls { tcp_timeout_max_retrans: 250, ..Sysctls::default() };
    let mut flow = established_with(Family::V4, sysctls);
    let data = segment(Original, "A", 1001, 5001).len(100);
    let timeouts: Vec<u32> = (0..5).map(|_| flow.pass(data.clone()).inner.timeout).collect();
    assert_eq!(timeouts, [300, 300, 300, 250, 250]);
    flow.pass(segment(Reply, "A", 5001, 1101));
    assert_eq!(flow.inner.timeout, 432_000);
}

#[test]
fn a_cap_above_the_states_own_timeout_does_not_raise_it() {
    let sysctls = Sysctls { tcp_timeout_max_retrans: 9999, tcp_timeout_unacknowledged: 9999, ..Sysctls::default() };
    let mut flow = established_with(Family::V4, sysctls);
    flow.pass(segment(Original, "FA", 1001, 5001).len(10));
    assert_eq!(flow.shape(), (TcpState::FinWait, 120));
}

#[test]
fn windows_hold_across_the_wrap_of_sequence_numbers() {
    let mut flow = Flow::open(Family::V4, &segment(Original, "S", 0xffff_fff0, 0));
    flow.pass(segment(Reply, "SA", 0xffff_fe00, 0xffff_fff1)).pass(segment(Original, "A", 0xffff_fff1, 0xffff_fe01));
    flow.pass(segment(Original, "A", 0xffff_fff1, 0xffff_fe01).len(100));
    assert_eq!(flow.track().sides[0].td_end, 0x55);
    flow.pass(segment(Reply, "A", 0xffff_fe01, 0x55).len(1000));
    assert_eq!(
        flow.send(segment(Reply, "A", 0x1e9, 0x56)),
        Outcome::Invalid(InvalidReason::TcpAckOverUpper { bound: 0x56 })
    );
    flow.pass(segment(Original, "A", 0x55, 0x1e9));
    assert_eq!(flow.inner.timeout, 432_000);
}

#[test]
fn a_keepalive_probe_below_the_window_is_part_of_the_flow() {
    for len in [0, 1] {
        let mut flow = established(Family::V4);
        flow.pass(segment(Original, "A", 1000, 5001).len(len)).pass(segment(Reply, "A", 5001, 1001));
        assert_eq!(flow.shape(), (TcpState::Established, 432_000));
    }
}
