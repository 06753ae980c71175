//! Which mappings an inside socket has: several flows of one socket get one outside port (RFC 4787, REQ-1).

use core::net::IpAddr;
use std::collections::BTreeMap;

use crate::status::Status;
use crate::table::{Addr, Entry, Flows, Slot};
use crate::tuple::{Direction, Tuple};

/// Flows that went through source NAT, by inside socket and age.
///
/// A key is one number, or four, so that a tree of a million of them is built and searched without comparing field by field.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    v4: BTreeMap<u128, Slot>,
    v6: BTreeMap<[u64; 4], Slot>,
}

/// An inside socket of one family and the age of its flow: of one socket all keys stand together, the older before the newer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Key {
    V4(u128),
    V6([u64; 4]),
}

impl Key {
    fn of(orig: &Tuple, zone: u16, serial: u64) -> Self {
        let serial = serial.min(NEWEST);
        let rest = u64::from(zone) << 24 | u64::from(orig.proto) << 16 | u64::from(orig.sport);
        match orig.src {
            IpAddr::V4(address) => {
                Self::V4(u128::from(rest) << 80 | u128::from(address.to_bits()) << 48 | u128::from(serial))
            }
            IpAddr::V6(address) => {
                let address = address.to_bits();
                Self::V6([(address >> 64) as u64, address as u64, rest, serial])
            }
        }
    }
}

impl Sources {
    /// Files all flows of a table, as after a restore; on two threads if there are as many.
    pub(crate) fn of(flows: &Flows, threads: usize) -> Self {
        let (v4, v6) = flows.slabs();
        let of_v4 = || tree(v4, Slot::v4, |key| if let Key::V4(key) = key { Some(key) } else { None });
        let of_v6 = || tree(v6, Slot::v6, |key| if let Key::V6(key) = key { Some(key) } else { None });
        if threads < 2 || v4.is_empty() || v6.is_empty() {
            return Self { v4: of_v4(), v6: of_v6() };
        }
        std::thread::scope(|scope| {
            let of_v6 = scope.spawn(of_v6);
            let v4 = of_v4();
            Self { v4, v6: of_v6.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)) }
        })
    }

    /// Remembers a flow, if source NAT was decided for it.
    pub(crate) fn insert(&mut self, flows: &Flows, slot: Slot) {
        match key(flows, slot) {
            Some(Key::V4(key)) => drop(self.v4.insert(key, slot)),
            Some(Key::V6(key)) => drop(self.v6.insert(key, slot)),
            None => {}
        }
    }

    /// Forgets a flow. Call it while the flow is still in its slot.
    pub(crate) fn remove(&mut self, flows: &Flows, slot: Slot) {
        match key(flows, slot) {
            Some(Key::V4(key)) => drop(self.v4.remove(&key)),
            Some(Key::V6(key)) => drop(self.v6.remove(&key)),
            None => {}
        }
    }

    /// What the flows of `orig`'s socket look like outside, the newest first, each with its serial number.
    pub(crate) fn mappings(
        &self,
        flows: &Flows,
        orig: &Tuple,
        zone: u16,
    ) -> impl Iterator<Item = (u64, (IpAddr, u16))> {
        let (v4, v6) = match (Key::of(orig, zone, 0), Key::of(orig, zone, NEWEST)) {
            (Key::V4(first), Key::V4(last)) => (Some(self.v4.range(first..=last)), None),
            (Key::V6(first), Key::V6(last)) => (None, Some(self.v6.range(first..=last))),
            _ => (None, None),
        };
        let v4 = v4.into_iter().flat_map(|same| same.rev().map(|(_, slot)| *slot));
        let v6 = v6.into_iter().flat_map(|same| same.rev().map(|(_, slot)| *slot));
        v4.chain(v6).take(LOOKED_AT).filter_map(|slot| {
            let outside = flows.tuple(slot, Direction::Reply)?.inverted()?;
            Some((flows.core(slot)?.serial(), (outside.src, outside.sport)))
        })
    }
}

/// The tree of one family, built from below.
fn tree<A: Addr, K: Ord>(
    slab: &[Entry<A>],
    slot: impl Fn(u32) -> Slot,
    own: impl Fn(Key) -> Option<K>,
) -> BTreeMap<K, Slot> {
    let decided = |entry: &Entry<A>| entry.core.serial() != 0 && entry.core.status().contains(Status::SRC_NAT_DONE);
    let mut all = Vec::with_capacity(slab.iter().filter(|entry| decided(entry)).count());
    for (number, entry) in (0_u32..).zip(slab).filter(|(_, entry)| decided(entry)) {
        let (orig, zone) = (entry.tuple(Direction::Original), entry.core.zone().of(Direction::Original));
        all.extend(own(Key::of(&orig, zone, entry.core.serial())).map(|key| (key, slot(number))));
    }
    all.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
    all.into_iter().collect()
}

fn key(flows: &Flows, slot: Slot) -> Option<Key> {
    let core = flows.core(slot)?;
    let decided = core.status().contains(Status::SRC_NAT_DONE);
    let orig = flows.tuple(slot, Direction::Original)?;
    decided.then(|| Key::of(&orig, core.zone().of(Direction::Original), core.serial()))
}

/// The highest serial number: they have 48 bits.
const NEWEST: u64 = (1 << 48) - 1;
/// How many flows of one socket are looked at: bounds the work a client can cause with one source port.
pub(crate) const LOOKED_AT: usize = 16;
