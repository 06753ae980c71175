//! The way back from a save, in steps that cannot be skipped.

use hibernet_snapshot::{Entropy, Instant, Invalid, Redraw, Snapshot};
use thiserror::Error;

use super::limits::half_open_flows;
use super::{Conntrack, ConntrackParts, ConntrackSaved, EarlyDrop, Settings, Totals};
use crate::event::EventQueue;
use crate::nat::Sources;
use crate::record::FlowRecord;
use crate::sysctl::Sysctls;
use crate::table::{Flows, RestoreOptions, RestoreRoom, Unfiled};
use crate::wire::WireChoices;

/// A saved value was refused. Nothing was changed.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("conntrack: {0}")]
pub struct NotRestored(#[from] Invalid);

/// Flows that passed every check but cannot be looked up yet: there is no key.
///
/// Only [`Validated::rehash`] leads on, and what it returns is filed under a key that was drawn for it.
#[derive(Debug)]
pub struct Validated {
    sysctls: Sysctls,
    early_drop: EarlyDrop,
    half_open_limit: u32,
    totals: Totals,
    pub(super) table: Unfiled,
}

impl Validated {
    /// Checks what an image held. `now` is what remaining times count from.
    pub fn check(saved: ConntrackSaved, now: Instant, entropy: &mut Entropy) -> Result<Self, NotRestored> {
        Self::check_with(saved, now, entropy, &mut RestoreOptions::default())
    }

    /// The same on several threads, into memory that is there, with word of how far it is.
    pub fn check_with(
        saved: ConntrackSaved,
        now: Instant,
        entropy: &mut Entropy,
        options: &mut RestoreOptions<'_>,
    ) -> Result<Self, NotRestored> {
        let ConntrackSaved { sysctls, early_drop, half_open_limit, totals, table } = saved;
        Ok(Self {
            sysctls: Sysctls::restore(sysctls, (), entropy)?,
            early_drop: EarlyDrop::restore(early_drop, (), entropy)?,
            half_open_limit: u32::restore(half_open_limit, (), entropy)?,
            totals: Totals::restore(totals, (), entropy)?,
            table: Unfiled::check(table, now, options)?,
        })
    }

    /// The flows, in the order of their creation.
    pub fn flows(&self) -> Vec<FlowRecord> {
        let flows = self.table.flows();
        flows.in_creation_order().into_iter().filter_map(|slot| flows.record(slot)).collect()
    }

    /// The settings, by the kernel's names.
    pub const fn sysctls(&self) -> &Sysctls {
        &self.sysctls
    }

    /// Whom a full table lets go.
    pub const fn early_drop(&self) -> EarlyDrop {
        self.early_drop
    }

    /// TCP flows of one source that may be half open; 0 sets no limit.
    pub const fn half_open_limit(&self) -> u32 {
        self.half_open_limit
    }

    /// Totals over the table's life.
    pub const fn totals(&self) -> Totals {
        self.totals
    }

    /// How many flows the table has room for.
    pub const fn capacity(&self) -> u32 {
        self.table.flows().capacity()
    }

    /// Forgets the flows for which `keep` is false: those that cannot go on.
    pub fn retain(&mut self, mut keep: impl FnMut(&FlowRecord) -> bool) {
        for slot in self.table.flows().in_creation_order() {
            if self.table.flows().record(slot).is_some_and(|flow| !keep(&flow)) {
                self.table.drop_flow(slot);
            }
        }
    }

    /// Counts `gone` as time that has passed since the save. Flows whose time is over then have nothing left of it; they stay
    /// until [`Validated::retain`] forgets them.
    pub fn elapse(&mut self, gone: core::time::Duration) {
        self.table.flows_mut().elapse(gone);
    }

    /// What shards are made of: settings, totals so far, and the flows.
    pub(crate) fn into_parts(self) -> (Settings, Totals, Flows) {
        let Self { sysctls, early_drop, half_open_limit, totals, table } = self;
        (Settings { sysctls, early_drop, half_open_limit }, totals, table.into_flows())
    }

    /// Draws fresh keys and files every tuple under them.
    pub fn rehash(self, entropy: &mut Entropy) -> Result<Conntrack, NotRestored> {
        self.rehash_with(entropy, &mut RestoreOptions::default())
    }

    /// The same on several threads, into memory that is there, with word of how far it is.
    pub fn rehash_with(
        self,
        entropy: &mut Entropy,
        options: &mut RestoreOptions<'_>,
    ) -> Result<Conntrack, NotRestored> {
        let Self { sysctls, early_drop, half_open_limit, totals, table } = self;
        let table = table.rehash(entropy, options)?;
        let ports = WireChoices::redraw(entropy);
        let parts = ConntrackParts {
            sysctls: &sysctls,
            early_drop: &early_drop,
            half_open_limit: &half_open_limit,
            totals: &totals,
            table: &table,
            ports: &ports,
        };
        let sources = Sources::of(table.flows(), options.threads());
        let (half_open, events) = (half_open_flows(&parts)?, no_events(&parts)?);
        Ok(Conntrack { sysctls, early_drop, half_open_limit, totals, table, ports, sources, half_open, events })
    }
}

impl Conntrack {
    /// The memory of a table that is not needed any more, for the next restore.
    pub fn into_room(self) -> RestoreRoom {
        self.table.into_room()
    }
}

pub(super) fn source_mappings(parts: &ConntrackParts<'_>) -> Result<Sources, Invalid> {
    Ok(Sources::of(parts.table.flows(), 1))
}

pub(super) fn no_events(_: &ConntrackParts<'_>) -> Result<EventQueue, Invalid> {
    Ok(EventQueue::default())
}
