//! A link that loses, doubles and delays frames by lot, and loses those of chosen ports.

use std::collections::VecDeque;

use super::flow::Lot;
use super::protocol::{Block, Weather};

/// The link's state.
pub(super) struct Sky {
    weather: Weather,
    lot: Lot,
    blocks: Vec<Block>,
    /// Held back: direction, frame, and how many frames may still overtake it.
    late: VecDeque<(Way, Vec<u8>, u64)>,
    /// Frames lost, doubled, late.
    pub(super) counts: [u64; 3],
}

/// Where a frame goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    Inward,
    Outward,
}

impl Sky {
    pub(super) fn clear() -> Self {
        let weather = Weather::default();
        Self { weather, lot: Lot(0), blocks: Vec::new(), late: VecDeque::new(), counts: [0; 3] }
    }

    pub(super) fn set(&mut self, weather: Weather) {
        self.lot = Lot(weather.seed);
        self.weather = weather;
    }

    pub(super) fn block(&mut self, blocks: Vec<Block>) {
        self.blocks = blocks;
    }

    /// What arrives when this frame is sent.
    pub(super) fn pass(&mut self, way: Way, frame: Vec<u8>) -> Vec<Vec<u8>> {
        if self.is_blocked(way, &frame) {
            return Vec::new();
        }
        if self.weather == (Weather { seed: self.weather.seed, ..Weather::default() }) {
            return vec![frame];
        }
        let [lost, doubled, late] = &mut self.counts;
        let drawn = self.lot.below(10_000);
        let Weather { lost: loss, doubled: doubles, late: delays, .. } = self.weather;
        let mut arrives = Vec::new();
        if drawn < loss {
            *lost += 1;
        } else if drawn < loss + doubles {
            *doubled += 1;
            arrives.extend([frame.clone(), frame]);
        } else if drawn < loss + doubles + delays {
            *late += 1;
            self.late.push_back((way, frame, 1 + self.lot.below(5)));
        } else {
            arrives.push(frame);
        }
        for (_, _, left) in self.late.iter_mut().filter(|(held, ..)| *held == way) {
            *left = left.saturating_sub(1);
        }
        let is_due = |(held, _, left): &(Way, Vec<u8>, u64)| *held == way && *left == 0;
        let (due, held): (VecDeque<_>, VecDeque<_>) = self.late.drain(..).partition(is_due);
        self.late = held;
        arrives.extend(due.into_iter().map(|(_, frame, _)| frame));
        arrives
    }

    /// Frames that nothing overtakes any more, because nothing comes.
    pub(super) fn settle(&mut self) -> Vec<(Way, Vec<u8>)> {
        self.late.drain(..).map(|(way, frame, _)| (way, frame)).collect()
    }

    pub(super) fn holds_back(&self) -> bool {
        !self.late.is_empty()
    }

    fn is_blocked(&mut self, way: Way, frame: &[u8]) -> bool {
        let Some(segment) = Segment::read(frame) else { return false };
        self.blocks.iter_mut().any(|block| match way {
            Way::Inward if segment.src == block.port => match &mut block.inward {
                None => false,
                Some(0) => true,
                Some(left) => {
                    *left -= 1;
                    false
                }
            },
            Way::Outward => segment.dst == block.port && block.outward,
            Way::Inward => false,
        })
    }
}

/// What is looked at in a TCP segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub(super) src: u16,
    pub(super) dst: u16,
    pub(super) seq: u32,
    pub(super) flags: u8,
}

impl Segment {
    /// Reads a frame's segment; `None` if it is of another protocol.
    pub(super) fn read(frame: &[u8]) -> Option<Self> {
        let l4 = match frame.first()? >> 4 {
            4 if frame.get(9) == Some(&6) => frame.get(usize::from(frame.first()? & 15) * 4..)?,
            6 if frame.get(6) == Some(&6) => frame.get(40..)?,
            _ => return None,
        };
        let [s1, s0, d1, d0, q3, q2, q1, q0] = *l4.first_chunk::<8>()?;
        let (src, dst) = (u16::from_be_bytes([s1, s0]), u16::from_be_bytes([d1, d0]));
        Some(Self { src, dst, seq: u32::from_be_bytes([q3, q2, q1, q0]), flags: *l4.get(13)? })
    }
}

pub(super) const SYN: u8 = 2;
pub(super) const RST: u8 = 4;
