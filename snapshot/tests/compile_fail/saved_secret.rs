use std::collections::BTreeMap;

use hibernet_snapshot::{Secret, Snapshot};

#[derive(Snapshot)]
struct Table {
    #[snapshot(saved)]
    key: Secret<[u8; 16]>,
    #[snapshot(saved)]
    optional: Option<Secret<[u8; 16]>>,
    #[snapshot(saved)]
    list: Vec<hibernet_snapshot::Secret<u64>>,
    #[snapshot(saved)]
    pair: (u16, Secret<u64>),
    #[snapshot(saved)]
    map: BTreeMap<u16, [Secret<u64>; 2]>,
}

#[derive(Snapshot)]
enum Protocol {
    Keyed(#[snapshot(saved)] Secret<u64>),
}

fn main() {}
