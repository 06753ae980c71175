//! What concerns all shards at once: lists, saves, settings, expiry.

use core::net::IpAddr;

use hibernet_snapshot::Instant;

use super::SharedConntrack;
use super::sync::Ordering;
use crate::conntrack::{Conntrack, ConntrackSaved, Totals};
use crate::record::FlowRecord;
use crate::status::Status;
use crate::sysctl::{SysctlError, Sysctls};
use crate::table::Handle;
use crate::tuple::{Direction, Tuple, Zone};

impl SharedConntrack {
    /// All flows in creation order, but for those whose time has come.
    pub fn flows(&self) -> Vec<FlowRecord> {
        let all = self.enter_all();
        let mut flows = Vec::new();
        for shard in all.iter() {
            let live = shard.occupied().filter(|(_, slot)| !shard.is_over(*slot));
            flows.extend(live.filter_map(|(serial, slot)| Some((serial, shard.record(slot)?))));
        }
        drop(all);
        flows.sort_unstable_by_key(|(serial, _)| *serial);
        flows.into_iter().map(|(_, flow)| flow).collect()
    }

    /// The flow a handle names, if it is still there.
    pub fn flow(&self, handle: Handle) -> Option<FlowRecord> {
        let now = self.latest();
        self.with_flow(handle, |shard| {
            shard.advance(now);
            shard.flow(handle)
        })?
    }

    /// Finds the flow that has `tuple` as one of its directions.
    pub fn find(&self, tuple: &Tuple, zone: Zone) -> Option<(Handle, Direction)> {
        let now = self.latest();
        self.seek(tuple, |shard| {
            shard.advance(now);
            shard.find(tuple, zone)
        })
    }

    /// Collects flows whose time has come, looking at no more than `budget` flows, in the order of their deadlines. Locks all
    /// shards meanwhile, so the budget bounds how long packets wait.
    pub fn expire(&self, now: Instant, mut budget: usize) {
        let mut all = self.enter_all();
        all.advance(now);
        let mut over = Vec::new();
        for (number, shard) in all.iter_mut().enumerate() {
            over.extend(shard.due(&mut budget).into_iter().map(|(due, slot)| (due, number, slot)));
        }
        over.sort_unstable_by_key(|(due, ..)| *due);
        for (_, number, slot) in over {
            all.remove(number, slot);
        }
    }

    /// When [`SharedConntrack::expire`] has something to do next.
    pub fn next_expiry(&self) -> Option<Instant> {
        self.enter_all().iter().filter_map(|shard| shard.next_expiry()).min()
    }

    /// Removes a flow (`conntrack -D`). False if it is gone already.
    pub fn delete(&self, handle: Handle, now: Instant) -> bool {
        self.with_flow(handle, |shard| shard.delete(handle, now)).unwrap_or(false)
    }

    /// Removes all flows (`conntrack -F`).
    pub fn flush(&self, now: Instant) {
        self.remove_where(now, |_| true);
    }

    /// An address has left a link: flows that masquerade behind it cannot go on.
    pub fn address_removed(&self, address: IpAddr, now: Instant) {
        self.remove_where(now, |flow| flow.status.contains(Status::MASQUERADE) && flow.reply.dst == address);
    }

    /// Limits, timeouts and switches.
    pub fn sysctls(&self) -> Sysctls {
        self.enter(0).sysctls().clone()
    }

    /// Sets a value by the kernel's name, `net.netfilter.` in front or not.
    pub fn set_sysctl(&self, name: &str, value: &str) -> Result<(), SysctlError> {
        let mut all = self.enter_all();
        for shard in all.iter_mut() {
            shard.set_sysctl(name, value)?;
        }
        let sysctls = all.at(0).sysctls();
        self.limit.store(sysctls.limit(self.capacity), Ordering::Relaxed);
        self.checksum.store(sysctls.checksum, Ordering::Relaxed);
        Ok(())
    }

    /// Totals over the table's life.
    pub fn totals(&self) -> Totals {
        self.enter_all().iter().fold(Totals::default(), |sum, shard| sum.and(shard.totals()))
    }

    /// What an image holds of it: the same as of a [`Conntrack`] that has seen the same.
    pub fn save(&self) -> ConntrackSaved {
        let Self {
            placement: _,
            keys: _,
            capacity,
            limit: _,
            half_open_limit: _,
            checksum: _,
            first: _,
            others: _,
            counts: _,
            ports: _,
            events: _,
        } = self;
        let all = self.enter_all();
        let totals = all.iter().fold(Totals::default(), |sum, shard| sum.and(shard.totals()));
        let (first, others) = all.tables();
        Conntrack::save_shards(first, &others, totals, *capacity)
    }

    fn remove_where(&self, now: Instant, mut gone: impl FnMut(&FlowRecord) -> bool) {
        let mut all = self.enter_all();
        all.advance(now);
        let mut leaving = Vec::new();
        for (number, shard) in all.iter().enumerate() {
            let gone = shard.occupied().filter(|(_, slot)| shard.record(*slot).is_some_and(|flow| gone(&flow)));
            leaving.extend(gone.map(|(serial, slot)| (serial, number, slot)));
        }
        leaving.sort_unstable_by_key(|(serial, ..)| *serial);
        for (_, number, slot) in leaving {
            all.remove(number, slot);
        }
    }
}
