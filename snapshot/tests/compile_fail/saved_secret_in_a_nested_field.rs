use hibernet_snapshot::{Secret, Snapshot};

struct HashKey(Secret<[u8; 16]>);

#[derive(Snapshot)]
struct Table {
    #[snapshot(saved, nested)]
    key: HashKey,
}

fn main() {}
