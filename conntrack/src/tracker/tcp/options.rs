//! TCP options conntrack reads: window scale (RFC 7323) and selective acknowledgement (RFC 2018).

use super::is_before;
use crate::headers::u32_at;
use crate::protocol::TcpSideFlags;

/// What a SYN offers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Offered {
    /// [`TcpSideFlags::WINDOW_SCALE`] and [`TcpSideFlags::SACK_PERM`].
    pub(super) flags: TcpSideFlags,
    /// Shift of later windows, 0 where scaling is not offered.
    pub(super) scale: u8,
}

/// Reads the offers out of a SYN's options. Of a repeated option the last one counts.
pub(super) fn offered(options: &[u8]) -> Offered {
    let mut offered = Offered::default();
    for (kind, value) in Options(options) {
        match (kind, value) {
            (SACK_PERMITTED, []) => offered.flags |= TcpSideFlags::SACK_PERM,
            (WINDOW_SCALE, [shift]) => {
                offered.flags |= TcpSideFlags::WINDOW_SCALE;
                offered.scale = (*shift).min(MOST_SCALE);
            }
            _ => {}
        }
    }
    offered
}

/// The highest number acknowledged: `ack`, or the right edge of a SACK block beyond it.
pub(super) fn highest_sacked(options: &[u8], ack: u32) -> u32 {
    let mut highest = ack;
    for (kind, value) in Options(options) {
        if kind != SACK || value.is_empty() || value.len() % SACK_BLOCK != 0 {
            continue;
        }
        for right in value.chunks_exact(SACK_BLOCK).filter_map(|block| u32_at(block, 4)) {
            if is_before(highest, right) {
                highest = right;
            }
        }
    }
    highest
}

/// Kind and value of each option, until the list ends or one is malformed.
struct Options<'a>(&'a [u8]);

impl<'a> Iterator for Options<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.0 {
                [] | [END, ..] => return None,
                [NO_OPERATION, rest @ ..] => self.0 = rest,
                [kind, len, rest @ ..] => {
                    let (value, rest) = rest.split_at_checked(usize::from(*len).checked_sub(2)?)?;
                    self.0 = rest;
                    return Some((*kind, value));
                }
                [_] => return None,
            }
        }
    }
}

const END: u8 = 0;
const NO_OPERATION: u8 = 1;
const WINDOW_SCALE: u8 = 3;
const SACK_PERMITTED: u8 = 4;
const SACK: u8 = 5;
const SACK_BLOCK: usize = 8;
/// RFC 7323, section 2.3.
const MOST_SCALE: u8 = 14;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_above_fourteen_is_fourteen() {
        assert_eq!(offered(&[3, 3, 15]).scale, 14);
        assert_eq!(offered(&[3, 3, 255]).scale, 14);
        assert_eq!(offered(&[1, 3, 3, 13]).scale, 13);
    }

    #[test]
    fn options_behind_the_end_or_a_lying_length_are_not_read() {
        assert_eq!(offered(&[0, 3, 3, 7]), Offered::default());
        assert_eq!(offered(&[8, 0, 3, 3, 7]), Offered::default());
        assert_eq!(offered(&[8, 1, 3, 3, 7]), Offered::default());
        assert_eq!(offered(&[8, 10, 3, 3, 7]), Offered::default());
        assert_eq!(offered(&[3]), Offered::default());
    }

    #[test]
    fn an_option_of_another_length_than_its_own_does_not_count() {
        assert_eq!(offered(&[4, 3, 0, 3, 4, 7, 7]), Offered::default());
    }

    #[test]
    fn the_furthest_right_edge_counts_also_across_the_wrap() {
        let block = |left: u32, right: u32| [left.to_be_bytes(), right.to_be_bytes()].concat();
        let options = [vec![1, 1, 5, 18], block(0xffff_fff0, 0xffff_fff8), block(4, 9)].concat();
        assert_eq!(highest_sacked(&options, 0xffff_ffe0), 9);
        assert_eq!(highest_sacked(&options, 20), 20);
    }

    #[test]
    fn sack_blocks_that_are_cut_do_not_count() {
        assert_eq!(highest_sacked(&[5, 6, 0, 0, 0, 9], 1), 1);
        assert_eq!(highest_sacked(&[5, 2], 1), 1);
    }
}
