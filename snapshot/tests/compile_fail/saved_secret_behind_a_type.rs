use hibernet_snapshot::{Secret, Snapshot};

type Alias = Secret<[u8; 16]>;

struct HashKey(Secret<[u8; 16]>);

#[derive(Snapshot)]
struct Aliased {
    #[snapshot(saved)]
    key: Alias,
}

#[derive(Snapshot)]
struct Wrapped {
    #[snapshot(saved)]
    key: Option<HashKey>,
}

fn main() {}
