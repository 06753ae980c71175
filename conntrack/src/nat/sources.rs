//! Which mappings an inside socket has: several flows of one socket get one outside port (RFC 4787, REQ-1).

use core::net::IpAddr;
use std::collections::BTreeMap;

use crate::status::Status;
use crate::table::{Addr, Entry, Flows, Slot};
use crate::tuple::{Direction, Tuple};

/// Flows that went through source NAT, by inside socket and age.
#[derive(Debug, Default)]
pub(crate) struct Sources(BTreeMap<(Socket, u64), Slot>);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Socket {
    zone: u16,
    proto: u8,
    address: IpAddr,
    port: u16,
}

impl Socket {
    const fn of(orig: &Tuple, zone: u16) -> Self {
        Self { zone, proto: orig.proto, address: orig.src, port: orig.sport }
    }
}

impl Sources {
    /// Files all flows of a table, as after a restore; on two threads if there are as many.
    pub(crate) fn of(flows: &Flows, threads: usize) -> Self {
        let (v4, v6) = flows.slabs();
        let of_v6 = || collected(v6, Slot::v6);
        let (v4, v6) = if threads > 1 && !v6.is_empty() {
            std::thread::scope(|scope| {
                let of_v6 = scope.spawn(of_v6);
                let v4 = collected(v4, Slot::v4);
                (v4, of_v6.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            })
        } else {
            (collected(v4, Slot::v4), of_v6())
        };
        // Sorted already, all but for zones and protocols that both families have: the tree is then built from below.
        Self(v4.into_iter().chain(v6).collect())
    }

    /// Remembers a flow, if source NAT was decided for it.
    pub(crate) fn insert(&mut self, flows: &Flows, slot: Slot) {
        if let Some(key) = key(flows, slot) {
            self.0.insert(key, slot);
        }
    }

    /// Forgets a flow. Call it while the flow is still in its slot.
    pub(crate) fn remove(&mut self, flows: &Flows, slot: Slot) {
        if let Some(key) = key(flows, slot) {
            self.0.remove(&key);
        }
    }

    /// What the flows of `orig`'s socket look like outside, the newest first, each with its serial number.
    pub(crate) fn mappings(
        &self,
        flows: &Flows,
        orig: &Tuple,
        zone: u16,
    ) -> impl Iterator<Item = (u64, (IpAddr, u16))> {
        let socket = Socket::of(orig, zone);
        let same = self.0.range((socket, 0)..=(socket, u64::MAX)).rev().take(LOOKED_AT);
        same.filter_map(|((_, serial), slot)| {
            let outside = flows.tuple(*slot, Direction::Reply)?.inverted()?;
            Some((*serial, (outside.src, outside.sport)))
        })
    }
}

/// The mappings of one family, sorted by socket and age.
fn collected<A: Addr>(slab: &[Entry<A>], slot: impl Fn(u32) -> Slot) -> Vec<((Socket, u64), Slot)> {
    let mut all: Vec<_> = (0_u32..)
        .zip(slab)
        .filter(|(_, entry)| entry.core.serial() != 0 && entry.core.status().contains(Status::SRC_NAT_DONE))
        .map(|(number, entry)| {
            let (orig, zone) = (entry.tuple(Direction::Original), entry.core.zone().of(Direction::Original));
            ((Socket::of(&orig, zone), entry.core.serial()), slot(number))
        })
        .collect();
    all.sort_unstable();
    all
}

fn key(flows: &Flows, slot: Slot) -> Option<(Socket, u64)> {
    let core = flows.core(slot)?;
    let decided = core.status().contains(Status::SRC_NAT_DONE);
    let orig = flows.tuple(slot, Direction::Original)?;
    decided.then(|| (Socket::of(&orig, core.zone().of(Direction::Original)), core.serial()))
}

/// How many flows of one socket are looked at: bounds the work a client can cause with one source port.
pub(crate) const LOOKED_AT: usize = 16;
