//! Who may change a connection: RFC 5961, RFC 7323, and acknowledgements at the edge of the window.

use core::net::SocketAddr;
use core::time::Duration;

use smoltcp::wire::{TcpControl, TcpRepr, TcpTimestampRepr};

use super::*;
use crate::local::tcp::TcpStream;
use crate::local::tcp::segment::{self, Head};
use crate::local::tcp::seq::Seq;
use crate::local::tcp::shim::{EMPTY, number};
use crate::{DropReason, ListenOptions, StreamError, StreamOptions, StreamState};

/// A peer made of segments, and the stack it talks to.
pub(super) struct Talk {
    pub(super) stack: Stack,
    pub(super) peer: SocketAddr,
    pub(super) host: SocketAddr,
    pub(super) now: Instant,
    pub(super) stream: TcpStream,
    /// The peer's next number, and the host's.
    pub(super) seq: Seq,
    pub(super) ack: Seq,
    stamp: Option<u32>,
}

impl Talk {
    /// A connection that is open. With `stamp` both use timestamps.
    pub(super) fn open(v6: bool, stamp: Option<u32>, options: StreamOptions) -> Self {
        let mut stack = far();
        let host = SocketAddr::new(far_addr(v6), 80);
        let peer: SocketAddr = if v6 { "[fd00::1]:5000" } else { "10.0.0.1:5000" }.parse().unwrap();
        let now = Instant::from_secs(50);
        let options = ListenOptions { stream: options, ..ListenOptions::default() };
        let listener = stack.tcp_listen("::".parse().unwrap(), 80, options).unwrap();
        let mut talk = Self { stack, peer, host, now, stream: TcpStream(0), seq: Seq(1000), ack: Seq(0), stamp };
        let syn = TcpRepr { control: TcpControl::Syn, window_len: 65_535, max_seg_size: Some(1000), ..EMPTY };
        let answer = talk.say(syn, None, Seq(999)).pop().unwrap();
        talk.ack = answer.seq.plus(1);
        assert!(answer.syn && answer.ack == Some(Seq(1000)));
        assert_eq!(answer.timestamps.is_some(), stamp.is_some());
        assert!(talk.acknowledge().is_empty());
        talk.stream = talk.stack.tcp_accept(listener).unwrap();
        talk
    }

    fn acknowledge(&mut self) -> Vec<Head> {
        self.say(EMPTY, Some(self.ack), self.seq)
    }

    /// Sends a segment; comes back with the answers.
    pub(super) fn say(&mut self, repr: TcpRepr<'_>, ack: Option<Seq>, seq: Seq) -> Vec<Head> {
        let window_len = if repr.window_len == 0 { 65_535 } else { repr.window_len };
        let timestamp = repr.timestamp.or(self.stamp.map(|stamp| TcpTimestampRepr::new(stamp, 0)));
        let repr = TcpRepr { seq_number: number(seq), ack_number: ack.map(number), window_len, timestamp, ..repr };
        let datagram = segment::build(self.peer, self.host, &repr).unwrap();
        let link = link(&self.stack);
        self.stack.ingress(link, datagram, self.now);
        self.answers()
    }

    pub(super) fn answers(&mut self) -> Vec<Head> {
        core::iter::from_fn(|| self.stack.egress()).map(|out| Head::read(&out.datagram).unwrap()).collect()
    }

    fn state(&self) -> StreamState {
        self.stack.tcp_state(self.stream).unwrap()
    }

    fn unacceptable(&self) -> u64 {
        self.stack.stats().dropped(DropReason::TcpUnacceptable)
    }

    /// Whether these answers are one acknowledgement of where the host is.
    fn is_challenge(&self, answers: &[Head]) -> bool {
        matches!(answers, [one] if one.ack == Some(self.seq) && one.len() == 0 && !one.rst)
    }
}

const RST: TcpRepr<'static> = TcpRepr { control: TcpControl::Rst, ..EMPTY };

#[test]
fn a_reset_ends_a_connection_at_the_very_next_byte_and_nowhere_else() {
    for v6 in [false, true] {
        let mut talk = Talk::open(v6, None, StreamOptions::default());
        let inside = talk.say(RST, Some(talk.ack), talk.seq.plus(1));
        assert!(talk.is_challenge(&inside), "in the window: challenged");
        assert!(talk.say(RST, Some(talk.ack), talk.seq.minus(1)).is_empty(), "before the window: ignored");
        assert!(talk.say(RST, Some(talk.ack), talk.seq.plus(200_000)).is_empty(), "behind it: ignored");
        assert_eq!((talk.state(), talk.unacceptable()), (StreamState::Established, 3));
        assert!(talk.say(RST, None, talk.seq).is_empty());
        let mut room = [0; 10];
        assert_eq!(talk.stack.tcp_read(talk.stream, &mut room, talk.now), Err(StreamError::Reset));
        assert_eq!(talk.state(), StreamState::Closed);
    }
}

#[test]
fn a_syn_in_an_open_connection_is_challenged_whatever_its_number() {
    let mut talk = Talk::open(false, None, StreamOptions::default());
    for seq in [talk.seq, talk.seq.minus(1), talk.seq.plus(1_000_000)] {
        let syn = TcpRepr { control: TcpControl::Syn, ..EMPTY };
        let answers = talk.say(syn, None, seq);
        assert!(talk.is_challenge(&answers), "{seq:?}");
    }
    assert_eq!(talk.state(), StreamState::Established);
}

#[test]
fn an_acknowledgement_of_what_was_never_sent_is_challenged_and_takes_nothing_from_the_queue() {
    let mut talk = Talk::open(false, None, StreamOptions::default());
    let small = TcpRepr { window_len: 10, ..EMPTY };
    talk.say(small, Some(talk.ack), talk.seq);
    talk.stack.tcp_write(talk.stream, &[7; 100], talk.now).unwrap();
    assert_eq!(talk.answers().iter().map(|sent| sent.data).sum::<u32>(), 10, "the window holds ten bytes");
    let answers = talk.say(EMPTY, Some(talk.ack.plus(50)), talk.seq);
    assert!(talk.is_challenge(&answers));
    let far_back = talk.ack.minus(70_000);
    let answers = talk.say(EMPTY, Some(far_back), talk.seq);
    assert!(talk.is_challenge(&answers), "older than any window");
    let sent = talk.say(EMPTY, Some(talk.ack.plus(10)), talk.seq);
    assert_eq!(sent.iter().map(|sent| sent.data).sum::<u32>(), 90, "nothing was lost");
}

#[test]
fn challenges_are_counted_for_each_connection_by_itself() {
    let mut talk = Talk::open(false, None, StreamOptions::default());
    let challenges =
        |talk: &mut Talk| (0..50).filter(|_| !talk.say(RST, Some(talk.ack), talk.seq.plus(1)).is_empty()).count();
    assert_eq!(challenges(&mut talk), 10);
    talk.now = talk.now.saturating_add(Duration::from_secs(5));
    assert_eq!(challenges(&mut talk), 10);
}

#[test]
fn a_segment_with_an_older_timestamp_is_dropped_and_answered() {
    let mut talk = Talk::open(false, Some(1000), StreamOptions::default());
    talk.stamp = Some(2000);
    let data = TcpRepr { payload: b"new", ..EMPTY };
    let answer = talk.say(data, Some(talk.ack), talk.seq).pop().unwrap();
    talk.seq = talk.seq.plus(3);
    assert_eq!((answer.ack, answer.timestamps.unwrap().echo), (Some(talk.seq), 2000));
    talk.stamp = Some(1999);
    let old = TcpRepr { payload: b"old", ..EMPTY };
    let answers = talk.say(old, Some(talk.ack), talk.seq);
    assert!(talk.is_challenge(&answers));
    assert_eq!(talk.stack.stats().dropped(DropReason::TcpOldTimestamp), 1);
    let mut room = [0; 10];
    assert_eq!(talk.stack.tcp_read(talk.stream, &mut room, talk.now), Ok(3));
    // After 24 days the timestamp proves nothing any more (RFC 7323, section 5.5).
    talk.now = talk.now.saturating_add(Duration::from_secs(24 * 24 * 3600 + 1));
    talk.say(old, Some(talk.ack), talk.seq);
    assert_eq!(talk.stack.tcp_read(talk.stream, &mut room, talk.now), Ok(3));
}

#[test]
fn timestamps_go_on_over_a_restore_and_start_elsewhere_for_each_connection() {
    let stamp = |talk: &mut Talk| {
        let data = TcpRepr { payload: b"x", ..EMPTY };
        let answer = talk.say(data, Some(talk.ack), talk.seq).pop().unwrap();
        talk.seq = talk.seq.plus(1);
        answer.timestamps.unwrap().value
    };
    let mut talk = Talk::open(false, Some(5), StreamOptions::default());
    let before = stamp(&mut talk);
    let (heir, _) = reborn(&talk.stack, 77, talk.now);
    talk.stack = heir;
    talk.now = talk.now.saturating_add(Duration::from_millis(300));
    assert_eq!(stamp(&mut talk).wrapping_sub(before), 300);
    assert_ne!(stamp(&mut Talk::open(true, Some(5), StreamOptions::default())), before);
}

#[test]
fn an_acknowledgement_at_the_edge_of_a_full_window_counts() {
    let options = StreamOptions { receive_buffer: 2048, ..StreamOptions::default() };
    let mut talk = Talk::open(false, None, options);
    let full = [1; 2048];
    talk.say(TcpRepr { payload: &full, ..EMPTY }, Some(talk.ack), talk.seq);
    talk.seq = talk.seq.plus(2048);
    talk.stack.tcp_write(talk.stream, b"0123456789", talk.now).unwrap();
    assert_eq!(talk.answers().iter().map(|sent| sent.data).sum::<u32>(), 10);
    // The peer probes the closed window with a byte; its acknowledgement is as good as any.
    talk.say(TcpRepr { payload: b"?", ..EMPTY }, Some(talk.ack.plus(10)), talk.seq);
    assert!(talk.stack.local.tcp.live.iter().all(|(_, connection)| connection.unacked.is_empty()));
}

#[test]
fn data_with_an_old_acknowledgement_is_taken_and_an_old_window_is_not() {
    let mut talk = Talk::open(false, None, StreamOptions::default());
    talk.stack.tcp_write(talk.stream, b"0123456789", talk.now).unwrap();
    talk.answers();
    let (old_ack, old_seq) = (talk.ack, talk.seq);
    talk.ack = talk.ack.plus(10);
    talk.say(TcpRepr { payload: b"second", ..EMPTY }, Some(talk.ack), talk.seq.plus(5));
    // Sent before, came after.
    talk.say(TcpRepr { payload: b"first", window_len: 1, ..EMPTY }, Some(old_ack), old_seq);
    let mut room = [0; 20];
    assert_eq!(talk.stack.tcp_read(talk.stream, &mut room, talk.now), Ok(11));
    assert_eq!(&room[..11], b"firstsecond");
    talk.stack.tcp_write(talk.stream, &[0; 100], talk.now).unwrap();
    assert_eq!(talk.answers().iter().map(|sent| sent.data).sum::<u32>(), 100, "not one byte, as the old window says");
}

#[test]
fn a_syn_that_comes_again_is_answered_again() {
    let mut talk = Talk::open(false, None, StreamOptions::default());
    talk.peer.set_port(6000);
    let syn = TcpRepr { control: TcpControl::Syn, max_seg_size: Some(1000), ..EMPTY };
    let first = talk.say(syn, None, Seq(7));
    let again = talk.say(syn, None, Seq(7));
    assert_eq!(first, again);
    assert!(again[0].syn && again[0].ack == Some(Seq(8)));
}

#[test]
fn a_peer_that_falls_silent_is_given_up_and_told() {
    let wait = |options: StreamOptions, write: bool, secs: u64| {
        let mut talk = Talk::open(false, None, options);
        if write {
            talk.stack.tcp_write(talk.stream, b"x", talk.now).unwrap();
        }
        let mut resets = 0;
        for _ in 0..secs {
            talk.now = talk.now.saturating_add(Duration::from_secs(1));
            talk.stack.poll(talk.now);
            resets += talk.answers().iter().filter(|sent| sent.rst).count();
        }
        let mut room = [0; 10];
        (talk.stack.tcp_read(talk.stream, &mut room, talk.now), resets)
    };
    let plain = StreamOptions::default();
    let user = StreamOptions { user_timeout: Some(Duration::from_secs(20)), ..plain };
    let alive = StreamOptions { keepalive: Some(Duration::from_secs(2)), ..plain };
    let (waiting, lost) = (Err(StreamError::WouldBlock), Err(StreamError::TimedOut));
    assert_eq!(wait(plain, false, 2000), (waiting, 0), "nothing to say: no reason to end");
    assert_eq!(wait(plain, true, 924), (waiting, 0));
    assert_eq!(wait(plain, true, 926), (lost, 1));
    assert_eq!(wait(user, true, 19), (waiting, 0));
    assert_eq!(wait(user, true, 21), (lost, 1));
    assert_eq!(wait(user, false, 100), (waiting, 0));
    assert_eq!(wait(alive, false, 19), (waiting, 0));
    assert_eq!(wait(alive, false, 21), (lost, 1));
}

#[test]
fn a_connection_in_time_wait_makes_way_for_a_newer_one_with_higher_numbers() {
    let mut talk = Talk::open(false, None, StreamOptions::default());
    talk.stack.tcp_close(talk.stream, talk.now);
    let fin = talk.answers().pop().unwrap();
    assert!(fin.fin);
    talk.ack = fin.end();
    let last = talk.ack;
    talk.say(TcpRepr { control: TcpControl::Fin, ..EMPTY }, Some(talk.ack), talk.seq);
    talk.seq = talk.seq.plus(1);
    let syn = TcpRepr { control: TcpControl::Syn, ..EMPTY };
    let old = talk.say(syn, None, talk.seq.minus(100));
    assert!(!old.iter().any(|answer| answer.syn), "an older SYN opens nothing");
    let (heir, _) = reborn(&talk.stack, 50, talk.now);
    talk.stack = heir;
    let new = talk.say(syn, None, talk.seq.plus(100_000)).pop().unwrap();
    assert!(new.syn && new.ack == Some(talk.seq.plus(100_001)));
    assert!(new.seq.since(last) > 0, "the new numbers are behind the last ones, also under another key");
}

#[test]
fn closing_with_unread_bytes_resets_and_without_does_not() {
    for unread in [false, true] {
        let mut talk = Talk::open(false, None, StreamOptions::default());
        if unread {
            talk.say(TcpRepr { payload: b"x", ..EMPTY }, Some(talk.ack), talk.seq);
        }
        talk.stack.tcp_close(talk.stream, talk.now);
        let last = talk.answers().pop().unwrap();
        assert_eq!((last.rst, last.fin), (unread, !unread));
        assert_eq!(talk.stack.tcp_write(talk.stream, b"x", talk.now), Err(StreamError::NoSuchStream));
    }
}

#[test]
fn a_handle_outlives_its_connection_until_it_is_given_back_also_over_a_restore() {
    let mut talk = Talk::open(false, None, StreamOptions::default());
    talk.say(RST, None, talk.seq);
    let (mut heir, _) = reborn(&talk.stack, 5, talk.now);
    let mut room = [0; 1];
    assert_eq!(heir.tcp_read(talk.stream, &mut room, talk.now), Err(StreamError::Reset));
    assert_eq!(heir.tcp_state(talk.stream), Some(StreamState::Closed));
    heir.tcp_close(talk.stream, talk.now);
    assert_eq!(heir.tcp_state(talk.stream), None);
    let (heir, _) = reborn(&heir, 6, talk.now);
    assert!(heir.tcp_streams().is_empty());
}

#[test]
fn an_embedder_finds_its_listeners_and_streams_again_by_ids_it_has_saved() {
    let talk = Talk::open(true, None, StreamOptions::default());
    let (listeners, streams) = (talk.stack.tcp_listeners(), talk.stack.tcp_streams());
    assert_eq!((listeners.len(), &streams), (1, &vec![talk.stream]));
    let noted = serde_json::to_string(&(&listeners, &streams)).unwrap();
    let (heir, _) = reborn(&talk.stack, 5, talk.now);
    assert_eq!((heir.tcp_listeners(), heir.tcp_streams()), serde_json::from_str(&noted).unwrap());
    assert_eq!(heir.tcp_listener_addr(listeners[0]), talk.stack.tcp_listener_addr(listeners[0]));
}

#[test]
fn a_stream_that_is_given_back_before_it_was_accepted_is_not_accepted_any_more() {
    for (acknowledged, abort) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut talk = Talk::open(false, None, StreamOptions::default());
        let listener = talk.stack.tcp_listeners()[0];
        talk.peer.set_port(6000);
        let syn = TcpRepr { control: TcpControl::Syn, ..EMPTY };
        let answer = talk.say(syn, None, Seq(7)).pop().unwrap();
        if acknowledged {
            talk.say(EMPTY, Some(answer.end()), Seq(8));
        }
        let stream = *talk.stack.tcp_streams().last().unwrap();
        if abort {
            talk.stack.tcp_abort(stream, talk.now);
        } else {
            talk.stack.tcp_close(stream, talk.now);
        }
        talk.say(EMPTY, Some(answer.end()), Seq(8));
        let (mut heir, _) = reborn(&talk.stack, 9, talk.now);
        assert_eq!(heir.tcp_accept(listener), None);
    }
}

#[test]
fn an_unreachable_peer_ends_a_connection_that_is_being_opened_and_explains_the_timeout_of_one_that_is_open() {
    use crate::local::udp::tests::icmp_error;
    use crate::stack::Errno;

    let now = Instant::from_secs(50);
    for v6 in [false, true] {
        let by: IpAddr = if v6 { "fd00::9" } else { "10.0.0.9" }.parse().unwrap();
        let [net, host, port] = if v6 { [(1, 0), (1, 3), (1, 4)] } else { [(3, 0), (3, 1), (3, 3)] };
        let expected =
            [(net, Errno::NetworkUnreachable), (host, Errno::HostUnreachable), (port, Errno::ConnectionRefused)];
        for ((kind, code), errno) in expected {
            let mut stack = near();
            let stream = stack.tcp_connect(None, (far_addr(v6), 80).into(), StreamOptions::default(), now).unwrap();
            let syn = stack.egress().unwrap().datagram;
            let link = link(&stack);
            let at = if v6 { 40 } else { 20 };
            let mut other = syn.clone();
            other[at + 4] ^= 0x80;
            stack.ingress(link, icmp_error(by, kind, code, &other), now);
            assert_eq!(stack.tcp_state(stream), Some(StreamState::SynSent), "no number of ours");
            stack.ingress(link, icmp_error(by, kind, code, &syn), now);
            assert!(stack.egress().is_none());
            let error = stack.tcp_read(stream, &mut [0], now).unwrap_err();
            assert_eq!(error.errno(), errno, "{error}");
            let (mut heir, _) = reborn(&stack, 4, now);
            assert!(heir.tcp_read(stream, &mut [0], now).is_err());
        }
        let options = StreamOptions { user_timeout: Some(Duration::from_secs(20)), ..StreamOptions::default() };
        let mut talk = Talk::open(v6, None, options);
        talk.stack.tcp_write(talk.stream, b"x", talk.now).unwrap();
        let sent = talk.stack.egress().unwrap().datagram;
        let link = link(&talk.stack);
        talk.stack.ingress(link, icmp_error(by, host.0, host.1, &sent), talk.now);
        assert_eq!(talk.state(), StreamState::Established, "it may pass");
        talk.now = talk.now.saturating_add(Duration::from_secs(21));
        talk.stack.poll(talk.now);
        let error = talk.stack.tcp_read(talk.stream, &mut [0], talk.now).unwrap_err();
        assert_eq!(error.errno(), Errno::HostUnreachable);
    }
}

#[test]
fn a_connection_that_no_route_leads_to_is_not_opened() {
    let mut stack = near();
    let (from, to) = ("10.0.0.1:5000".parse().unwrap(), "192.0.2.1:80".parse().unwrap());
    for from in [None, Some(from)] {
        let refused = stack.tcp_connect(from, to, StreamOptions::default(), Instant::ZERO);
        assert_eq!(refused, Err(crate::LocalError::NoRoute { remote: to.ip() }));
    }
}
