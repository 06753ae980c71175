use hibernet_snapshot::Snapshot;

#[derive(Snapshot)]
struct Table {
    #[snapshot(saved, supplied)]
    ports: Vec<u16>,
    #[snapshot(redrawn)]
    #[snapshot(redrawn)]
    salt: u64,
}

fn main() {}
