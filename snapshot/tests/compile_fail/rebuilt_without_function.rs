use hibernet_snapshot::Snapshot;

#[derive(Snapshot)]
struct Table {
    #[snapshot(rebuilt)]
    index: Vec<u64>,
}

#[derive(Snapshot)]
enum Protocol {
    Tcp(#[snapshot(rebuilt)] u32),
}

fn main() {}
