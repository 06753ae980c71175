//! Reassembly in front of the hooks, and the way back into fragments behind them.
//!
//! Connection tracking and rules want whole datagrams: a later fragment has no ports. So fragments are held at priority
//! -400 of PREROUTING and OUTPUT until their datagram is there ([`Defragmenter::ingest`]), and the datagram leaves cut as
//! it came, or finer where the link demands it ([`refragment`]). A router that did otherwise would hide from path MTU
//! discovery what the sender chose (RFC 8900, section 3.7).
//!
//! What is done with odd fragments is what Linux 6.18 was seen to do, case by case in the tests:
//! - A fragment that repeats bytes which are there in one run is ignored, whatever its own bytes say. Any other overlap
//!   ends the whole datagram (RFC 5722).
//! - IPv4: a fragment without payload, two different ends, or bytes behind the end, end the datagram; a length that is
//!   no multiple of eight is cut to one. IPv6: such fragments are ignored alone, but a length that is no multiple of eight
//!   ends the datagram and the fragment goes on as it is.
//! - IPv6: a first fragment without the whole chain of headers (RFC 7112) is not held; it goes on as it is, and conntrack
//!   calls it INVALID. An atomic fragment (RFC 6946) is a whole datagram and loses its fragment header.
//! - Bits of congestion notification are merged (RFC 3168, section 5.3); what cannot be merged is dropped.
//!
//! Memory is bounded: from the threshold on no new datagram is begun, and above five quarters of it no fragment at all is
//! kept. Time is bounded: it counts from a datagram's first fragment to come, and later ones do not prolong it.

mod aged;
mod ecn;
mod queue;
mod refragment;
mod saved;
#[cfg(test)]
mod tests;

use core::net::{IpAddr, Ipv4Addr};
use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

use hibernet_conntrack::{Fragment, Parsed, SysctlError, proto};
use hibernet_snapshot::{Instant, Invalid, Snapshot};

use self::queue::{Added, Arrival, Queue};
pub(crate) use self::refragment::{Refragmented, refragment};
pub(crate) use self::saved::FragmentsSection;
use crate::drop_reason::DropReason;
use crate::hook::Hook;

/// Bounds of reassembly for IPv4, by the names of `net.ipv4`. IPv6 has conntrack's `nf_conntrack_frag6_timeout` and
/// `nf_conntrack_frag6_high_thresh`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Snapshot)]
#[snapshot(validate = Self::check)]
pub struct FragmentLimits {
    /// Seconds that fragments wait for the rest of their datagram.
    #[snapshot(saved)]
    pub ipfrag_time: u32,
    /// Bytes held from which on no new datagram is begun.
    #[snapshot(saved)]
    pub ipfrag_high_thresh: u32,
    /// How many other fragments of the same source may come between two of a datagram; with more, its identification may
    /// have come round, and what is there is thrown away. 0 for no limit.
    #[snapshot(saved)]
    pub ipfrag_max_dist: u32,
}

impl Default for FragmentLimits {
    fn default() -> Self {
        Self { ipfrag_time: 30, ipfrag_high_thresh: 4 << 20, ipfrag_max_dist: 64 }
    }
}

impl FragmentLimits {
    /// Sets one by the kernel's name, `net.ipv4.` in front or not. What is held already stays held.
    ///
    /// `ipfrag_low_thresh` and `ipfrag_secret_interval` are taken as well, and change nothing: nor do they in Linux 6.18.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), SysctlError> {
        let Self { ipfrag_time, ipfrag_high_thresh, ipfrag_max_dist } = self;
        let mut without_effect = 0;
        let most = i32::MAX.unsigned_abs();
        let (field, name, least, most) = match name.strip_prefix(PREFIX).unwrap_or(name) {
            "ipfrag_time" => (ipfrag_time, "ipfrag_time", 1, LONGEST_WAIT),
            "ipfrag_high_thresh" => (ipfrag_high_thresh, "ipfrag_high_thresh", 0, most),
            "ipfrag_max_dist" => (ipfrag_max_dist, "ipfrag_max_dist", 0, most),
            "ipfrag_low_thresh" => (&mut without_effect, "ipfrag_low_thresh", 0, most),
            "ipfrag_secret_interval" => (&mut without_effect, "ipfrag_secret_interval", 0, most),
            _ => return Err(SysctlError::Unknown { name: name.to_owned(), expected: KNOWN }),
        };
        match value.trim().parse() {
            Ok(number) if (least..=most).contains(&number) => *field = number,
            _ => return Err(SysctlError::OutOfRange { name, found: value.to_owned(), least, most }),
        }
        Ok(())
    }

    /// Whether reassembly can work within them.
    pub(crate) fn check(&self) -> Result<(), Invalid> {
        let found = self.ipfrag_time;
        if (1..=LONGEST_WAIT).contains(&found) {
            return Ok(());
        }
        Err(Invalid::new("ipfrag_time", found.to_string(), format!("1 to {LONGEST_WAIT} seconds")))
    }
}

/// Bounds of reassembly for one family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Bounds {
    pub(crate) timeout: Duration,
    pub(crate) high_thresh: usize,
}

/// Where a fragment was met. Fragments of one datagram are looked for within one hook and zone; the link counts for
/// addresses that are of a link (RFC 4007).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Snapshot)]
pub(crate) struct Site {
    #[snapshot(saved)]
    pub(crate) hook: Hook,
    #[snapshot(saved)]
    pub(crate) zone: u16,
    #[snapshot(saved)]
    pub(crate) link: u16,
}

/// What reassembly says of a datagram.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Ingest {
    pub(crate) outcome: Ingested,
    /// How many fragments that had been held end here as well, for the reason of the drop, else for
    /// [`DropReason::FragmentInvalid`].
    pub(crate) lost: usize,
}

/// What becomes of a datagram at reassembly.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Ingested {
    /// It is no fragment, or one that is not held: it goes on as it is.
    Whole,
    /// The datagram is complete and goes on in the place of this fragment. `cuts` is for [`refragment`]; an atomic fragment
    /// has none.
    Reassembled { datagram: Vec<u8>, cuts: Option<Cuts> },
    /// The fragment is held.
    Queued,
    /// The fragment ends here.
    Dropped(DropReason),
}

/// How a reassembled datagram came: for the way out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Cuts {
    /// Length of the largest fragment, from its IP header on. A link with a smaller MTU is too narrow for the datagram
    /// where fragmentation is the sender's business: in IPv6, and with `dont_fragment`.
    pub(crate) largest: usize,
    /// IPv4: whether one of the largest had don't-fragment set.
    pub(crate) dont_fragment: bool,
    /// Offsets in the datagram where its pieces end, ascending.
    ends: Vec<usize>,
}

/// Fragments whose time is over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Expired {
    /// The first fragment as it came, if it did. Its sender is told (time exceeded, code 1) for IPv6 in any case, for IPv4
    /// if the datagram was for this host.
    pub(crate) first: Option<Vec<u8>>,
    /// How many fragments are thrown away.
    pub(crate) lost: usize,
    /// Where the fragments were met; the link is that of the first fragment.
    pub(crate) site: Site,
}

/// Holds fragments until their datagrams are complete.
#[derive(Debug, Default)]
pub(crate) struct Defragmenter {
    limits: FragmentLimits,
    queues: BTreeMap<Key, Queue>,
    deadlines: BTreeSet<(Instant, Key)>,
    /// Fragments that have come from IPv4 sources that have some held.
    arrivals: BTreeMap<IpAddr, u32>,
    v4_memory: usize,
    v6_memory: usize,
}

/// What the fragments of one datagram have in common (RFC 791, section 3.2; RFC 8200, section 4.5).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Snapshot)]
struct Key {
    #[snapshot(saved)]
    src: IpAddr,
    #[snapshot(saved)]
    dst: IpAddr,
    #[snapshot(saved)]
    id: u32,
    /// IPv4 only; IPv6 goes by the rest, and takes the protocol from the first fragment.
    #[snapshot(saved)]
    proto: u8,
    #[snapshot(saved)]
    site: Site,
}

impl Defragmenter {
    /// Nothing held.
    pub(crate) fn new(limits: FragmentLimits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// The bounds of IPv4.
    pub(crate) const fn limits_mut(&mut self) -> &mut FragmentLimits {
        &mut self.limits
    }

    /// Takes a datagram on its way, which may be a fragment. Call [`Defragmenter::expire`] first.
    pub(crate) fn ingest(&mut self, datagram: &[u8], parsed: &Parsed, site: Site, v6: Bounds, now: Instant) -> Ingest {
        let only = |outcome| Ingest { outcome, lost: 0 };
        let Some(fragment) = parsed.fragment else { return only(Ingested::Whole) };
        if parsed.is_v6() && lacks_headers(parsed, &fragment) {
            return only(Ingested::Whole);
        }
        if fragment.offset == 0 && !fragment.more {
            return only(match queue::without_fragment_header(datagram, &fragment) {
                Some(datagram) => Ingested::Reassembled { datagram, cuts: None },
                None => Ingested::Dropped(DropReason::FragmentInvalid),
            });
        }
        let bounds = if parsed.is_v6() { v6 } else { self.v4_bounds() };
        let key = Key::of(parsed, &fragment, site);
        let (number, overtaken) = self.count_arrival(&key);
        let arrival = Arrival { datagram, parsed, fragment: &fragment, link: site.link, number };
        let Ingest { outcome, lost } = self.hold(key, &arrival, bounds, now);
        self.forget_source(key.src);
        Ingest { outcome, lost: lost.saturating_add(overtaken) }
    }

    /// Throws away what has waited too long, as much as one call may.
    pub(crate) fn expire(&mut self, now: Instant) -> Vec<Expired> {
        let mut expired = Vec::new();
        while let Some((deadline, key)) = self.deadlines.first().copied()
            && deadline <= now
        {
            let Some(queue) = self.take(&key) else {
                self.deadlines.pop_first();
                continue;
            };
            let site = Site { link: queue.link(), ..key.site };
            expired.push(Expired { lost: queue.len(), first: queue.first(), site });
            self.forget_source(key.src);
        }
        expired
    }

    /// When [`Defragmenter::expire`] is due next.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    fn v4_bounds(&self) -> Bounds {
        let FragmentLimits { ipfrag_time, ipfrag_high_thresh, .. } = self.limits;
        Bounds {
            timeout: Duration::from_secs(ipfrag_time.into()),
            high_thresh: usize::try_from(ipfrag_high_thresh).unwrap_or(usize::MAX),
        }
    }

    /// Counts the fragment, and throws away what is there of its datagram if too many of others came in between. Gives its
    /// number among those of its source, and how many were thrown away.
    fn count_arrival(&mut self, key: &Key) -> (u32, usize) {
        if !key.src.is_ipv4() {
            return (0, 0);
        }
        let counter = self.arrivals.entry(key.src).or_insert(0);
        *counter = counter.wrapping_add(1);
        let number = *counter;
        let most = self.limits.ipfrag_max_dist;
        let is_overtaken = |queue: &Queue| most > 0 && number.wrapping_sub(queue.latest()) > most;
        let lost = match self.queues.get(key) {
            Some(queue) if is_overtaken(queue) => {
                let (deadline, lost) = (queue.deadline(), queue.len());
                self.take(key);
                // The time goes on counting from where it did.
                self.begin(*key, Queue::new(deadline));
                lost
            }
            _ => 0,
        };
        (number, lost)
    }

    fn hold(&mut self, key: Key, arrival: &Arrival<'_>, bounds: Bounds, now: Instant) -> Ingest {
        let held = if arrival.parsed.is_v6() { self.v6_memory } else { self.v4_memory };
        let most = bounds.high_thresh.saturating_add(bounds.high_thresh / 4);
        let is_new = !self.queues.contains_key(&key);
        let full = is_new && held >= bounds.high_thresh;
        if full || held.saturating_add(arrival.most_cost()) > most {
            return Ingest { outcome: Ingested::Dropped(DropReason::FragmentMemory), lost: 0 };
        }
        if is_new {
            self.begin(key, Queue::new(now.saturating_add(bounds.timeout)));
        }
        let Some(queue) = self.queues.get_mut(&key) else {
            return Ingest { outcome: Ingested::Dropped(DropReason::FragmentMemory), lost: 0 };
        };
        let before = queue.memory();
        let added = queue.add(arrival);
        let (after, useless) = (queue.memory(), queue.is_useless());
        let complete = queue.is_complete();
        self.account(key.src, before, after);
        match added {
            Added::Kept if complete => self.assemble(&key),
            Added::Kept => Ingest { outcome: Ingested::Queued, lost: 0 },
            Added::Ignored(reason) => {
                if useless {
                    self.take(&key);
                }
                Ingest { outcome: Ingested::Dropped(reason), lost: 0 }
            }
            Added::Spoilt(reason) => Ingest { outcome: Ingested::Dropped(reason), lost: self.discard(&key) },
            Added::PassedOn => Ingest { outcome: Ingested::Whole, lost: self.discard(&key) },
        }
    }

    fn assemble(&mut self, key: &Key) -> Ingest {
        let lost = self.queues.get(key).map_or(0, Queue::len).saturating_sub(1);
        match self.take(key).and_then(|queue| queue.assemble()) {
            Some((datagram, cuts)) => Ingest { outcome: Ingested::Reassembled { datagram, cuts: Some(cuts) }, lost: 0 },
            None => Ingest { outcome: Ingested::Dropped(DropReason::FragmentInvalid), lost },
        }
    }

    fn discard(&mut self, key: &Key) -> usize {
        self.take(key).map_or(0, |queue| queue.len())
    }

    fn begin(&mut self, key: Key, queue: Queue) {
        self.account(key.src, 0, queue.memory());
        self.deadlines.insert((queue.deadline(), key));
        self.queues.insert(key, queue);
    }

    fn take(&mut self, key: &Key) -> Option<Queue> {
        let queue = self.queues.remove(key)?;
        self.deadlines.remove(&(queue.deadline(), *key));
        self.account(key.src, queue.memory(), 0);
        Some(queue)
    }

    fn account(&mut self, src: IpAddr, before: usize, after: usize) {
        let memory = if src.is_ipv4() { &mut self.v4_memory } else { &mut self.v6_memory };
        *memory = memory.saturating_sub(before).saturating_add(after);
    }

    /// Forgets the count of a source that has nothing held.
    fn forget_source(&mut self, src: IpAddr) {
        let next = self.queues.range(Key::lowest(src)..).next();
        if next.is_none_or(|(key, _)| key.src != src) {
            self.arrivals.remove(&src);
        }
    }
}

impl Key {
    fn of(parsed: &Parsed, fragment: &Fragment, site: Site) -> Self {
        let Parsed { src, dst, .. } = *parsed;
        let proto = if parsed.is_v6() { 0 } else { parsed.proto };
        let link = if is_of_a_link(dst) { site.link } else { 0 };
        Self { src, dst, id: fragment.id, proto, site: Site { link, ..site } }
    }

    /// Whether a fragment can have it.
    fn can_be(&self) -> bool {
        let Self { src, dst, id, proto, site: Site { link, .. } } = *self;
        let family = match (src, dst) {
            (IpAddr::V4(_), IpAddr::V4(_)) => id <= 0xffff,
            (IpAddr::V6(_), IpAddr::V6(_)) => proto == 0,
            _ => false,
        };
        family && (link == 0 || is_of_a_link(dst))
    }

    /// Below all keys of that source.
    fn lowest(src: IpAddr) -> Self {
        let site = Site { hook: Hook::Prerouting, zone: 0, link: 0 };
        Self { src, dst: Ipv4Addr::UNSPECIFIED.into(), id: 0, proto: 0, site }
    }
}

/// Whether the address means different hosts on different links.
fn is_of_a_link(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(_) => false,
        IpAddr::V6(addr) => addr.is_multicast() || addr.is_unicast_link_local(),
    }
}

/// Whether a first IPv6 fragment has less than all headers up to that of the transport (RFC 7112, section 5).
fn lacks_headers(parsed: &Parsed, fragment: &Fragment) -> bool {
    if fragment.offset > 0 || parsed.proto == NO_NEXT_HEADER {
        return false;
    }
    let least = match parsed.proto {
        proto::TCP => 20,
        proto::UDP | proto::ICMPV6 => 8,
        _ => 1,
    };
    !parsed.has_l4 || parsed.end.saturating_sub(parsed.header_len) < least
}

const PREFIX: &str = "net.ipv4.";
const KNOWN: &str = "net.netfilter.nf_conntrack_* or net.ipv4.ipfrag_*";
/// A day: no datagram takes that long.
const LONGEST_WAIT: u32 = 86_400;
/// Protocol number that says that nothing follows (RFC 8200, section 4.7).
const NO_NEXT_HEADER: u8 = 59;
