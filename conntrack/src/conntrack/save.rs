//! A save in two steps: [`Conntrack::freeze`], for which packets wait, and the packing of what it took, for which they do not.

use hibernet_snapshot::Snapshot;

use super::{Conntrack, ConntrackSaved, NotRestored, Totals};
use crate::table::{Frozen, FrozenChanges, Merged, Packing, SaveBuffer, SavePoint, Table, TableSaved};

/// What has changed of connection tracking since a save, taken out of it.
#[derive(Debug)]
pub struct FrozenDelta {
    settings: ConntrackSaved,
    flows: FrozenChanges,
}

/// The flows of a full save, and of the deltas that are applied to it.
#[derive(Debug)]
pub struct MergedFlows(Merged);

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

    /// As [`Conntrack::freeze`], for a save that deltas will refer to: from now on it is known what changes. Once it is written,
    /// say so with [`Conntrack::written`].
    pub fn freeze_base(&mut self, buffer: SaveBuffer) -> FrozenConntrack {
        self.table.flows_mut().track_changes();
        self.table.flows_mut().turn();
        let FrozenConntrack { settings, flows } = self.freeze(buffer);
        FrozenConntrack { settings, flows: flows.of_turn(self.table.flows().turns()) }
    }

    /// Copies what has changed since the last save that was [`Conntrack::written`]: the pause of a delta. `None` if there was
    /// none. Takes `&mut` only to begin the count of what changes anew; nothing else is different afterwards.
    pub fn freeze_delta(&mut self) -> Option<FrozenDelta> {
        let flows = self.table.flows_mut().freeze_changes()?;
        Some(FrozenDelta { settings: self.settings(self.totals, self.capacity()), flows })
    }

    /// The last save that was frozen as a base or a delta is written, and the next delta may refer to it. One that was not
    /// written costs nothing but that the next holds more. False, and nothing changed, if another was frozen since, or if it was
    /// no base.
    pub fn written(&mut self, point: SavePoint) -> bool {
        self.table.flows_mut().written(point)
    }

    /// What shards hold together. They must have been told the same time.
    pub(crate) fn freeze_shards(
        first: &Self,
        others: &[&Self],
        totals: Totals,
        capacity: u32,
        buffer: SaveBuffer,
    ) -> FrozenConntrack {
        let tables: Vec<_> = core::iter::once(&first.table).chain(others.iter().map(|shard| &shard.table)).collect();
        let flows = Table::freeze(&tables, capacity, buffer);
        let settings = first.settings(totals, capacity);
        FrozenConntrack { settings, flows }
    }

    /// Everything a save holds but the flows.
    fn settings(&self, totals: Totals, capacity: u32) -> ConntrackSaved {
        let Self {
            sysctls,
            early_drop,
            half_open_limit,
            totals: _,
            table: _,
            ports: _,
            sources: _,
            half_open: _,
            events: _,
        } = self;
        ConntrackSaved {
            sysctls: sysctls.save(),
            early_drop: early_drop.save(),
            half_open_limit: half_open_limit.save(),
            totals: totals.save(),
            table: TableSaved::empty(capacity),
        }
    }
}

impl FrozenDelta {
    /// Settings and totals; of the flows nothing but what they have in common.
    pub fn settings(&self) -> ConntrackSaved {
        ConntrackSaved { table: TableSaved::of(self.flows.settings()), ..self.settings.clone() }
    }

    /// How many flows have changed or come.
    pub const fn changed(&self) -> usize {
        self.flows.changed()
    }

    /// How the flows of the save before become those of this one, for [`MergedFlows::apply`], and what the next delta will
    /// refer to once this one is [`Conntrack::written`].
    pub fn pack(&self) -> (Vec<u8>, SavePoint) {
        self.flows.pack()
    }
}

impl MergedFlows {
    /// Begins with the flows of a full save.
    ///
    /// # Errors
    /// If a block of them cannot be.
    pub fn begin(base: &ConntrackSaved) -> Result<Self, NotRestored> {
        Ok(Self(Merged::begin(base.table.flows())?))
    }

    /// Goes on to the flows that a delta leads to. Each record is checked only when the flows are restored.
    ///
    /// # Errors
    /// If it belongs to other flows than these.
    pub fn apply(&mut self, script: &[u8]) -> Result<(), NotRestored> {
        Ok(self.0.apply(script)?)
    }

    /// What a full save would have held at the moment of the last delta, whose `settings` these are.
    ///
    /// # Errors
    /// If a record cannot be told from the next.
    pub fn finish(self, settings: ConntrackSaved) -> Result<ConntrackSaved, NotRestored> {
        let ConntrackSaved { sysctls, early_drop, half_open_limit, totals, table } = settings;
        let table = TableSaved::of(self.0.finish(table.into_flows())?);
        Ok(ConntrackSaved { sysctls, early_drop, half_open_limit, totals, table })
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

    /// What deltas can refer to once the save is [`Conntrack::written`]; after [`FrozenConntrack::settings`] has sorted the flows.
    pub fn point(&self) -> SavePoint {
        self.flows.point()
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
