use hibernet_snapshot::{Invalid, Snapshot};

#[derive(Snapshot)]
struct Table {
    #[snapshot(saved)]
    ports: Vec<u16>,
    #[snapshot(rebuilt = count)]
    count: usize,
}

fn count(parts: &TableParts<'_>) -> Result<u64, Invalid> {
    Ok(parts.ports.len() as u64)
}

fn main() {}
