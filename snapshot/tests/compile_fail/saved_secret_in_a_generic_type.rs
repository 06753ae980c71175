use hibernet_snapshot::{Secret, Snapshot};

#[derive(Snapshot)]
struct Slab<T> {
    #[snapshot(saved)]
    slots: Vec<T>,
}

type Alias = Secret<[u8; 16]>;

#[derive(Snapshot)]
struct Table {
    #[snapshot(saved)]
    keys: Slab<Alias>,
}

fn main() {}
