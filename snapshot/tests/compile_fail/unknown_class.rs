use hibernet_snapshot::Snapshot;

#[derive(Snapshot)]
struct Table {
    #[snapshot(skip)]
    cache: Vec<u16>,
}

fn main() {}
