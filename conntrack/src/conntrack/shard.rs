//! What a table does differently as one of several that share their flows: see [`crate::SharedConntrack`].

use core::net::IpAddr;

use hibernet_snapshot::{Entropy, Instant, Redraw, Snapshot};

use super::limits::HalfOpen;
use super::{Conntrack, ConntrackSaved, EarlyDrop, Refusal, Totals};
use crate::attachment::{Attached, Attachment};
use crate::event::{ConntrackEvent, EventQueue};
use crate::nat::Sources;
use crate::record::FlowRecord;
use crate::status::Status;
use crate::sysctl::Sysctls;
use crate::table::{DueOrder, Flows, Frame, Handle, Moved, NotInserted, Part, Slot, Table};
use crate::tuple::{Tuple, Zone};
use crate::wire::WireChoices;

/// What all shards know alike.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) sysctls: Sysctls,
    pub(crate) early_drop: EarlyDrop,
    pub(crate) half_open_limit: u32,
}

impl Conntrack {
    /// A shard without flows.
    pub(crate) fn shard(
        settings: Settings,
        totals: Totals,
        frame: Frame,
        room: u32,
        part: Part,
        entropy: &mut Entropy,
    ) -> Self {
        let Settings { sysctls, early_drop, half_open_limit } = settings;
        Self {
            sysctls,
            early_drop,
            half_open_limit,
            totals,
            table: Table::part(frame, room, part, entropy),
            ports: WireChoices::redraw(entropy),
            sources: Sources::default(),
            half_open: HalfOpen::new(half_open_limit),
            events: EventQueue::default(),
        }
    }

    /// Empties a shard, which then takes other flows over. Nobody is told: they only move.
    pub(crate) fn restart_shard(&mut self, frame: Frame, room: u32, part: Part) {
        self.table.restart(frame, room, part);
        self.sources = Sources::default();
        self.half_open = HalfOpen::new(self.half_open_limit);
    }

    /// Takes a flow over from another shard. False if there is no room.
    pub(crate) fn adopt(&mut self, moved: &Moved) -> bool {
        let Some(slot) = self.table.adopt(moved) else { return false };
        self.sources.insert(self.table.flows(), slot);
        self.half_open.enter(self.table.flows(), slot);
        true
    }

    /// The latest time the shard was told.
    pub(crate) const fn latest(&self) -> Instant {
        self.table.flows().now()
    }

    pub(crate) const fn flows_here(&self) -> &Flows {
        self.table.flows()
    }

    /// Whether a flow here has `tuple` as one of its directions, expired or not.
    pub(crate) fn is_taken(&self, tuple: &Tuple, zone: Zone) -> bool {
        self.table.is_taken(tuple, zone)
    }

    /// The newest mappings of `orig`'s socket, with the serial numbers of their flows.
    pub(crate) fn mappings(&self, orig: &Tuple, zone: u16) -> impl Iterator<Item = (u64, (IpAddr, u16))> {
        self.sources.mappings(self.table.flows(), orig, zone)
    }

    /// Confirms a flow as number `serial`; `elsewhere` says that another shard has one of its tuples.
    pub(crate) fn confirm_as(
        &mut self,
        attachment: &mut Attachment,
        serial: Option<u64>,
        elsewhere: bool,
        now: Instant,
    ) -> Result<(), Refusal> {
        let Attached::Unconfirmed(flow) = &mut attachment.0 else { return Ok(()) };
        self.table.flows_mut().advance(now);
        flow.status |= Status::CONFIRMED;
        let taken = || self.table.is_taken(&flow.orig, flow.zone) || self.table.is_taken(&flow.reply, flow.zone);
        let inserted = match serial {
            _ if elsewhere => Err(NotInserted::Taken),
            None if taken() => Err(NotInserted::Taken),
            None => Err(NotInserted::Full),
            Some(serial) => {
                self.table.flows_mut().number_next(serial);
                self.table.insert(flow)
            }
        };
        self.confirmed(attachment, inserted)
    }

    /// Whom early drop takes.
    pub(crate) const fn early_drop(&self) -> EarlyDrop {
        self.early_drop
    }

    /// The unassured flow here that is oldest, and its serial number.
    pub(crate) fn oldest_unassured(&self) -> Option<(u64, Slot)> {
        self.table.flows().oldest_unassured_serial()
    }

    /// Drops a flow of this shard early, or the packet that has no other place to go to.
    pub(crate) fn make_way(&mut self, victim: Option<Slot>) -> Result<(), Refusal> {
        self.drop_early(victim)
    }

    /// Flows whose time has come, each with what orders them; takes from `budget` the flows it looks at.
    pub(crate) fn due(&mut self, budget: &mut usize) -> Vec<(DueOrder, Slot)> {
        self.table.flows_mut().fire(budget)
    }

    /// Every slot with its serial number.
    pub(crate) fn occupied(&self) -> impl Iterator<Item = (u64, Slot)> {
        self.table.flows().occupied()
    }

    pub(crate) fn record(&self, slot: Slot) -> Option<FlowRecord> {
        self.table.flows().record(slot)
    }

    pub(crate) fn is_over(&self, slot: Slot) -> bool {
        self.table.flows().is_expired(slot)
    }

    /// Removes the flow in `slot` and reports it.
    pub(crate) fn remove(&mut self, slot: Slot) {
        self.destroy(slot);
    }

    /// Whether `handle` was made for the flows as they are dealt out now.
    pub(crate) fn made(&self, handle: Handle) -> bool {
        self.table.flows().made(handle)
    }

    /// Whether the flow that `handle` names is here.
    pub(crate) fn holds(&self, handle: Handle) -> bool {
        self.table.flows().slot(handle).is_some()
    }

    /// What was reported here and nobody has taken.
    pub(crate) fn take_events(&mut self) -> impl Iterator<Item = ConntrackEvent> {
        core::iter::from_fn(|| self.events.pop())
    }

    pub(crate) fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// What shards hold together, as one table would have saved it. They must have been told the same time.
    pub(crate) fn save_shards(first: &Self, others: &[&Self], totals: Totals, capacity: u32) -> ConntrackSaved {
        let Self {
            sysctls,
            early_drop,
            half_open_limit,
            totals: _,
            table,
            ports: _,
            sources: _,
            half_open: _,
            events: _,
        } = first;
        let tables: Vec<_> = core::iter::once(table).chain(others.iter().map(|shard| &shard.table)).collect();
        ConntrackSaved {
            sysctls: sysctls.save(),
            early_drop: early_drop.save(),
            half_open_limit: half_open_limit.save(),
            totals: totals.save(),
            table: Table::save_parts(&tables, capacity),
        }
    }

    /// Adds the hash key and every tuple's hash to what a canary scan looks for.
    pub(crate) fn watch_table(&self, scan: &mut crate::CanaryScan) {
        scan.watch_key("table hash", self.table.key().expose());
        scan.watch_key("later table hashes", self.table.keys().seed().expose());
        self.table.each_hash(|hash| scan.watch_hash(hash));
    }
}

impl Totals {
    /// The totals of both.
    pub(crate) const fn and(self, other: Self) -> Self {
        let Self { invalid, insert, insert_failed, drop, early_drop } = self;
        Self {
            invalid: invalid.saturating_add(other.invalid),
            insert: insert.saturating_add(other.insert),
            insert_failed: insert_failed.saturating_add(other.insert_failed),
            drop: drop.saturating_add(other.drop),
            early_drop: early_drop.saturating_add(other.early_drop),
        }
    }
}
