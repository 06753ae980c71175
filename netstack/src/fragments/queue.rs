//! The fragments of one datagram.

use std::collections::BTreeMap;

use hibernet_conntrack::{Fragment, Parsed};
use hibernet_snapshot::Instant;
use smoltcp::wire::Ipv4Packet;

use super::Cuts;
use super::ecn::Seen;
use crate::drop_reason::DropReason;

/// A fragment and how it came.
pub(super) struct Arrival<'a> {
    pub(super) datagram: &'a [u8],
    pub(super) parsed: &'a Parsed,
    pub(super) fragment: &'a Fragment,
    pub(super) link: u16,
    /// Its number among the fragments of its source.
    pub(super) number: u32,
}

/// What became of a fragment in its queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Added {
    /// It is held.
    Kept,
    /// It is not held; the others are.
    Ignored(DropReason),
    /// The datagram is beyond repair.
    Spoilt(DropReason),
    /// The datagram is beyond repair, and the fragment none of our business.
    PassedOn,
}

/// The fragments of one datagram.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Queue {
    pub(super) deadline: Instant,
    /// The link of the first fragment, or of the latest while that is missing.
    pub(super) link: u16,
    /// What is in front of the payload in the first fragment: IPv6 with the fragment header. Empty while it is missing.
    pub(super) head: Vec<u8>,
    /// Where in `head` the protocol is named behind the unfragmentable part.
    pub(super) next_header_at: usize,
    /// Payloads by offset.
    pub(super) pieces: BTreeMap<usize, Vec<u8>>,
    /// Bytes that came without a gap: start and end, ascending. Not joined with a neighbour unless the last one is
    /// prolonged; a fragment that reaches over two runs is an overlap even where they touch.
    pub(super) runs: Vec<(usize, usize)>,
    /// Length of the payload as far as is known.
    pub(super) end: usize,
    /// Whether that is all of it.
    pub(super) has_last: bool,
    /// Length of the largest fragment, and of the largest with don't-fragment.
    pub(super) largest: [usize; 2],
    pub(super) ecn: Seen,
    /// Number of the latest fragment.
    pub(super) latest: u32,
}

impl Queue {
    pub(super) fn new(deadline: Instant) -> Self {
        Self {
            deadline,
            link: 0,
            head: Vec::new(),
            next_header_at: 0,
            pieces: BTreeMap::new(),
            runs: Vec::new(),
            end: 0,
            has_last: false,
            largest: [0; 2],
            ecn: Seen::default(),
            latest: 0,
        }
    }

    /// Takes a fragment.
    pub(super) fn add(&mut self, arrival: &Arrival<'_>) -> Added {
        let Arrival { datagram, parsed, fragment, link, number } = *arrival;
        self.latest = number;
        let (v6, start) = (parsed.is_v6(), fragment.offset);
        let at = if v6 { fragment.header_at.saturating_add(FRAGMENT_HEADER) } else { fragment.header_at };
        let Some((head, payload)) = datagram.get(..parsed.end).and_then(|datagram| datagram.split_at_checked(at))
        else {
            return Added::Ignored(DropReason::FragmentInvalid);
        };
        let wrong = match v6 {
            true => Added::Ignored(DropReason::FragmentInvalid),
            false => Added::Spoilt(DropReason::FragmentInvalid),
        };
        if start.saturating_add(payload.len()).saturating_add(if v6 { 0 } else { head.len() }) > MOST {
            return wrong;
        }
        let mut payload = payload;
        if fragment.more {
            let odd = payload.len() % 8;
            if odd > 0 && v6 {
                return Added::PassedOn;
            }
            payload = payload.get(..payload.len().saturating_sub(odd)).unwrap_or_default();
        }
        let end = start.saturating_add(payload.len());
        if !fragment.more && (end < self.end || self.has_last && end != self.end) {
            return wrong;
        }
        if fragment.more && end > self.end && self.has_last {
            return wrong;
        }
        self.has_last |= !fragment.more;
        self.end = self.end.max(end);
        if payload.is_empty() {
            return wrong;
        }
        if self.pieces.len() >= MOST_PIECES {
            return Added::Spoilt(DropReason::FragmentMemory);
        }
        match self.place(start, end) {
            Ok(()) => {}
            Err(added) => return added,
        }
        self.note(arrival, head, payload.len());
        if self.head.is_empty() {
            self.link = link;
        }
        self.pieces.insert(start, payload.to_vec());
        Added::Kept
    }

    /// Finds the place of a fragment among the runs.
    fn place(&mut self, start: usize, end: usize) -> Result<(), Added> {
        match self.runs.last_mut() {
            Some((_, last_end)) if end > *last_end && start == *last_end => {
                *last_end = end;
                return Ok(());
            }
            Some((_, last_end)) if end > *last_end && start < *last_end => {
                return Err(Added::Spoilt(DropReason::FragmentOverlap));
            }
            _ => {}
        }
        let at = self.runs.partition_point(|(_, run_end)| *run_end <= start);
        match self.runs.get(at) {
            Some((run_start, run_end)) if *run_start <= start && end <= *run_end => {
                Err(Added::Ignored(DropReason::FragmentDuplicate))
            }
            Some((run_start, _)) if *run_start < end => Err(Added::Spoilt(DropReason::FragmentOverlap)),
            _ => {
                self.runs.insert(at, (start, end));
                Ok(())
            }
        }
    }

    /// Keeps what matters of a held fragment besides its payload.
    fn note(&mut self, arrival: &Arrival<'_>, head: &[u8], payload: usize) {
        let Arrival { datagram, parsed, fragment, link, .. } = *arrival;
        let [largest, largest_whole] = &mut self.largest;
        *largest = parsed.end.max(*largest);
        if parsed.dont_fragment {
            *largest_whole = parsed.end.max(*largest_whole);
        }
        self.ecn.add(traffic_class(datagram));
        if fragment.offset == 0 {
            self.head = head.to_vec();
            self.next_header_at = fragment.next_header_at;
            self.link = link;
            if !parsed.is_v6() {
                // What was cut off its end is no longer in it.
                set_v4(&mut self.head, payload, None);
            }
        }
    }

    /// The datagram; `None` if its parts contradict each other or are too long together.
    pub(super) fn assemble(self) -> Option<(Vec<u8>, Cuts)> {
        let Self { mut head, next_header_at, pieces, end, largest: [largest, largest_whole], ecn, .. } = self;
        let congestion = ecn.merged()?;
        let v6 = is_v6(&head);
        let dont_fragment = !v6 && largest == largest_whole;
        if v6 {
            let header_at = head.len().checked_sub(FRAGMENT_HEADER)?;
            let next_header = *head.get(header_at)?;
            head.truncate(header_at);
            *head.get_mut(next_header_at)? = next_header;
            let len = head.len().checked_add(end)?.checked_sub(V6_HEADER)?;
            head.get_mut(4..6)?.copy_from_slice(&u16::try_from(len).ok()?.to_be_bytes());
            if congestion {
                *head.get_mut(1)? |= 0x30;
            }
        } else {
            if congestion {
                *head.get_mut(1)? |= 3;
            }
            set_v4(&mut head, end, Some(dont_fragment))?;
        }
        let mut datagram = head;
        datagram.reserve_exact(end);
        let mut ends = Vec::with_capacity(pieces.len());
        for piece in pieces.values() {
            datagram.extend_from_slice(piece);
            ends.push(datagram.len());
        }
        Some((datagram, Cuts { largest, dont_fragment, ends }))
    }

    /// The first fragment as it came, if it did.
    pub(super) fn first(&self) -> Option<Vec<u8>> {
        let piece = self.pieces.get(&0)?;
        if self.head.is_empty() { None } else { Some([self.head.as_slice(), piece].concat()) }
    }

    /// Whether all of the datagram is there.
    pub(super) fn is_complete(&self) -> bool {
        self.has_last && !self.head.is_empty() && self.held() == self.end
    }

    /// Whether forgetting it loses nothing.
    pub(super) fn is_useless(&self) -> bool {
        self.pieces.is_empty() && !self.has_last
    }

    /// How many fragments it holds.
    pub(super) fn len(&self) -> usize {
        self.pieces.len()
    }

    pub(super) const fn deadline(&self) -> Instant {
        self.deadline
    }

    pub(super) const fn link(&self) -> u16 {
        self.link
    }

    pub(super) const fn latest(&self) -> u32 {
        self.latest
    }

    /// Bytes it counts for.
    pub(super) fn memory(&self) -> usize {
        let pieces = self.pieces.len().saturating_mul(PIECE_COST);
        QUEUE_COST.saturating_add(pieces).saturating_add(self.head.len()).saturating_add(self.held())
    }

    /// Bytes of payload: no piece overlaps another, so the runs add up to them.
    fn held(&self) -> usize {
        self.runs.iter().fold(0, |sum, (start, end)| sum.saturating_add(end.saturating_sub(*start)))
    }
}

impl Arrival<'_> {
    /// Bytes that holding it may take.
    pub(super) fn most_cost(&self) -> usize {
        self.datagram.len().saturating_add(PIECE_COST).saturating_add(QUEUE_COST)
    }
}

/// An atomic IPv6 fragment without its fragment header.
pub(super) fn without_fragment_header(datagram: &[u8], fragment: &Fragment) -> Option<Vec<u8>> {
    let (head, rest) = datagram.split_at_checked(fragment.header_at)?;
    let (header, payload) = rest.split_at_checked(FRAGMENT_HEADER)?;
    let mut whole = [head, payload].concat();
    *whole.get_mut(fragment.next_header_at)? = *header.first()?;
    let len = u16::try_from(whole.len().checked_sub(V6_HEADER)?).ok()?;
    whole.get_mut(4..6)?.copy_from_slice(&len.to_be_bytes());
    Some(whole)
}

/// Writes the total length for that much payload into an IPv4 header, and makes it a whole datagram's if `whole` says with
/// which don't-fragment bit.
fn set_v4(head: &mut [u8], payload: usize, whole: Option<bool>) -> Option<()> {
    let total = u16::try_from(head.len().checked_add(payload)?).ok()?;
    let stated = usize::from(head.first()? & 0x0f).saturating_mul(4);
    if head.len() < V4_HEADER || head.len() != stated {
        return None;
    }
    let mut header = Ipv4Packet::new_unchecked(head);
    header.set_total_len(total);
    if let Some(dont_fragment) = whole {
        header.clear_flags();
        header.set_frag_offset(0);
        header.set_dont_frag(dont_fragment);
    }
    header.fill_checksum();
    Some(())
}

pub(super) fn is_v6(head: &[u8]) -> bool {
    head.first().is_some_and(|byte| byte >> 4 == 6)
}

/// Type of service or traffic class.
fn traffic_class(datagram: &[u8]) -> u8 {
    match *datagram {
        [first, second, ..] if first >> 4 == 6 => first << 4 | second >> 4,
        [_, second, ..] => second,
        _ => 0,
    }
}

/// Most bytes of payload, and of an IPv4 datagram.
pub(super) const MOST: usize = 0xffff;
/// Most fragments of one datagram. The least MTU there ever was (68, RFC 791) makes 1366 of the longest datagram.
pub(super) const MOST_PIECES: usize = 2048;
pub(super) const V4_HEADER: usize = 20;
pub(super) const V6_HEADER: usize = 40;
pub(super) const FRAGMENT_HEADER: usize = 8;
/// What a fragment counts for beyond its bytes.
const PIECE_COST: usize = 64;
/// What a queue counts for beyond its fragments.
const QUEUE_COST: usize = 512;
