use hibernet_snapshot::Snapshot;

#[derive(Snapshot)]
struct Table {
    #[snapshot(redrawn)]
    salt: u64,
}

fn main() {}
