//! A rebuilt socket is the saved one: by what it would save, and by what it says of itself on a private wire.

use std::collections::VecDeque;

use proptest::prelude::*;
use smoltcp::socket::tcp::State;
use smoltcp::wire::TcpRepr;

use super::*;
use crate::local::Wire;
use crate::local::tcp::TcpStream;
use crate::local::tcp::connection::{Connection, micros};
use crate::local::tcp::image::{ClockImage, OwnerImage, StreamImage};
use crate::local::tcp::rebuild::Scratch;
use crate::local::tcp::segment::{self, Head};
use crate::local::tcp::seq::Seq;
use crate::local::tcp::shim::{EMPTY, RECENT_FOR, number};
use crate::{StreamOptions, StreamState};

const NOW: Instant = Instant::from_millis(5_000_123);

/// Images a saved stack could hold, in every state.
fn images() -> impl Strategy<Value = StreamImage> {
    use StreamState::*;
    let state = prop::sample::select(vec![
        SynSent,
        SynReceived,
        Established,
        FinWait1,
        FinWait2,
        CloseWait,
        Closing,
        LastAck,
        TimeWait,
        Closed,
    ]);
    let numbers = (any::<u32>(), any::<u32>(), any::<u32>(), any::<u32>(), any::<u16>());
    let peer = (
        prop::option::of(any::<u16>()),
        prop::option::of(0..=14_u8),
        any::<bool>(),
        prop::option::of((any::<u32>(), any::<u32>(), 0..=micros(RECENT_FOR))),
    );
    let buffers = (
        0..4_u32,
        0..4_u32,
        prop::collection::vec(any::<u8>(), 0..16_384),
        prop::collection::vec(any::<u8>(), 0..16_384),
    );
    (state, any::<bool>(), any::<bool>(), numbers, peer, buffers, any::<u64>()).prop_map(
        |(
            state,
            v6,
            passive,
            (iss, base, start, sent, window),
            (mss, scale, sack, clock),
            (rx, tx, unread, unacked),
            time,
        )| {
            let end = |v4: &str, v6_text: &str, port| (if v6 { v6_text } else { v4 }.parse().unwrap(), port);
            let options =
                StreamOptions { receive_buffer: 2048 << rx, send_buffer: 2048 << tx, ..StreamOptions::default() };
            let mut image = StreamImage {
                local: end("10.0.0.1", "fd00::1", 80),
                remote: end("10.0.0.2", "fd00::2", 40_000),
                state,
                owner: OwnerImage::Embedder,
                listener: None,
                options,
                iss,
                base,
                nxt: base,
                start,
                peer_mss: mss,
                peer_scale: scale,
                peer_sack: sack,
                peer_window: window,
                clock: clock.map(|(value, recent, recent_for)| ClockImage { value, recent: Some(recent), recent_for }),
                unread: unread.into_iter().take(2048 << rx).collect(),
                unacked: unacked.into_iter().take(2048 << tx).collect(),
                patience: None,
                timer: 0,
            };
            match state {
                SynSent | SynReceived => {
                    image.unread.clear();
                    image.unacked.clear();
                    image.base = iss.wrapping_add(1);
                    image.nxt = image.base;
                    if state == SynSent {
                        (image.peer_mss, image.peer_scale, image.peer_sack) = (None, None, false);
                        (image.peer_window, image.start) = (0, 0);
                        image.clock = Some(ClockImage { value: time as u32, recent: None, recent_for: 0 });
                    } else if passive {
                        image.listener = Some(1);
                    }
                }
                FinWait2 | TimeWait | Closed => {
                    image.unacked.clear();
                    image.nxt = base.wrapping_add(1);
                    if state == Closed {
                        image.unread.push(7);
                        image.unread.truncate(2048);
                    }
                }
                _ => {
                    let most = image.unacked.len() as u32 + u32::from(image.has_fin());
                    image.nxt = base.wrapping_add(sent % (most + 1));
                }
            }
            if image.has_timer() {
                image.timer = time % 60_000_000;
            }
            image.patience = image.waits_for().map(|_| time % 1_000_000_000);
            image
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn a_rebuilt_socket_would_be_saved_as_it_was(image in images()) {
        let mut connection = rebuilt(&image);
        prop_assert_eq!(saved(&mut connection), image);
    }

    #[test]
    fn a_rebuilt_socket_says_of_itself_what_was_saved(image in images()) {
        use StreamState::*;
        let mut connection = rebuilt(&image);
        let said = interrogate(&mut connection);
        if image.state != SynSent && image.state != SynReceived && image.state != Closed {
            prop_assert_eq!(said.rcv_nxt, Some(image.rcv_nxt()));
            let una = connection.una(image.state.into());
            prop_assert_eq!(said.una, una);
        }
        prop_assert_eq!(said.unread, image.unread);
        prop_assert_eq!(said.unacked, image.unacked);
        prop_assert_eq!(said.fin, matches!(image.state, FinWait1 | Closing | LastAck));
    }
}

fn rebuilt(image: &StreamImage) -> Connection {
    Scratch::new(1500, 3).rebuild_in_time(TcpStream(5), image, None, NOW).unwrap()
}

fn saved(connection: &mut Connection) -> StreamImage {
    connection.image(NOW)
}

/// What a socket says, in the wire's numbers.
struct Said {
    rcv_nxt: Option<Seq>,
    una: Seq,
    unread: Vec<u8>,
    unacked: Vec<u8>,
    fin: bool,
}

/// Takes everything out of a socket by what any peer could do: acknowledge what was never sent, wait for the retransmission,
/// take the data with a wide window. Nothing of our own bookkeeping is asked but the offset between the two counts.
fn interrogate(connection: &mut Connection) -> Said {
    let mut unread = vec![0; connection.socket().recv_queue()];
    let read = connection.socket().recv_slice(&mut unread).unwrap_or(0);
    assert_eq!(read, unread.len());
    let mut said = Said { rcv_nxt: None, una: Seq(0), unread, unacked: Vec::new(), fin: false };
    let state = connection.socket().state();
    if matches!(state, State::SynSent | State::SynReceived | State::Closed) {
        return said;
    }
    let mut wire = Wire::new(1500, 11);
    let ends = connection.ends;
    connection.socket().set_nagle_enabled(false);
    let mut at = NOW;
    let offset = connection.shim.inward(Seq(0));
    let outward = |seq: Seq| Seq(seq.0.wrapping_sub(offset.0));
    let mut heard = VecDeque::new();
    let rcv_nxt = connection.rcv_nxt(state, said.unread.len());
    let mut say = |connection: &mut Connection, ack: Seq, at: Instant, heard: &mut VecDeque<Vec<u8>>| {
        let repr =
            TcpRepr { seq_number: number(rcv_nxt), ack_number: Some(number(ack)), window_len: u16::MAX, ..EMPTY };
        let datagram = segment::build(ends.remote, ends.local, &repr).unwrap();
        wire.feed(&datagram, connection.sockets(), at);
        wire.flush(connection.sockets(), at);
        while let Some(sent) = wire.device.take_sent() {
            heard.push_back(sent.datagram);
        }
    };
    say(connection, connection.shim.inward(connection.shim.nxt).plus(1 << 30), at, &mut heard);
    said.rcv_nxt = heard.iter().filter_map(|sent| Head::read(sent)?.ack).next_back();
    let una = connection.shim.inward(connection.una(state));
    said.una = outward(una);
    let mut next = una;
    for _ in 0..64 {
        at = at.saturating_add(core::time::Duration::from_secs(130));
        say(connection, next, at, &mut heard);
        while let Some(sent) = heard.pop_front() {
            let head = Head::read(&sent).unwrap();
            if head.seq == next && head.len() > 0 {
                said.unacked.extend(&sent[sent.len() - head.data as usize..]);
                said.fin |= head.fin;
                next = head.end();
            }
        }
        say(connection, next, at, &mut heard);
    }
    said
}

#[test]
fn an_image_whose_buffers_would_take_too_much_memory_is_refused_before_any_is_taken() {
    use hibernet_snapshot::Snapshot;
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    use crate::local::tcp::image::{CookiesImage, TcpSection};

    let mut runner = TestRunner::deterministic();
    let image = images().prop_filter("open", |image| image.state == StreamState::Established);
    let mut image = image.new_tree(&mut runner).unwrap().current();
    (image.options.receive_buffer, image.options.send_buffer) = (64 << 20, 64 << 20);
    let section = |count: u64| {
        let stream = |id: u64| {
            let mut image = image.clone();
            image.remote.1 = 1000 + id as u16;
            (id, image)
        };
        let streams = (0..count).map(stream).collect();
        let cookies = CookiesImage { period: 0, sent: [0; 2], finished: [0; 2] };
        let (listeners, ended) = Default::default();
        TcpSection { next_stream: 1000, next_listener: 1, listeners, streams, ended, cookies }
    };
    let restore = |count| TcpSection::restore(section(count).save(), (), &mut Entropy::from_test_seed(1)).map(|_| ());
    assert_eq!(restore(128), Ok(()));
    let refused = restore(129).unwrap_err().to_string();
    assert_eq!(refused, "streams: found buffers of 17314086912 bytes, expected 17179869184 at most");
}
