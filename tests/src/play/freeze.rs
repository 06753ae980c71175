//! A save and a restore under new keys between two steps, which nothing that follows may show.

use anyhow::{Context, Result, ensure};
use hibernet_netstack::{Decoded, RestorePolicy, Stack, Supplied};
use hibernet_snapshot::image::Limits;
use hibernet_snapshot::{Entropy, GenerationId, Instant};

/// Saves the stack and gives back what a restore makes of the image, under keys drawn from `seed`.
///
/// The restored stack must save to the same bytes, and its table must read the same before any packet.
pub(super) fn restored(stack: &Stack, seed: u64, now: Instant) -> Result<Stack> {
    let mut generation = [0; 16];
    generation[..8].copy_from_slice(&seed.to_be_bytes());
    let generation = GenerationId(generation);
    let image = stack.save(generation, now).context("save")?;
    let decoded = Decoded::open(&image, &Limits::default()).context("restore")?;
    let validated = decoded.validate(&mut Entropy::from_test_seed(seed), now).context("restore")?;
    let rehashed = validated.rehash(Entropy::from_test_seed(!seed), RestorePolicy::default()).context("restore")?;
    let (restored, report) = rehashed.open(Supplied::default());
    ensure!(report.reset == 0 && report.dropped == 0, "a restore cannot keep all flows: {report:?}");
    ensure!(restored.flows(now) == stack.flows(now), "a restored table differs from the saved one");
    ensure!(restored.save(generation, now).context("second save")? == image, "saved again, an image has other bytes");
    Ok(restored)
}
