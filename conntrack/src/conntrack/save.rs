//! A save in two steps: [`Conntrack::freeze`], for which packets wait, and the packing of what it took, for which they do not.

use hibernet_snapshot::Snapshot;

use super::{Conntrack, ConntrackSaved};
use crate::conntrack::Totals;
use crate::table::{Frozen, Packing, SaveBuffer, Table, TableSaved};

/// Connection tracking at one moment, taken out of it.
#[derive(Debug)]
pub struct FrozenConntrack {
    settings: ConntrackSaved,
    flows: Frozen,
}

impl Conntrack {
    /// Copies everything a save holds into `buffer`: the pause of a save, 128 bytes a slot of IPv4 and 192 of IPv6.
    /// `conntrack.freeze(buffer).pack(..)` holds what [`Snapshot::save`] of the same moment does.
    pub fn freeze(&self, buffer: SaveBuffer) -> FrozenConntrack {
        Self::freeze_shards(self, &[], self.totals, self.capacity(), buffer)
    }

    /// What shards hold together. They must have been told the same time.
    pub(crate) fn freeze_shards(
        first: &Self,
        others: &[&Self],
        totals: Totals,
        capacity: u32,
        buffer: SaveBuffer,
    ) -> FrozenConntrack {
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
        let flows = Table::freeze(&tables, capacity, buffer);
        let settings = ConntrackSaved {
            sysctls: sysctls.save(),
            early_drop: early_drop.save(),
            half_open_limit: half_open_limit.save(),
            totals: totals.save(),
            table: TableSaved::empty(capacity),
        };
        FrozenConntrack { settings, flows }
    }
}

impl FrozenConntrack {
    /// Settings and totals, and what fits beside them of the flows: the section that is not packed in blocks.
    pub fn settings(&mut self, packing: &Packing) -> ConntrackSaved {
        let table = TableSaved::of(self.flows.with_first_records(packing));
        ConntrackSaved { table, ..self.settings.clone() }
    }

    /// How many flows there are, once [`FrozenConntrack::settings`] has sorted them.
    pub const fn flows(&self) -> usize {
        self.flows.count()
    }

    /// How many blocks [`FrozenConntrack::pack`] will hand out, once [`FrozenConntrack::settings`] was asked for.
    pub fn blocks(&self, packing: &Packing) -> u32 {
        self.flows.blocks(packing)
    }

    /// Packs the flows that are not in the settings, and hands them out block by block in their order. Memory beside the
    /// frozen copy is bounded by a few blocks a thread, of at most 2.6 MB each.
    ///
    /// `look` is called for each block on the thread that has packed it, for a checksum; what it found goes along to `sink`.
    ///
    /// # Errors
    /// Those of `sink`, with which the packing ends.
    pub fn pack<M: Send, E>(
        &self,
        packing: &Packing,
        look: impl Fn(&[u8]) -> M + Sync,
        sink: impl FnMut(&[u8], M) -> Result<(), E>,
    ) -> Result<(), E> {
        self.flows.pack(packing, look, sink)
    }

    /// The memory, for the next save.
    pub fn into_buffer(self) -> SaveBuffer {
        self.flows.into_buffer()
    }
}

impl ConntrackSaved {
    /// Adds a block that [`FrozenConntrack::pack`] handed out, in the same order. It is looked at when the flows are restored.
    pub fn attach(&mut self, block: Vec<u8>) {
        self.table.attach(block);
    }

    /// How many flows it says it holds.
    pub const fn count(&self) -> u32 {
        self.table.count()
    }
}
