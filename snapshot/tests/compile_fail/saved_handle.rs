use hibernet_snapshot::{Instant, Snapshot};

#[derive(Snapshot)]
struct Timer {
    #[snapshot(saved)]
    deadline: Instant,
}

fn main() {}
