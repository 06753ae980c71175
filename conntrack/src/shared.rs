//! The object for several threads: shards with a lock each, and nothing to see of them from outside.
//!
//! # Where a flow lives
//!
//! A keyed hash of the sorted endpoints of its original tuple chooses a flow's shard. Both directions of a plain flow have
//! the same endpoints and so come to the same shard: a packet of an established flow takes one lock and writes nothing
//! that other threads write.
//!
//! A translated flow's answers have other endpoints, which may belong to another shard. Such flows are counted. While the
//! count is not zero, who finds nothing in a tuple's own shard takes a second look: it asks the other shards, in the order
//! of their numbers.
//!
//! Shards have room for more than their share (six standard deviations). Should one overflow all the same, or on
//! [`SharedConntrack::reseed`], another key is drawn and all flows are dealt out anew. Handles stay good.
//!
//! # What is common to all shards
//!
//! Serial numbers, the number of flows and the queue of events: so creation order is total, a limit is a limit, and early
//! drop takes the flow that is oldest of all. The save is that of a [`Conntrack`], to the byte.
//!
//! One thing is left open: which flows [`SharedConntrack::expire`] collects first if its budget does not suffice for all
//! whose time has come.
//!
//! # Lock rules
//!
//! 1. A thread holds one shard's lock, or those of all shards, taken in the order of their numbers. Never two of many, and
//!    never all while it holds one.
//! 2. The locks of the event queue, of the port choices and of the shard key's generator are leaves: who holds one takes no
//!    other lock. They may be taken while shards are locked.
//! 3. The shard key changes while all shards are locked, and the number of the deal after it. Who has chosen a shard
//!    without a lock compares the deal once it has the lock: if it is another, the choice is void, and so is a key that
//!    was read while it changed.
//! 4. Who lets go of a shard has told before what happened in it: the number of flows, the number of those that lie across
//!    shards, the events (`Entered` does it). So under one lock all is exact that this shard can tell, and under all locks
//!    everything.
//! 5. A flow whose tuples belong to two shards enters under all locks. A flow whose tuples belong to one shard enters under
//!    that lock alone, if the count of flows across shards, read under it, is zero: nobody else can have its tuples, since
//!    any other holder of them lives in this shard or is counted. Otherwise it enters under all locks, too.
//!
//! Waits follow 1 and 2 upwards only, so there is no deadlock. A second look without the locks of all shards may miss a
//! flow that enters meanwhile, as it would have missed it a moment before; what counts is looked at again at `confirm`.
//!
//! Two threads are held against a sequential model (`tests/threads.rs`).

mod bind;
mod deal;
mod entered;
mod path;
mod placement;
mod sync;
#[cfg(test)]
mod tests;
mod whole;

use hibernet_snapshot::{Entropy, Instant, Redraw};

use self::placement::Placement;
use self::sync::{AtomicBool, AtomicU32, AtomicU64, Mutex, Ordering};
use crate::canary::CanaryScan;
use crate::conntrack::{Config, ConfigError, Conntrack, NotRestored, Settings, Totals, Validated};
use crate::event::{ConntrackEvent, EventQueue};
use crate::table::{Frame, check_capacity};
use crate::wire::WireChoices;

/// Connection tracking and NAT for several threads: [`Conntrack`] by `&self`.
///
/// What it does and what can be seen of it is the same, whatever the number of shards: packets that come one after the
/// other get the same answers, leave the same flows and give the same save.
#[derive(Debug)]
pub struct SharedConntrack {
    /// Class `redrawn`: which shard a tuple belongs to.
    placement: Placement,
    /// Class `redrawn`: where the next shard key comes from.
    keys: Mutex<Entropy>,
    /// Class `saved`: flows in the table at most.
    capacity: u32,
    /// Copy of what the sysctls make of the capacity.
    limit: AtomicU32,
    /// Class `saved`: half-open flows of one source at most.
    half_open_limit: u32,
    /// Copy of `nf_conntrack_checksum`.
    checksum: AtomicBool,
    /// Class `saved`, together with the others.
    first: Shard,
    others: Vec<Shard>,
    /// Class `rebuilt`.
    counts: Counts,
    /// Class `redrawn`.
    ports: Apart<WireChoices>,
    /// Not saved: what nobody has fetched is lost.
    events: Apart<EventQueue>,
}

/// How many shards there are: 1 to 64.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Shards(u8);

impl Shards {
    /// Refuses none at all and more than 64.
    pub fn new(count: u32) -> Result<Self, ConfigError> {
        match u8::try_from(count) {
            Ok(count @ 1..=MOST_SHARDS) => Ok(Self(count)),
            _ => Err(ConfigError::new("shards", count, format!("1 to {MOST_SHARDS}"))),
        }
    }
}

/// One shard, on cache lines of its own.
#[derive(Debug)]
#[repr(align(128))]
struct Shard {
    /// The latest time this shard was told, in nanoseconds. Written under the lock, read without.
    latest: AtomicU64,
    conntrack: Mutex<Conntrack>,
}

/// What all shards count together.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Counts {
    flows: AtomicU32,
    /// Flows whose tuples belong to two shards.
    across: AtomicU32,
    next_serial: AtomicU64,
}

/// A lock on cache lines of its own.
#[derive(Debug)]
#[repr(align(128))]
struct Apart<T>(Mutex<T>);

impl SharedConntrack {
    /// An empty table.
    pub fn new(config: Config, shards: Shards, entropy: &mut Entropy, now: Instant) -> Result<Self, ConfigError> {
        let Config { sysctls, capacity, early_drop, half_open_limit } = config;
        check_capacity(capacity).map_err(|expected| ConfigError::new("capacity", capacity, expected))?;
        let settings = Settings { sysctls, early_drop, half_open_limit };
        Ok(Self::empty(settings, Totals::default(), capacity, shards, Frame::new(now, 0), entropy))
    }

    /// The next event nobody has fetched.
    pub fn next_event(&self) -> Option<ConntrackEvent> {
        self.events.0.lock().pop()
    }

    /// Events that were lost since nobody fetched them in time.
    pub fn events_lost(&self) -> u64 {
        self.events.0.lock().lost()
    }

    /// Number of flows in the table, expired ones that nothing has collected yet included.
    pub fn len(&self) -> u32 {
        self.counts.flows.load(Ordering::Relaxed)
    }

    /// Whether the table is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Flows the table has room for.
    pub const fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Tells the time without a packet: what [`SharedConntrack::flows`] and a save count remaining times from.
    pub fn advance(&self, now: Instant) {
        self.enter(0).advance(now);
    }

    /// Shows `look` the source of port choices, for tests that record and replay them.
    pub fn with_port_choices<T>(&self, look: impl FnOnce(&mut WireChoices) -> T) -> T {
        look(&mut self.ports.0.lock())
    }

    /// Adds all keys and every tuple's hash to what a canary scan looks for.
    pub fn watch(&self, scan: &mut CanaryScan) {
        self.placement.watch(scan);
        self.ports.0.lock().watch("NAT ports", scan);
        for shard in self.enter_all().iter() {
            shard.watch(scan);
        }
    }

    /// Shards without flows.
    fn empty(
        settings: Settings,
        totals: Totals,
        capacity: u32,
        shards: Shards,
        frame: Frame,
        entropy: &mut Entropy,
    ) -> Self {
        let Shards(count) = shards;
        let placement = Placement::redraw(entropy);
        let room = deal::room(capacity, count);
        let half_open_limit = settings.half_open_limit;
        let limit = AtomicU32::new(settings.sysctls.limit(capacity));
        let checksum = AtomicBool::new(settings.sysctls.checksum);
        let mut shard = |number, totals| {
            let part = placement.part(number);
            Shard::new(Conntrack::shard(settings.clone(), totals, frame, room, part, entropy))
        };
        let first = shard(0, totals);
        let others = (1..count).map(|number| shard(number, Totals::default())).collect();
        Self {
            placement,
            keys: Mutex::new(Entropy::redraw(entropy)),
            capacity,
            limit,
            half_open_limit,
            checksum,
            first,
            others,
            counts: Counts { next_serial: AtomicU64::new(1), ..Counts::default() },
            ports: Apart(Mutex::new(WireChoices::redraw(entropy))),
            events: Apart(Mutex::new(EventQueue::default())),
        }
    }
}

impl Shard {
    fn new(conntrack: Conntrack) -> Self {
        Self { latest: AtomicU64::new(conntrack.latest().as_nanos()), conntrack: Mutex::new(conntrack) }
    }
}

impl Validated {
    /// Draws fresh keys and deals the flows out to shards, every tuple filed under them: [`Validated::rehash`] for a table
    /// that threads share.
    pub fn rehash_shared(self, shards: Shards, entropy: &mut Entropy) -> Result<SharedConntrack, NotRestored> {
        let (settings, totals, flows) = self.into_parts();
        let shared = SharedConntrack::empty(settings, totals, flows.capacity(), shards, flows.frame(), entropy);
        shared.take_in(&flows)?;
        Ok(shared)
    }
}

/// A handle tells the shard by a few bits; and who looks at all of them should be done soon.
const MOST_SHARDS: u8 = 64;
