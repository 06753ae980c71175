//! The object: table, trackers and NAT together, as netfilter's hooks call them.

mod bind;
mod burst;
mod follow;
mod limits;
mod restore;
mod save;
mod sever;
mod shard;
#[cfg(test)]
pub(crate) mod tests;

use hibernet_snapshot::{Entropy, Instant, Redraw, Snapshot};
use thiserror::Error;

pub use self::burst::{Ahead, BURST, Incoming};

pub(crate) use self::bind::{decide, is_undecided, null_range, translate};
pub(crate) use self::follow::{Subject, not_opening, subject, unrelated};
pub use self::limits::EarlyDrop;
use self::limits::{HalfOpen, half_open_flows};
pub(crate) use self::limits::{half_open_allows, neighbour};
pub use self::restore::{NotRestored, Validated};
use self::restore::{no_events, source_mappings};
pub use self::save::{FrozenConntrack, FrozenDelta, MergedFlows};
pub use self::sever::Ending;
pub(crate) use self::shard::Settings;
use crate::attachment::{Attached, Attachment};
use crate::canary::CanaryScan;
use crate::event::{ConntrackEvent, EventKind, EventQueue};
use crate::nat::Sources;
use crate::record::FlowRecord;
use crate::status::{CtState, Status};
use crate::sysctl::{SysctlError, Sysctls};
use crate::table::{Handle, NotInserted, Place, Slot, Table, check_capacity};
use crate::tuple::{Direction, Tuple, Zone, proto};
use crate::wire::WireChoices;

/// What a [`Conntrack`] starts with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// Limits, timeouts and switches.
    pub sysctls: Sysctls,
    /// Flows the table has room for: memory is reserved for them. `nf_conntrack_max` may set a lower limit, not a higher.
    pub capacity: u32,
    /// What happens to a new flow when the table is full.
    pub early_drop: EarlyDrop,
    /// TCP flows that one source address may have which are not ESTABLISHED yet; 0 sets no limit. Linux has none.
    pub half_open_limit: u32,
}

impl Default for Config {
    fn default() -> Self {
        let sysctls = Sysctls::default();
        Self { capacity: sysctls.max, sysctls, early_drop: EarlyDrop::Lru, half_open_limit: 0 }
    }
}

/// Why a packet is to be dropped.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The packet would open a flow, and the table is full.
    #[error("the connection table is full")]
    TableFull,
    /// The packet would open a connection, and its source has left as many half open as it may.
    #[error("too many half-open connections of one source")]
    HalfOpenLimit,
    /// The flow's tuples were taken between `track` and `confirm`.
    #[error("another flow has the same tuple")]
    Clash,
    /// NAT found no free port or identifier in the rule's range.
    #[error("no free port is left for the translation")]
    NatExhausted,
    /// A fork has ended the packet's flow, and its sender is to be told.
    #[error("a fork has reset the flow")]
    Reset,
    /// A fork has ended the packet's flow, and its sender is told nothing.
    #[error("a fork has severed the flow")]
    Severed,
    /// The packet cannot be translated: a header is cut, or the binding is of the other address family.
    #[error("the packet cannot be translated")]
    Untranslatable,
}

/// Why a configuration was refused.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{field}: found {found}, expected {expected}")]
pub struct ConfigError {
    field: &'static str,
    found: u32,
    expected: String,
}

impl ConfigError {
    pub(crate) const fn new(field: &'static str, found: u32, expected: String) -> Self {
        Self { field, found, expected }
    }
}

/// Totals over the table's life (`conntrack -S`). Saved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Snapshot)]
pub struct Totals {
    /// Packets that were INVALID.
    #[snapshot(saved)]
    pub invalid: u64,
    /// Flows that entered the table.
    #[snapshot(saved)]
    pub insert: u64,
    /// Flows that could not enter it.
    #[snapshot(saved)]
    pub insert_failed: u64,
    /// Packets dropped since the table was full.
    #[snapshot(saved)]
    pub drop: u64,
    /// Flows that went to make room.
    #[snapshot(saved)]
    pub early_drop: u64,
}

/// Where a packet comes from, as far as conntrack cares.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// From a link: at prerouting. Its checksums count.
    Link,
    /// From a link that has verified its checksums, or that left them out: at prerouting.
    Verified,
    /// From a local sender: at output.
    Local,
}

/// Connection tracking and NAT.
///
/// Does no I/O, reads no clock: the caller passes the time, which must not run backwards. Its hash key, the key of its port
/// choices and the generator behind them are `redrawn`, the index `rebuilt`: see [`Validated`] for the way back from a save.
#[derive(Debug, Snapshot)]
pub struct Conntrack {
    #[snapshot(saved)]
    sysctls: Sysctls,
    #[snapshot(saved)]
    early_drop: EarlyDrop,
    #[snapshot(saved)]
    half_open_limit: u32,
    #[snapshot(saved)]
    totals: Totals,
    #[snapshot(saved, nested)]
    table: Table,
    #[snapshot(redrawn)]
    ports: WireChoices,
    #[snapshot(rebuilt = source_mappings)]
    sources: Sources,
    #[snapshot(rebuilt = half_open_flows)]
    half_open: HalfOpen,
    #[snapshot(rebuilt = no_events)]
    events: EventQueue,
}

impl Conntrack {
    /// An empty table.
    pub fn new(config: Config, entropy: &mut Entropy, now: Instant) -> Result<Self, ConfigError> {
        let Config { sysctls, capacity, early_drop, half_open_limit } = config;
        check_capacity(capacity).map_err(|expected| ConfigError::new("capacity", capacity, expected))?;
        Ok(Self {
            sysctls,
            early_drop,
            half_open_limit,
            totals: Totals::default(),
            table: Table::new(capacity, entropy, now),
            ports: WireChoices::redraw(entropy),
            sources: Sources::default(),
            half_open: HalfOpen::new(half_open_limit),
            events: EventQueue::default(),
        })
    }

    /// Writes to the memory of the index, and to that of as many flows of each family: the system then gives it now and not
    /// while packets wait. More than [`Conntrack::capacity`] is as good as that.
    ///
    /// Memory for all flows of both families is reserved from the start, but a system gives pages when they are first written
    /// to, and one page costs as much as dozens of packets. Whoever would have huge pages advises so in the global allocator.
    pub fn prefault(&mut self, v4: u32, v6: u32) {
        self.table.touch(v4, v6);
    }

    /// The station `confirm`: a new flow enters the table. Everything else passes.
    pub fn confirm(&mut self, attachment: &mut Attachment, now: Instant) -> Result<(), Refusal> {
        self.confirm_at(attachment, None, now)
    }

    /// The same for who has looked ahead where the flow's original tuple is filed.
    fn confirm_at(&mut self, attachment: &mut Attachment, place: Option<Place>, now: Instant) -> Result<(), Refusal> {
        let Attached::Unconfirmed(flow) = &mut attachment.0 else { return Ok(()) };
        self.table.flows_mut().advance(now);
        flow.status |= Status::CONFIRMED;
        let place = place.filter(|place| self.table.is_current(place));
        let inserted = self.table.insert_at(&place.unwrap_or_else(|| self.table.place(&flow.orig)), flow);
        self.confirmed(attachment, inserted)
    }

    /// What becomes of a new flow and its packet once the table has taken it in, or has not.
    fn confirmed(&mut self, attachment: &mut Attachment, inserted: Result<Slot, NotInserted>) -> Result<(), Refusal> {
        let Attached::Unconfirmed(flow) = &attachment.0 else { return Ok(()) };
        let handle = match inserted {
            Ok(slot) => {
                self.totals.insert = self.totals.insert.saturating_add(1);
                self.sources.insert(self.table.flows(), slot);
                self.half_open.enter(self.table.flows(), slot);
                self.report(EventKind::New, slot);
                self.table.flows().handle(slot)
            }
            Err(NotInserted::Full) => return Err(self.refuse_insert(Refusal::TableFull)),
            Err(NotInserted::Taken) => Some(self.resolve_clash(flow)?),
        };
        let Some(handle) = handle else { return Err(Refusal::Clash) };
        let direction = Direction::Original;
        attachment.0 = Attached::Flow { handle, direction, state: CtState::New, ignored: None };
        Ok(())
    }

    /// Number of flows in the table, expired ones that nothing has collected yet included.
    pub const fn len(&self) -> u32 {
        self.table.flows().len()
    }

    /// Whether the table is empty.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All flows in creation order, but for those whose time has come.
    pub fn flows(&self) -> Vec<FlowRecord> {
        let flows = self.table.flows();
        let live = flows.in_creation_order().into_iter().filter(|slot| !flows.is_expired(*slot));
        live.filter_map(|slot| flows.record(slot)).collect()
    }

    /// The flow a handle names, if it is still there.
    pub fn flow(&self, handle: Handle) -> Option<FlowRecord> {
        self.table.flows().record(self.table.flows().slot(handle)?)
    }

    /// Finds the flow that has `tuple` as one of its directions.
    pub fn find(&self, tuple: &Tuple, zone: Zone) -> Option<(Handle, Direction)> {
        let (slot, direction) = self.table.find(tuple, zone)?;
        if self.table.flows().is_expired(slot) {
            return None;
        }
        Some((self.table.flows().handle(slot)?, direction))
    }

    /// Collects flows whose time has come, looking at no more than `budget` flows.
    pub fn expire(&mut self, now: Instant, budget: usize) {
        self.table.flows_mut().advance(now);
        for slot in self.table.flows_mut().expired(budget) {
            self.destroy(slot);
        }
    }

    /// When [`Conntrack::expire`] has something to do next.
    pub fn next_expiry(&self) -> Option<Instant> {
        self.table.flows().next_expiry()
    }

    /// Removes a flow (`conntrack -D`). False if it is gone already.
    pub fn delete(&mut self, handle: Handle, now: Instant) -> bool {
        self.table.flows_mut().advance(now);
        let slot = self.table.flows().slot(handle);
        slot.inspect(|slot| self.destroy(*slot)).is_some()
    }

    /// Removes all flows (`conntrack -F`).
    pub fn flush(&mut self, now: Instant) {
        self.remove_where(now, |_| true);
    }

    /// An address has left a link: flows that masquerade behind it cannot go on.
    pub fn address_removed(&mut self, address: core::net::IpAddr, now: Instant) {
        self.remove_where(now, |flow| flow.status.contains(Status::MASQUERADE) && flow.reply.dst == address);
    }

    /// The next event nobody has fetched.
    pub fn next_event(&mut self) -> Option<ConntrackEvent> {
        self.events.pop()
    }

    /// Events that were lost since nobody fetched them in time.
    pub const fn events_lost(&self) -> u64 {
        self.events.lost()
    }

    /// Limits, timeouts and switches.
    pub const fn sysctls(&self) -> &Sysctls {
        &self.sysctls
    }

    /// Sets a value by the kernel's name, `net.netfilter.` in front or not.
    pub fn set_sysctl(&mut self, name: &str, value: &str) -> Result<(), SysctlError> {
        self.sysctls.set(name, value)
    }

    /// Totals over the table's life.
    pub const fn totals(&self) -> Totals {
        self.totals
    }

    /// Flows the table has room for.
    pub const fn capacity(&self) -> u32 {
        self.table.flows().capacity()
    }

    /// Draws another hash key and files every flow anew. Happens by itself when the index overruns; nothing outside can tell.
    pub fn reseed(&mut self) {
        self.table.reseed();
    }

    /// The source of port choices, and of whom early drop `kernel` takes, for tests that record and replay them.
    pub const fn port_choices(&mut self) -> &mut WireChoices {
        &mut self.ports
    }

    /// Adds all keys and every tuple's hash to what a canary scan looks for.
    pub fn watch(&self, scan: &mut CanaryScan) {
        self.watch_table(scan);
        self.ports.watch("NAT ports", scan);
    }

    /// The tuples of a new flow are taken. Two first packets of one datagram flow may have been under way at once: the
    /// second then joins the flow of the first. Anything else is refused.
    fn resolve_clash(&mut self, flow: &FlowRecord) -> Result<Handle, Refusal> {
        let flows = self.table.flows();
        let same = self.table.find(&flow.orig, flow.zone).map(|(slot, _)| slot).filter(|slot| {
            !matches!(flow.orig.proto, proto::TCP | proto::SCTP)
                && flows.tuple(*slot, Direction::Original) == Some(flow.orig)
                && flows.tuple(*slot, Direction::Reply) == Some(flow.reply)
        });
        match same.and_then(|slot| flows.handle(slot)) {
            Some(handle) => Ok(handle),
            None if flow.status.intersects(Status::NAT_DONE) => Err(self.refuse_insert(Refusal::NatExhausted)),
            None => Err(self.refuse_insert(Refusal::Clash)),
        }
    }

    fn refuse_insert(&mut self, refusal: Refusal) -> Refusal {
        self.totals.insert_failed = self.totals.insert_failed.saturating_add(1);
        refusal
    }

    fn remove_where(&mut self, now: Instant, mut gone: impl FnMut(&FlowRecord) -> bool) {
        self.table.flows_mut().advance(now);
        for slot in self.table.flows().in_creation_order() {
            if self.table.flows().record(slot).is_some_and(|flow| gone(&flow)) {
                self.destroy(slot);
            }
        }
    }

    fn destroy(&mut self, slot: Slot) {
        if let Some(mut flow) = self.table.flows().record(slot) {
            self.half_open.leave(&flow);
            flow.status |= Status::DYING;
            self.events.push(EventKind::Destroy, flow);
        }
        self.sources.remove(self.table.flows(), slot);
        self.table.remove(slot);
    }

    fn report(&mut self, kind: EventKind, slot: Slot) {
        if !self.events.has_room() {
            self.events.lose();
        } else if let Some(flow) = self.table.flows().record(slot) {
            self.events.push(kind, flow);
        }
    }
}
