//! Streams between two stacks over a link that loses, doubles and reorders, with checkpoints at random moments.

use core::time::Duration;
use std::collections::BTreeMap;

use hibernet_snapshot::Instant;

use super::*;
use crate::local::tcp::segment::Head;
use crate::{Ingress, ListenOptions, Offload, StreamOptions, StreamState, TcpListener, TcpStream};

/// Splitmix64: numbers that a seed determines.
struct Lot(u64);

impl Lot {
    fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.draw() % bound
    }

    fn chance(&mut self, permille: u64) -> bool {
        self.below(1000) < permille
    }
}

/// One end, with what it has to send and what it got.
struct End {
    stack: Stack,
    listener: Option<TcpListener>,
    stream: Option<TcpStream>,
    to_send: Vec<u8>,
    sent: usize,
    got: Vec<u8>,
    finished: bool,
    shut: bool,
    closed: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Checkpoint {
    None,
    /// Saved, and the source goes on.
    Save,
    /// Saved, killed, restored.
    Restore,
}

struct Course {
    trace: Vec<Vec<u8>>,
    /// In which states streams were when they were restored, and how often.
    restored: BTreeMap<StreamState, usize>,
}

/// What a run is made of.
#[derive(Clone, Copy)]
struct Plan {
    seed: u64,
    bytes: usize,
    loss: u64,
    options: StreamOptions,
    checkpoint: Checkpoint,
}

fn run(plan: Plan) -> Course {
    let Plan { seed, bytes, loss, options, checkpoint } = plan;
    let mut lot = Lot(seed);
    // Checkpoints have a lot of their own: without them all else is the same.
    let mut when = Lot(seed ^ 0xc0ff_ee00);
    let v6 = seed % 2 == 1;
    let coalesces = seed % 4 >= 2;
    let mut now = Instant::from_secs(seed % 3 * 50);
    let end = |stack: Stack, tag: u8| End {
        stack,
        listener: None,
        stream: None,
        to_send: (0..bytes).map(|at| (at as u8).wrapping_mul(31).wrapping_add(tag) ^ (at >> 8) as u8).collect(),
        sent: 0,
        got: Vec::new(),
        finished: false,
        shut: false,
        closed: false,
    };
    let mut ends = [end(near(), 1), end(far(), 2)];
    ends[1].listener = Some(
        ends[1]
            .stack
            .tcp_listen("::".parse().unwrap(), 80, ListenOptions { stream: options, ..ListenOptions::default() })
            .unwrap(),
    );
    ends[0].stream = Some(ends[0].stack.tcp_connect(None, (far_addr(v6), 80).into(), options, now).unwrap());
    let mut wire: Vec<(Instant, usize, Vec<u8>)> = Vec::new();
    let mut course = Course { trace: Vec::new(), restored: BTreeMap::new() };
    for step in 0..60_000_u64 {
        let quiet = wire.is_empty() && ends.iter().all(|end| end.shut && end.finished || end.stream.is_none());
        now = now.saturating_add(Duration::from_micros(500 + lot.below(if quiet { 500_000 } else { 20_000 })));
        wire.sort_by_key(|(at, ..)| *at);
        let (due, later): (Vec<_>, Vec<_>) = wire.into_iter().partition(|(at, ..)| *at <= now);
        wire = later;
        let mut bursts = [Vec::new(), Vec::new()];
        for (_, to, frame) in due {
            bursts[to].push(Ingress { frame, offload: Offload::NONE });
        }
        for (end, burst) in ends.iter_mut().zip(bursts) {
            let link = link(&end.stack);
            end.stack.set_link_coalescing(link, coalesces);
            end.stack.ingress_burst(link, burst, now);
        }
        for (at, end) in ends.iter_mut().enumerate() {
            end.stack.poll(now);
            end.act(&mut lot, now);
            if checkpoint != Checkpoint::None && when.chance(if step < 40 { 200 } else { 30 }) {
                if checkpoint == Checkpoint::Save {
                    end.stack.save(GENERATION, now).unwrap();
                } else {
                    let state = end.stream.and_then(|stream| end.stack.tcp_state(stream));
                    let (heir, report) = reborn(&end.stack, seed * 1_000_000 + step, now);
                    let half_open = report
                        .streams
                        .iter()
                        .any(|report| heir.tcp_state(report.stream) == Some(StreamState::SynReceived));
                    let state = if half_open { Some(StreamState::SynReceived) } else { state };
                    if let Some(state) = state {
                        *course.restored.entry(state).or_default() += 1;
                    }
                    end.stack = heir;
                }
            }
            while let Some(out) = end.stack.egress() {
                let head = Head::read(&out.datagram).unwrap();
                // A copy of the last acknowledgement may come to who is through with the connection.
                let is_over = end.closed
                    || end.stream.and_then(|stream| end.stack.tcp_state(stream)) == Some(StreamState::Closed);
                assert!(!head.rst || is_over, "seed {seed}: a reset from end {at} at step {step}");
                course.trace.push(out.datagram.clone());
                for _ in 0..=usize::from(lot.chance(loss)) {
                    if !lot.chance(loss) {
                        let most = if lot.chance(100) { 40_000 } else { 2000 };
                        let delay = Duration::from_micros(1000 + lot.below(most));
                        wire.push((now.saturating_add(delay), 1 - at, out.datagram.clone()));
                    }
                }
            }
            while end.stack.next_event().is_some() {}
        }
        if ends.iter().all(|end| end.closed) && wire.is_empty() {
            break;
        }
    }
    for (at, end) in ends.iter().enumerate() {
        assert!(
            end.finished && end.closed,
            "seed {seed}: end {at} got {} of {bytes} bytes, state {:?}",
            end.got.len(),
            end.stream.map(|stream| end.stack.tcp_state(stream))
        );
        assert!(end.got == ends[1 - at].to_send, "seed {seed}: end {at} got other bytes");
    }
    course
}

impl End {
    fn act(&mut self, lot: &mut Lot, now: Instant) {
        if self.stream.is_none() {
            self.stream = self.listener.and_then(|listener| self.stack.tcp_accept(listener));
        }
        let Some(stream) = self.stream.filter(|_| !self.closed) else { return };
        if self.sent < self.to_send.len() && lot.chance(700) {
            let piece = (1 + lot.below(9000) as usize).min(self.to_send.len() - self.sent);
            match self.stack.tcp_write(stream, &self.to_send[self.sent..self.sent + piece], now) {
                Ok(taken) => self.sent += taken,
                Err(error) => assert_eq!(error, crate::StreamError::WouldBlock),
            }
        }
        if self.sent == self.to_send.len() && !self.shut && lot.chance(200) {
            self.stack.tcp_shutdown(stream, now).unwrap();
            self.shut = true;
        }
        if lot.chance(500) {
            let mut room = vec![0; 1 + lot.below(9000) as usize];
            match self.stack.tcp_read(stream, &mut room, now) {
                Ok(0) => self.finished = true,
                Ok(taken) => self.got.extend(&room[..taken]),
                Err(error) => assert_eq!(error, crate::StreamError::WouldBlock),
            }
        }
        if self.finished && self.shut && self.stack.tcp_state(stream) == Some(StreamState::Closed) {
            self.stack.tcp_close(stream, now);
            self.closed = true;
        }
    }
}

/// Options and loss that differ from seed to seed.
fn plan(seed: u64, checkpoint: Checkpoint) -> Plan {
    let mut lot = Lot(seed.wrapping_mul(77));
    let options = StreamOptions {
        receive_buffer: 2048 << lot.below(7),
        send_buffer: 2048 << lot.below(7),
        nodelay: lot.chance(500),
        congestion: match lot.below(3) {
            0 => crate::Congestion::None,
            1 => crate::Congestion::Reno,
            _ => crate::Congestion::Cubic,
        },
        ..StreamOptions::default()
    };
    Plan { seed, bytes: lot.below(20_000) as usize, loss: [0, 5, 30, 60][lot.below(4) as usize], options, checkpoint }
}

#[test]
fn streams_are_whole_through_checkpoints_at_any_moment_and_in_every_state() {
    let mut restored = BTreeMap::new();
    for seed in 0..100 {
        for (state, times) in run(plan(seed, Checkpoint::Restore)).restored {
            *restored.entry(state).or_insert(0) += times;
        }
    }
    use StreamState::*;
    for state in [SynSent, SynReceived, Established, FinWait1, FinWait2, CloseWait, Closing, LastAck, TimeWait] {
        assert!(restored.get(&state).is_some_and(|times| *times >= 3), "{state:?}: {restored:?}");
    }
}

#[test]
fn a_save_changes_nothing_that_can_be_seen() {
    for seed in 0..8 {
        let without = run(plan(seed, Checkpoint::None)).trace;
        let with = run(plan(seed, Checkpoint::Save)).trace;
        assert!(without == with, "seed {seed}");
    }
}
