//! How a flow begins, and begins again.

use super::*;

#[test]
fn a_syn_that_is_repeated_is_no_reason_to_keep_the_flow() {
    let mut flow = Flow::open(Family::V4, &segment(Original, "S", 1000, 0));
    assert_eq!(flow.send(segment(Original, "S", 1000, 0)), Outcome::Ignore { why: None, changed: false });
    // Once answered it counts.
    flow.send(segment(Reply, "A", 77, 88));
    flow.pass(segment(Original, "S", 1000, 0));
}

#[test]
fn a_stray_ack_is_picked_up_and_held_to_no_window() {
    for family in Family::BOTH {
        let mut flow = Flow::open(family, &segment(Original, "A", 1001, 5001).len(200));
        assert_eq!(flow.shape(), (TcpState::Established, 300));
        assert!(!flow.inner.status.contains(Status::ASSURED));
        flow.pass(segment(Reply, "A", 5001, 1201));
        assert!(!flow.inner.status.contains(Status::ASSURED));
        flow.pass(segment(Original, "A", 1201, 5001));
        assert_eq!(flow.shape(), (TcpState::Established, 432_000));
        assert!(flow.inner.status.contains(Status::ASSURED), "with the third segment");
        flow.pass(segment(Reply, "A", 905_001, 1001).len(100));
    }
}

#[test]
fn without_tcp_loose_only_a_syn_opens() {
    let strict = Sysctls { tcp_loose: false, ..Sysctls::default() };
    let opened =
        |flags| Flow::open_with(Family::V6, strict.clone(), &segment(Original, flags, 1, 1)).map(|flow| flow.state());
    assert_eq!(opened("A"), Err(InvalidReason::TcpNotOpening { kind: Kind::Ack }));
    assert_eq!(opened("S"), Ok(TcpState::SynSent));
}

#[test]
fn both_ends_may_open_at_once() {
    let mut flow = Flow::open(Family::V4, &segment(Original, "S", 1000, 0));
    assert_eq!(flow.send(segment(Reply, "S", 5000, 0)), Outcome::Ignore { why: None, changed: true });
    assert_eq!(flow.state(), TcpState::SynSent2);
    flow.pass(segment(Original, "SA", 1000, 5001));
    assert_eq!(flow.shape(), (TcpState::SynRecv, 60));
    assert_eq!(flow.send(segment(Reply, "SA", 5000, 1001)), ignored_in(Kind::SynAck, Reply, TcpState::SynRecv));
    flow.pass(segment(Reply, "A", 5001, 1001));
    assert_eq!(flow.state(), TcpState::Established, "by an ACK from either side");
}

#[test]
fn an_ack_of_the_answering_side_does_not_end_an_ordinary_handshake() {
    let mut flow = Flow::open(Family::V4, &segment(Original, "S", 1000, 0));
    flow.pass(segment(Reply, "SA", 5000, 1001)).pass(segment(Reply, "A", 5001, 1001));
    assert_eq!(flow.state(), TcpState::SynRecv);
}

#[test]
fn a_syn_ack_for_an_older_syn_passes_and_the_right_one_begins_afresh() {
    let mut flow = Flow::open(Family::V4, &segment(Original, "S", 2_375_000_000, 0));
    let stale = flow.send(segment(Reply, "SA", 145_000_000, 643_000_000));
    assert_eq!(stale, Outcome::ignored(IgnoreReason::TcpAckUnderLower { bound: 2_374_934_000 }));
    assert_eq!(flow.state(), TcpState::SynSent);
    flow.pass(segment(Reply, "SA", 162_000_000, 2_375_000_001));
    assert_eq!(flow.state(), TcpState::SynRecv);
    assert_eq!(flow.track().sides[1].td_end, 162_000_001);
}

#[test]
fn a_syn_that_was_ignored_and_is_answered_starts_the_flow_over() {
    for family in Family::BOTH {
        let mut flow = established(family);
        flow.pass(segment(Original, "A", 1001, 5001).len(100));
        let syn = segment(Original, "S", 800_000, 0).win(4000).opts(&[1, 3, 3, 7]);
        assert_eq!(flow.send(syn), ignored_in(Kind::Syn, Original, TcpState::Established));
        let other = flow.clone().send(segment(Reply, "SA", 333_000, 800_002));
        assert_eq!(other, ignored_in(Kind::SynAck, Reply, TcpState::Established), "answers something else");
        flow.pass(segment(Reply, "SA", 333_000, 800_001).win(5000).opts(&[1, 3, 3, 2]));
        assert_eq!(flow.shape(), (TcpState::SynRecv, 60));
        let [original, reply] = flow.track().sides;
        assert_eq!((original.td_end, original.td_maxwin, original.scale), (800_001, 4000, 7));
        assert_eq!((reply.td_end, reply.td_maxwin, reply.scale), (333_001, 5000, 2));
        flow.pass(segment(Original, "A", 800_001, 333_001));
        assert_eq!(flow.shape(), (TcpState::Established, 432_000));
    }
}

#[test]
fn a_challenge_ack_in_last_ack_is_not_taken_for_the_last_one() {
    let mut flow = established(Family::V4);
    flow.pass(segment(Original, "FA", 1001, 5001)).pass(segment(Reply, "FA", 5001, 1002));
    assert_eq!(flow.send(segment(Original, "S", 90_000, 0)), ignored_in(Kind::Syn, Original, TcpState::LastAck));
    assert_eq!(flow.send(segment(Reply, "A", 5002, 1002)), Outcome::ignored(IgnoreReason::TcpChallengeAck));
    assert_eq!(flow.state(), TcpState::LastAck);
    flow.pass(segment(Reply, "A", 5002, 1002));
    assert_eq!(flow.state(), TcpState::TimeWait, "one challenge for one SYN");
}

#[test]
fn a_syn_in_time_wait_opens_a_new_flow_from_either_side() {
    let mut flow = established(Family::V4);
    flow.pass(segment(Original, "FA", 1001, 5001));
    flow.pass(segment(Reply, "FA", 5001, 1002));
    flow.pass(segment(Original, "A", 1002, 5002));
    assert_eq!(flow.state(), TcpState::TimeWait);
    for direction in [Original, Reply] {
        assert_eq!(flow.clone().send(segment(direction, "S", 90_000, 0)), Outcome::Reopen);
    }
}

#[test]
fn a_syn_after_a_reset_opens_a_new_flow_only_for_the_side_that_reset() {
    let mut flow = established(Family::V4);
    flow.pass(segment(Reply, "R", 5001, 0));
    assert_eq!(flow.state(), TcpState::Close);
    let ignored = ignored_in(Kind::Syn, Original, TcpState::Close);
    assert_eq!(flow.clone().send(segment(Original, "S", 9000, 0)), ignored);
    flow.pass(segment(Original, "R", 1001, 0));
    assert_eq!(flow.clone().send(segment(Original, "S", 9000, 0)), Outcome::Reopen);
    let from_server = flow.send(segment(Reply, "S", 9000, 0));
    assert!(matches!(from_server, Outcome::Invalid(InvalidReason::TcpState { .. })), "{from_server:?}");
}

#[test]
fn a_syn_after_a_reset_opens_a_new_flow_if_a_fin_came_first() {
    let mut flow = established(Family::V4);
    flow.pass(segment(Original, "FA", 1001, 5001)).pass(segment(Reply, "R", 5001, 0));
    assert_eq!(flow.send(segment(Original, "S", 9000, 0)), Outcome::Reopen);
}

#[test]
fn scaling_holds_when_both_offer_it_and_is_none_when_one_does() {
    let scaled = |options: &[u8]| {
        let mut flow = Flow::open(Family::V4, &segment(Original, "S", 1000, 0).win(1000).opts(&[1, 3, 3, 7]));
        flow.pass(segment(Reply, "SA", 5000, 1001).win(1000).opts(options));
        flow.pass(segment(Original, "A", 1001, 5001).win(1000));
        let [original, reply] = flow.track().sides;
        (original.scale, reply.scale, original.td_maxwin)
    };
    assert_eq!(scaled(&[1, 3, 3, 2]), (7, 2, 128_000));
    assert_eq!(scaled(&[1, 3, 3, 15]), (7, 14, 128_000));
    assert_eq!(scaled(&[2, 4, 5, 180]), (0, 0, 1000));
    assert_eq!(scaled(&[]), (0, 0, 1000));
}

#[test]
fn a_repeated_syn_without_options_takes_no_offer_back() {
    let mut flow = Flow::open(Family::V4, &segment(Original, "S", 1000, 0).opts(&[1, 3, 3, 7]));
    flow.send(segment(Original, "S", 2000, 0));
    let side = flow.track().sides[0];
    assert_eq!((side.td_end, side.scale, side.flags), (2001, 7, TcpSideFlags::WINDOW_SCALE));
    flow.send(segment(Original, "S", 3000, 0).opts(&[2, 4, 5, 180]));
    assert_eq!((flow.track().sides[0].scale, flow.track().sides[0].flags), (0, TcpSideFlags::empty()));
}
