//! Held fragments in an image: with what remains of their times, and checked on the way back.

use core::net::IpAddr;
use core::time::Duration;
use std::collections::BTreeMap;

use hibernet_conntrack::{Fragment, LONGEST_TIMEOUT, parse};
use hibernet_snapshot::{Instant, Invalid, Snapshot};

use super::ecn::Seen;
use super::queue::{FRAGMENT_HEADER, MOST, MOST_PIECES, Queue, V6_HEADER, is_v6};
use super::{Defragmenter, FragmentLimits, Key, LONGEST_WAIT};

/// The state of reassembly as it is saved.
#[derive(Clone, PartialEq, Eq, Debug, Snapshot)]
pub(crate) struct FragmentsSection {
    #[snapshot(saved)]
    pub(super) limits: FragmentLimits,
    #[snapshot(saved)]
    pub(super) arrivals: BTreeMap<IpAddr, u32>,
    #[snapshot(saved)]
    pub(super) queues: BTreeMap<Key, QueueSection>,
}

/// One datagram's fragments. What can be computed from the pieces is not written.
#[derive(Clone, PartialEq, Eq, Debug, Snapshot)]
pub(super) struct QueueSection {
    #[snapshot(saved)]
    pub(super) remaining: Duration,
    #[snapshot(saved)]
    pub(super) link: u16,
    #[snapshot(saved)]
    pub(super) head: Vec<u8>,
    #[snapshot(saved)]
    pub(super) pieces: BTreeMap<u16, Vec<u8>>,
    /// Where the runs start: their ends are where the pieces have a gap or the next one starts.
    #[snapshot(saved)]
    pub(super) runs: Vec<u16>,
    #[snapshot(saved)]
    pub(super) end: u16,
    #[snapshot(saved)]
    pub(super) has_last: bool,
    #[snapshot(saved)]
    pub(super) largest: [u32; 2],
    #[snapshot(saved)]
    pub(super) ecn: u8,
    #[snapshot(saved)]
    pub(super) latest: u32,
}

impl Defragmenter {
    /// What is to be saved at `now`. What has expired is not.
    pub(crate) fn section(&self, now: Instant) -> FragmentsSection {
        let Self { limits, queues, deadlines: _, arrivals, v4_memory: _, v6_memory: _ } = self;
        let queues: BTreeMap<Key, QueueSection> = queues
            .iter()
            .filter(|(_, queue)| queue.deadline > now)
            .filter_map(|(key, queue)| Some((*key, QueueSection::of(queue, now)?)))
            .collect();
        let has_queue = |src: &IpAddr| queues.range(Key::lowest(*src)..).next().is_some_and(|(key, _)| key.src == *src);
        let arrivals = arrivals.iter().filter(|(src, _)| has_queue(src)).map(|(src, count)| (*src, *count)).collect();
        FragmentsSection { limits: *limits, arrivals, queues }
    }
}

impl FragmentsSection {
    /// Reassembly as it was saved, with times that count from `now`. Every queue is checked against all that reassembly
    /// relies on.
    pub(crate) fn into_defragmenter(self, now: Instant) -> Result<Defragmenter, Invalid> {
        let Self { limits, arrivals, queues } = self;
        let mut restored = Defragmenter::new(limits);
        for (number, (key, section)) in queues.into_iter().enumerate() {
            if !key.can_be() {
                let invalid = Invalid::new("key", format!("{key:?}"), "a key of one family");
                return Err(invalid.at(number).within("queues"));
            }
            let queue = section.into_queue(&key, now).map_err(|invalid| invalid.at(number).within("queues"))?;
            if key.src.is_ipv4() && !arrivals.contains_key(&key.src) {
                let found = format!("no count for {}", key.src);
                return Err(Invalid::new("arrivals", found, "a count for every IPv4 source"));
            }
            restored.begin(key, queue);
        }
        for src in arrivals.keys() {
            let next = restored.queues.range(Key::lowest(*src)..).next();
            if !src.is_ipv4() || next.is_none_or(|(key, _)| key.src != *src) {
                return Err(Invalid::new(
                    "arrivals",
                    format!("a count for {src}"),
                    "counts of IPv4 sources with fragments",
                ));
            }
        }
        restored.arrivals = arrivals;
        Ok(restored)
    }
}

impl QueueSection {
    fn of(queue: &Queue, now: Instant) -> Option<Self> {
        let Queue { deadline, link, head, next_header_at: _, pieces, runs, end, has_last, largest, ecn, latest } =
            queue;
        let short = |number: usize| u16::try_from(number).ok();
        let pieces: Option<_> = pieces.iter().map(|(at, piece)| Some((short(*at)?, piece.clone()))).collect();
        let runs: Option<_> = runs.iter().map(|(start, _)| short(*start)).collect();
        let [largest, largest_whole] = *largest;
        Some(Self {
            remaining: deadline.saturating_since(now),
            link: *link,
            head: head.clone(),
            pieces: pieces?,
            runs: runs?,
            end: short(*end)?,
            has_last: *has_last,
            largest: [u32::try_from(largest).ok()?, u32::try_from(largest_whole).ok()?],
            ecn: ecn.0,
            latest: *latest,
        })
    }

    fn into_queue(self, key: &Key, now: Instant) -> Result<Queue, Invalid> {
        let Self { remaining, link, head, pieces, runs, end, has_last, largest, ecn, latest } = self;
        let end = usize::from(end);
        let longest = Duration::from_secs(if key.src.is_ipv4() { LONGEST_WAIT } else { LONGEST_TIMEOUT }.into());
        if remaining.is_zero() || remaining > longest {
            return Err(Invalid::new("remaining", format!("{remaining:?}"), format!("some time, at most {longest:?}")));
        }
        let pieces: BTreeMap<usize, Vec<u8>> = pieces.into_iter().map(|(at, piece)| (at.into(), piece)).collect();
        let runs = joined(&pieces, &runs)?;
        let last_end = runs.last().map_or(0, |(_, end)| *end);
        // A last fragment of IPv6 without payload sets an end without being held.
        let reaches = last_end == end || has_last && last_end < end && !key.src.is_ipv4();
        if !reaches || !has_last && end % 8 != 0 || pieces.is_empty() && !has_last {
            return Err(Invalid::new("end", format!("{end} after {last_end} bytes"), "the end of the last fragment"));
        }
        let [largest, largest_whole] = largest.map(|len| usize::try_from(len).unwrap_or(usize::MAX));
        if largest_whole > largest || ecn > 7 || (ecn == 0) != pieces.is_empty() {
            let found = format!("{largest_whole} of {largest} bytes, notification {ecn:#x}");
            return Err(Invalid::new("largest", found, "a fragment not below the largest that is not to be cut"));
        }
        let next_header_at = match (pieces.get(&0), head.is_empty()) {
            (None, true) => 0,
            (Some(piece), false) => first_fragment(&head, piece, key)?.next_header_at,
            (piece, _) => {
                let found = format!("{} bytes, first fragment there: {}", head.len(), piece.is_some());
                return Err(Invalid::new("head", found, "a header with the first fragment"));
            }
        };
        let deadline = now.saturating_add(remaining);
        let largest = [largest, largest_whole];
        let ecn = Seen(ecn);
        Ok(Queue { deadline, link, head, next_header_at, pieces, runs, end, has_last, largest, ecn, latest })
    }
}

/// The runs that start where `starts` says: the pieces of each follow one another without a gap.
fn joined(pieces: &BTreeMap<usize, Vec<u8>>, starts: &[u16]) -> Result<Vec<(usize, usize)>, Invalid> {
    if pieces.len() > MOST_PIECES {
        return Err(Invalid::new("pieces", pieces.len().to_string(), format!("at most {MOST_PIECES}")));
    }
    let mut starts = starts.iter().map(|start| usize::from(*start)).peekable();
    let mut runs: Vec<(usize, usize)> = Vec::new();
    let last_at = pieces.last_key_value().map(|(at, _)| *at);
    for (at, piece) in pieces {
        let end = at.saturating_add(piece.len());
        let previous = runs.last().map_or(0, |(_, end)| *end);
        let odd = piece.len() % 8 != 0 && last_at != Some(*at);
        if at % 8 != 0 || *at < previous || piece.is_empty() || odd || end > MOST {
            let found = format!("{} bytes at {at} after {previous}", piece.len());
            return Err(Invalid::new("pieces", found, "pieces of eights without overlap"));
        }
        match runs.last_mut() {
            _ if starts.next_if_eq(at).is_some() => runs.push((*at, end)),
            Some((_, last)) if *last == *at => *last = end,
            _ => return Err(Invalid::new("runs", format!("none from {at}"), "a run that starts behind each gap")),
        }
    }
    match starts.next() {
        None => Ok(runs),
        Some(start) => Err(Invalid::new("runs", format!("one from {start}"), "runs that start with a piece")),
    }
}

/// Reads the first fragment again: it must be of the datagram it is filed under.
fn first_fragment(head: &[u8], piece: &[u8], key: &Key) -> Result<Fragment, Invalid> {
    let invalid = |found: String| Invalid::new("head", found, format!("the first fragment of {key:?}"));
    let bytes = [head, piece].concat();
    let parsed = parse(&bytes).map_err(|error| invalid(error.to_string()))?;
    let fragment = parsed.fragment.ok_or_else(|| invalid("no fragment".to_owned()))?;
    let read = Key::of(&parsed, &fragment, key.site);
    let at = if is_v6(head) { fragment.header_at.saturating_add(FRAGMENT_HEADER) } else { fragment.header_at };
    let is_first = fragment.offset == 0 && fragment.more && at == head.len() && parsed.end == bytes.len();
    let is_named = fragment.next_header_at < fragment.header_at.max(V6_HEADER);
    if read != *key || !is_first || !is_named {
        return Err(invalid(format!("{read:?}, offset {}", fragment.offset)));
    }
    Ok(fragment)
}
