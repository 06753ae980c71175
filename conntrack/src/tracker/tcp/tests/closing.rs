//! RST and FIN, and how exact they must be.

use super::*;

fn at_close(outcome: Outcome) -> bool {
    outcome == Outcome::Accept { timeout: 10, assure: false, changed: true }
}

#[test]
fn a_reset_before_any_answer_takes_the_flow_away() {
    for family in Family::BOTH {
        let flow = Flow::open(family, &segment(Original, "S", 1000, 0));
        for draft in [segment(Reply, "RA", 0, 1001), segment(Reply, "R", 9, 0), segment(Original, "R", 1000, 0)] {
            assert_eq!(flow.clone().send(draft), Outcome::Remove);
        }
        assert_eq!(flow.clone().send(segment(Reply, "RA", 0, 1002)), Outcome::Remove, "as if a keepalive was missed");
        let wrong = flow.clone().send(segment(Reply, "RA", 0, 1003));
        assert_eq!(wrong, Outcome::Invalid(InvalidReason::TcpAckOverUpper { bound: 1002 }));
    }
}

#[test]
fn only_a_reset_at_the_very_byte_closes_an_established_flow() {
    for family in Family::BOTH {
        let mut flow = established(family);
        flow.pass(segment(Reply, "A", 5001, 1001).len(1000)).pass(segment(Original, "A", 1001, 6001));
        let old = Outcome::Invalid(InvalidReason::TcpOldReset { bound: 6001 });
        for seq in [0, 5500, 6000] {
            assert_eq!(flow.clone().send(segment(Reply, "R", seq, 0)), old, "{seq}");
        }
        let far = flow.clone().send(segment(Reply, "R", 1_005_001, 0));
        assert_eq!(far, Outcome::Invalid(InvalidReason::TcpSeqOverUpper { bound: 16_002 }));
        assert!(at_close(flow.clone().send(segment(Reply, "R", 6001, 0))));
        let unsure = flow.send(segment(Reply, "R", 6101, 0));
        assert_eq!(unsure, Outcome::Accept { timeout: 10, assure: true, changed: false });
        assert_eq!(flow.state(), TcpState::Established);
        flow.pass(segment(Original, "A", 1001, 6001));
        assert_eq!(flow.inner.timeout, 300, "the receiver's challenge keeps it");
    }
}

#[test]
fn a_reset_right_behind_its_senders_own_data_closes_the_flow() {
    let mut flow = established(Family::V4);
    flow.pass(segment(Reply, "A", 5001, 1001).len(10));
    assert!(at_close(flow.send(segment(Reply, "R", 5011, 0))));
}

#[test]
fn an_old_reset_counts_as_inexact_where_invalid_ones_are_ignored() {
    let sysctls = Sysctls { tcp_ignore_invalid_rst: true, ..Sysctls::default() };
    let mut flow = established_with(Family::V4, sysctls);
    let unsure = flow.send(segment(Reply, "R", 5000, 0));
    assert_eq!(unsure, Outcome::Accept { timeout: 10, assure: true, changed: false });
}

#[test]
fn a_reset_ends_a_closing_flow_wherever_its_numbers_are() {
    for family in Family::BOTH {
        let mut flow = established(family);
        flow.pass(segment(Original, "FA", 1001, 5001));
        for direction in [Original, Reply] {
            for (seq, ack) in [(0, 0), (4_000_000_000, 0), (900_000, 900_000)] {
                assert!(at_close(flow.clone().send(segment(direction, "RA", seq, ack))));
            }
        }
    }
}

#[test]
fn a_reset_that_answers_an_ignored_syn_has_that_syns_numbers() {
    let mut flow = established(Family::V4);
    flow.send(segment(Original, "S", 700_000, 0));
    assert!(at_close(flow.clone().send(segment(Reply, "RA", 600_000, 700_001))));
    let other = flow.clone().send(segment(Reply, "RA", 600_000, 1001));
    assert_eq!(other, Outcome::Invalid(InvalidReason::TcpSeqOverUpper { bound: 15_002 }));
    assert!(at_close(flow.send(segment(Reply, "R", 5006, 0))), "nor need it be exact any more");
}

#[test]
fn a_reset_that_answers_an_ignored_ack_has_that_acks_numbers() {
    let mut flow = Flow::open(Family::V4, &segment(Original, "S", 1000, 0));
    let challenge = segment(Reply, "A", 5000, 777).len(100);
    assert_eq!(flow.send(challenge), ignored_in(Kind::Ack, Reply, TcpState::SynSent));
    assert!(at_close(flow.clone().send(segment(Original, "R", 777, 90_000))));
    assert!(at_close(flow.clone().send(segment(Original, "R", 900_000, 5100))));
    let neither = flow.send(segment(Original, "R", 900_000, 5101));
    assert_eq!(neither, Outcome::Invalid(InvalidReason::TcpSeqOverUpper { bound: 1002 }));
}

#[test]
fn a_flow_whose_ends_both_close_out_of_window_is_not_kept_for_days() {
    let mut flow = established(Family::V4);
    let far = |direction, seq| segment(direction, "FA", seq, if direction == Original { 5001 } else { 1001 });
    let first = flow.send(far(Original, 900_000));
    assert_eq!(first, Outcome::Invalid(InvalidReason::TcpSeqOverUpper { bound: 11_002 }));
    let why = InvalidReason::TcpSeqOverUpper { bound: 15_002 };
    assert_eq!(flow.send(far(Reply, 900_000)), Outcome::InvalidEnding { why, least: 120, most: 300 });
    assert_eq!(flow.state(), TcpState::Established);
}

#[test]
fn an_invalid_segment_leaves_the_windows_as_they_were() {
    let mut flow = established(Family::V4);
    let before = *flow.track();
    flow.send(segment(Reply, "A", 5001, 1002));
    flow.send(segment(Original, "A", 900_000, 5001).len(10));
    flow.send(segment(Reply, "S", 1, 0));
    assert_eq!(*flow.track(), before);
}

#[test]
fn a_reset_out_of_window_shortens_a_liberal_flow() {
    let sysctls = Sysctls { tcp_be_liberal: true, ..Sysctls::default() };
    let mut flow = established_with(Family::V4, sysctls);
    flow.pass(segment(Original, "A", 501_001, 5001).len(10));
    assert_eq!(flow.inner.timeout, 432_000, "what was out of window teaches nothing");
    flow.pass(segment(Original, "R", 701_001, 0));
    assert_eq!(flow.shape(), (TcpState::Established, 10));
    flow.pass(segment(Original, "FA", 801_001, 5001));
    assert_eq!(flow.shape(), (TcpState::FinWait, 120));
}
