//! The network around a gateway: what is under way in it, and what comes next.

use std::time::Duration;

use hibernet_snapshot::Instant;

use super::dice::Dice;
use super::gateway::START;
use super::{hosts, openings};

/// A datagram on a link of the gateway.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// The link's name.
    pub link: &'static str,
    /// The datagram, from the IP header on.
    pub bytes: Vec<u8>,
}

impl Frame {
    pub(super) const fn new(link: &'static str, bytes: Vec<u8>) -> Self {
        Self { link, bytes }
    }
}

/// One thing that happens to a stack.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    /// When.
    pub at: Instant,
    /// What arrives; `None` where time passes alone and the stack is polled.
    pub frame: Option<Frame>,
}

/// Hosts, wires and a clock. The same dice bring the same traffic, as long as the gateway lets the same out.
#[derive(Debug)]
pub(super) struct Network {
    dice: Dice,
    now: Instant,
    under_way: Vec<Frame>,
    /// Frames that have left the gateway: what is repeated, and complained of.
    sent: Vec<Frame>,
    tcp_echo: bool,
}

impl Network {
    pub(super) fn new(seed: u64, tcp_echo: bool) -> Self {
        Self { dice: Dice::new(seed), now: START, under_way: Vec::new(), sent: Vec::new(), tcp_echo }
    }

    /// The first packet of the flow of that number, at once.
    pub(super) fn open(&mut self, number: u32) -> Step {
        Step { at: self.now, frame: Some(openings::distinct(number)) }
    }

    /// What comes next: answers under way, repetitions, errors, and with `fresh` new flows and junk.
    pub(super) fn next(&mut self, fresh: bool) -> Step {
        let pause = match self.dice.below(64) {
            0 => 1000 + self.dice.below(20_000),
            1..8 => self.dice.below(500),
            _ => self.dice.below(5),
        };
        self.now = self.now.saturating_add(Duration::from_millis(pause));
        let frame = match self.dice.below(16) {
            0..9 if !self.under_way.is_empty() => {
                let at = self.dice.below(self.under_way.len() as u64) as usize;
                Some(self.under_way.swap_remove(at))
            }
            9 => None,
            10 | 11 if !self.sent.is_empty() => self.repeated(),
            12 if !self.sent.is_empty() => {
                let about = self.dice.pick(&self.sent).clone();
                openings::complaint(&mut self.dice, &about)
            }
            13 if fresh => Some(openings::junk(&mut self.dice)),
            14 if fresh && self.dice.one_in(2) => {
                let mut parts = openings::fragments(&mut self.dice);
                let first = parts.remove(0);
                self.under_way.extend(parts);
                Some(first)
            }
            _ if fresh => Some(openings::opening(&mut self.dice, self.tcp_echo)),
            _ => None,
        };
        Step { at: self.now, frame }
    }

    /// A frame has come out of the gateway: its host may answer, the wire may lose or double the answer.
    pub(super) fn carry(&mut self, frame: Frame) {
        let copies = match self.dice.below(32) {
            0 => 0,
            1 => 2,
            _ => 1,
        };
        for _ in 0..copies {
            if let Some(bytes) = hosts::answer(&mut self.dice, &frame.bytes) {
                self.under_way.push(Frame::new(frame.link, bytes));
            }
        }
        if self.under_way.len() > IN_THE_AIR {
            self.under_way.remove(0);
        }
        if self.sent.len() == REMEMBERED {
            self.sent.remove(0);
        }
        self.sent.push(frame);
    }

    /// The answer to a frame of a while ago, once more.
    fn repeated(&mut self) -> Option<Frame> {
        let frame = self.dice.pick(&self.sent).clone();
        Some(Frame::new(frame.link, hosts::answer(&mut self.dice, &frame.bytes)?))
    }
}

const IN_THE_AIR: usize = 200;
const REMEMBERED: usize = 300;
