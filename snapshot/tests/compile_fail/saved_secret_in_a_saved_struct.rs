use hibernet_snapshot::{Secret, Snapshot};

#[derive(Snapshot)]
struct Inner {
    #[snapshot(saved)]
    key: Secret<[u8; 16]>,
}

#[derive(Snapshot)]
struct Outer {
    #[snapshot(saved)]
    inner: Inner,
}

fn main() {}
