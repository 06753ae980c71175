use hibernet_snapshot::Snapshot;

#[derive(Snapshot)]
struct Link {
    #[snapshot(supplied)]
    waker: fn(),
}

#[derive(Snapshot)]
struct Stack {
    #[snapshot(saved)]
    link: Link,
}

#[derive(Snapshot)]
struct Other {
    #[snapshot(supplied, nested)]
    link: Link,
}

fn main() {}
