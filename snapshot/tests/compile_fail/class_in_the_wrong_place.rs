use hibernet_snapshot::Snapshot;

#[derive(Snapshot)]
#[snapshot(saved)]
struct Table {
    #[snapshot(saved)]
    ports: Vec<u16>,
}

#[derive(Snapshot)]
enum Protocol {
    #[snapshot(saved)]
    Tcp(u32),
}

#[derive(Snapshot)]
enum Never {}

#[derive(Snapshot)]
union Either {
    #[snapshot(saved)]
    one: u32,
}

fn main() {}
