use hibernet_snapshot::Snapshot;

#[derive(Snapshot)]
struct Table {
    #[snapshot(saved)]
    ports: Vec<u16>,
    index: Vec<u64>,
}

#[derive(Snapshot)]
struct Pair(#[snapshot(saved)] u16, u32);

#[derive(Snapshot)]
enum Protocol {
    Tcp { window: u32 },
    Icmp(u8),
}

fn main() {}
