use hibernet_snapshot::Secret;
use serde::Serialize;

fn written<T: Serialize>(_: T) {}

fn use_secret(key: Secret<u64>) {
    let copy = key.clone();
    written(key);
    let inner: &u64 = &copy;
}

fn main() {}
