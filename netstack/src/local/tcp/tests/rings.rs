//! Bursts, rings that grow and shrink, the wait for an acknowledgement, and what smoltcp can read.

use core::task::Waker;
use core::time::Duration;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Wake;

use proptest::prelude::*;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{TcpPacket, TcpRepr};

use super::rules::Talk;
use super::*;
use crate::StreamOptions;
use crate::local::tcp::rings::Rings;
use crate::local::tcp::segment::{self, Head};
use crate::local::tcp::shim::{EMPTY, number};

/// Sizes of the rings of the one connection there is: receive, send.
fn rings(talk: &Talk) -> (usize, usize) {
    let live = &talk.stack.local.tcp.live;
    let (_, connection) = live.iter().next().unwrap();
    connection.look(|socket| (socket.recv_capacity(), socket.send_capacity()))
}

fn read(talk: &mut Talk) -> Vec<u8> {
    let mut room = vec![0; 1 << 18];
    let taken = talk.stack.tcp_read(talk.stream, &mut room, talk.now).unwrap();
    room.truncate(taken);
    room
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at % 251) as u8).collect()
}

#[test]
fn a_burst_is_acknowledged_once_when_it_is_over() {
    let mut talk = Talk::open(false, Some(1), StreamOptions::default());
    let early = talk.say(TcpRepr { payload: &[0], ..EMPTY }, Some(talk.ack), talk.seq.plus(1));
    assert_eq!(early.len(), 1, "what comes out of order is answered at once");
    talk.say(TcpRepr { payload: &[0], ..EMPTY }, Some(talk.ack), talk.seq);
    talk.seq = talk.seq.plus(2);
    for piece in pattern(5000).chunks(1000) {
        let stamp = Some(smoltcp::wire::TcpTimestampRepr::new(1, 0));
        let repr = TcpRepr {
            seq_number: number(talk.seq),
            ack_number: Some(number(talk.ack)),
            window_len: 65_535,
            timestamp: stamp,
            payload: piece,
            ..EMPTY
        };
        let datagram = segment::build(talk.peer, talk.host, &repr).unwrap();
        let link = link(&talk.stack);
        talk.stack.ingress(link, datagram, talk.now);
        talk.seq = talk.seq.plus(1000);
    }
    assert_eq!(talk.stack.next_deadline(talk.now), Some(talk.now), "there is something to be sent");
    let answers = talk.answers();
    assert_eq!(answers.iter().map(|answer| answer.ack).collect::<Vec<_>>(), [Some(talk.seq)]);
    assert_ne!(talk.stack.next_deadline(talk.now), Some(talk.now));
    assert_eq!(read(&mut talk)[2..], pattern(5000));
}

#[test]
fn a_stream_that_carries_little_has_small_rings_and_offers_the_full_window() {
    let options = StreamOptions { receive_buffer: 1 << 18, ..StreamOptions::default() };
    let mut talk = Talk::open(false, None, options);
    // The peer of these tests scales no windows.
    for _ in 0..50 {
        let answer = talk.say(TcpRepr { payload: &[7; 700], ..EMPTY }, Some(talk.ack), talk.seq).pop().unwrap();
        talk.seq = talk.seq.plus(700);
        assert_eq!((answer.ack, answer.window), (Some(talk.seq), 65_535));
        assert_eq!(read(&mut talk).len(), 700);
        assert!(talk.answers().is_empty(), "the peer was told of the room already");
        talk.stack.tcp_write(talk.stream, &[8; 900], talk.now).unwrap();
        assert_eq!(talk.answers().iter().map(|sent| sent.data).sum::<u32>(), 900);
        talk.ack = talk.ack.plus(900);
        talk.say(EMPTY, Some(talk.ack), talk.seq);
    }
    assert_eq!(rings(&talk), (2048, 2048));
}

#[test]
fn rings_grow_before_a_segment_that_does_not_fit_or_comes_out_of_order_is_lost() {
    let options = StreamOptions { receive_buffer: 1 << 15, ..StreamOptions::default() };
    for v6 in [false, true] {
        let bytes = pattern(3000);
        let mut talk = Talk::open(v6, Some(3), options);
        let piece = |at: usize| TcpRepr { payload: &bytes[at..at + 1000], ..EMPTY };
        for at in [0, 1000] {
            talk.say(piece(at), Some(talk.ack), talk.seq.plus(at as u32));
        }
        assert_eq!(rings(&talk).0, 2048, "both fit");
        let answers = talk.say(piece(2000), Some(talk.ack), talk.seq.plus(2000));
        assert_eq!(answers.last().unwrap().ack, Some(talk.seq.plus(3000)));
        assert_eq!((rings(&talk).0, read(&mut talk)), (1 << 15, bytes.clone()));

        let mut talk = Talk::open(v6, None, options);
        let early = talk.say(piece(1000), Some(talk.ack), talk.seq.plus(1000));
        assert_eq!(early.last().unwrap().ack, Some(talk.seq));
        assert_eq!(rings(&talk).0, 1 << 15);
        talk.say(piece(0), Some(talk.ack), talk.seq);
        assert_eq!(read(&mut talk), bytes[..2000]);

        let mut talk = Talk::open(v6, None, options);
        talk.say(TcpRepr { payload: b"?", ..EMPTY }, Some(talk.ack), talk.seq.plus(1 << 15));
        talk.say(TcpRepr { payload: b"?", ..EMPTY }, Some(talk.ack), talk.seq.minus(1));
        assert_eq!(rings(&talk).0, 2048, "nothing that is not in the window takes memory");
    }
}

#[test]
fn a_write_that_does_not_fit_brings_the_full_send_buffer_and_sends_nothing_twice() {
    let mut talk = Talk::open(false, Some(3), StreamOptions::default());
    let bytes = pattern(60_000);
    assert_eq!(talk.stack.tcp_write(talk.stream, &bytes[..500], talk.now), Ok(500));
    assert_eq!(talk.stack.tcp_write(talk.stream, &bytes[500..], talk.now), Ok(59_500));
    assert_eq!(rings(&talk).1, 65_536);
    let first = talk.ack;
    let mut sent = 0;
    for _ in 0..100 {
        for head in talk.answers() {
            assert_eq!(head.seq, first.plus(sent));
            sent += head.data;
        }
        talk.ack = first.plus(sent);
        let ack = talk.ack;
        let repr = TcpRepr { window_len: 65_535, ..EMPTY };
        for head in talk.say(repr, Some(ack), talk.seq) {
            assert_eq!(head.seq, first.plus(sent));
            sent += head.data;
        }
    }
    assert_eq!(sent, 60_000);
}

struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_connection_that_rests_gives_its_rings_back_and_wakes_who_waits_for_it() {
    let mut talk = Talk::open(false, None, StreamOptions::default());
    let bytes = pattern(3000);
    for piece in bytes.chunks(1000) {
        talk.say(TcpRepr { payload: piece, ..EMPTY }, Some(talk.ack), talk.seq);
        talk.seq = talk.seq.plus(1000);
    }
    assert_eq!(read(&mut talk), bytes);
    assert!(rings(&talk).0 > 2048);
    let count = Arc::new(Count(AtomicUsize::new(0)));
    talk.stack.tcp_wake_on_read(talk.stream, &Waker::from(Arc::clone(&count)));
    let rests = talk.stack.next_deadline(talk.now).unwrap();
    talk.now = talk.now.saturating_add(Duration::from_secs(5));
    assert!(rests <= talk.now);
    talk.stack.poll(talk.now);
    assert!(talk.answers().is_empty(), "nobody else sees it");
    assert_eq!((rings(&talk), count.0.load(Ordering::Relaxed)), ((2048, 2048), 1));
    let answer = talk.say(TcpRepr { payload: &[9; 1000], ..EMPTY }, Some(talk.ack), talk.seq).pop().unwrap();
    assert_eq!(answer.ack, Some(talk.seq.plus(1000)));
    assert_eq!(read(&mut talk), [9; 1000]);
}

#[test]
fn a_lost_segment_is_sent_again_as_soon_as_the_round_trip_allows() {
    let again = |stamp: Option<u32>| {
        let mut talk = Talk::open(false, stamp, StreamOptions::default());
        for _ in 0..8 {
            talk.stack.tcp_write(talk.stream, &[1; 100], talk.now).unwrap();
            talk.answers();
            talk.now = talk.now.saturating_add(Duration::from_millis(2));
            talk.ack = talk.ack.plus(100);
            talk.say(EMPTY, Some(talk.ack), talk.seq);
        }
        talk.stack.tcp_write(talk.stream, &[2; 100], talk.now).unwrap();
        talk.answers();
        let begun = talk.now;
        let mut at = Vec::new();
        for _ in 0..900 {
            talk.now = talk.now.saturating_add(Duration::from_millis(1));
            talk.stack.poll(talk.now);
            let sent = talk.answers();
            at.extend(
                sent.iter().filter(|head| head.data == 100).map(|_| talk.now.saturating_since(begun).as_millis()),
            );
        }
        at
    };
    assert_eq!(again(None), [202, 605], "the wait doubles");
    assert_eq!(again(Some(9)).len(), 2);
}

proptest! {
    #[test]
    fn what_smoltcp_cannot_read_is_known_before_it_would_be_dropped_in_silence(
        mut bytes in prop::collection::vec(any::<u8>(), 20..80),
        offset in 4..12_u8,
        kinds in prop::collection::vec((0..60_usize, 0..9_u8), 0..6),
    ) {
        bytes[12] = offset << 4;
        for (at, kind) in kinds {
            if let Some(byte) = bytes.get_mut(20 + at) {
                *byte = kind;
            }
        }
        let ends: [std::net::Ipv4Addr; 2] = ["10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()];
        let is_readable = TcpPacket::new_checked(bytes.as_slice()).is_ok_and(|packet| {
            TcpRepr::parse(&packet, &ends[0].into(), &ends[1].into(), &ChecksumCapabilities::ignored()).is_ok()
        });
        let mut datagram = vec![0x45; 20];
        datagram.extend(bytes);
        prop_assert_eq!(Head::read(&datagram).is_some_and(|head| head.readable), is_readable);
    }
}

#[test]
fn rings_are_as_large_as_they_must_be() {
    let full = Rings::full(&StreamOptions::default(), 1460);
    assert_eq!(Rings::holding(full, 2048, 0), Rings::holding(full, 0, 0));
    assert_eq!(Rings::holding(full, 2049, 0), Rings::holding(full, 0, 0).receiving(full));
    assert_eq!(Rings::holding(full, 0, 5000), Rings::holding(full, 0, 0).sending(full));
}
