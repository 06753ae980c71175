use hibernet_snapshot::Entropy;

fn copied<T: Clone>(_: T) {}

fn printed<T: std::fmt::Display>(_: T) {}

fn use_entropy(one: Entropy, two: Entropy) {
    copied(one);
    printed(two);
}

fn main() {}
