//! A disagreement with as few packets as it needs.

use anyhow::Result;
use hibernet_tests::compare::Difference;
use serde_json::Value;

use crate::batch::Batch;
use crate::path::Sent;
use crate::verdict::play_to_both;

/// What is left of a batch, and what differs in it.
pub(crate) struct Disagreement {
    pub(crate) batch: Batch,
    pub(crate) difference: Difference,
    /// The kind of disagreement, by which known ones are listed.
    pub(crate) signature: String,
}

impl Disagreement {
    /// Whether it takes fewer packets to show the same: another kind of difference might be one by chance.
    fn is_smaller_than(&self, other: &Self) -> bool {
        let shorter = self.batch.packets.len() < other.batch.packets.len();
        shorter && place(&self.difference) == place(&other.difference)
    }
}

/// What came of a batch that differed once.
pub(crate) enum Found {
    /// A difference that stays.
    Disagreement(Box<Disagreement>),
    /// The kernel itself did otherwise when it was asked again, as it does where it draws a port.
    Chance,
    /// No difference when it was played again.
    Agreement,
}

/// Removes packets for as long as the two still differ.
pub(crate) fn shrink(batch: &Batch, budget: usize) -> Result<Found> {
    let Some(first) = differs(batch, &batch.packets)? else { return Ok(Found::Agreement) };
    let again = differs(batch, &first.batch.packets)?;
    let kernel_repeats = |again: &Disagreement| again.difference.expected == first.difference.expected;
    if !again.as_ref().is_some_and(kernel_repeats) {
        return Ok(if again.is_some() { Found::Chance } else { Found::Agreement });
    }
    smallest(batch, first, budget).map(Box::new).map(Found::Disagreement)
}

fn smallest(batch: &Batch, mut best: Disagreement, budget: usize) -> Result<Disagreement> {
    let mut left = budget;
    let mut chunk = best.batch.packets.len().div_ceil(2);
    while chunk > 0 {
        let mut from = 0;
        // The last packet is the one about which they differ.
        while from + 1 < best.batch.packets.len() {
            if left == 0 {
                return Ok(best);
            }
            left -= 1;
            let packets = &best.batch.packets;
            let to = (from + chunk).min(packets.len() - 1);
            let rest = [&packets[..from], &packets[to..]].concat();
            match differs(batch, &rest)? {
                Some(smaller) if smaller.is_smaller_than(&best) => best = smaller,
                _ => from = to,
            }
        }
        chunk /= 2;
    }
    Ok(best)
}

/// The packets up to the first about which the two differ.
fn differs(batch: &Batch, packets: &[Sent]) -> Result<Option<Disagreement>> {
    let batch = batch.with(packets.to_vec());
    let outcome = play_to_both(&batch)?;
    let Some(difference) = outcome.differences.into_iter().next() else { return Ok(None) };
    let signature = signature(&outcome.kernel, &difference);
    let batch = batch.with(packets[..=difference.step.min(packets.len() - 1)].to_vec());
    Ok(Some(Disagreement { batch, difference, signature }))
}

/// Protocol and flags of the packet, the state that its flow had before, the kernel's verdict, and where they differ.
fn signature(kernel: &[Value], difference: &Difference) -> String {
    let record = kernel.get(difference.step).unwrap_or(&Value::Null);
    let text = record["inject"]["text"].as_str().unwrap_or_default();
    let words: Vec<_> = text.split(' ').collect();
    let (proto, flags) = (words.first().copied().unwrap_or_default(), words.get(4).copied().unwrap_or_default());
    let flags = if proto == "tcp" { flags } else { "packet" };
    // The client's port is the one that no other flow has.
    let ports = words.iter().filter_map(|word| word.rsplit_once(':')?.1.parse().ok());
    let port: u64 = ports.max().unwrap_or_default();
    let before = difference.step.checked_sub(1).and_then(|step| kernel.get(step)).unwrap_or(&Value::Null);
    let mut flows = before["conntrack"].as_array().into_iter().flatten();
    let own = flows.find(|flow| [&flow["orig"]["sport"], &flow["orig"]["dport"]].iter().any(|end| **end == port));
    let state = own.and_then(|flow| flow["tcp"]["state"].as_str()).unwrap_or("no state");
    let verdict = record["ctstate"].as_str().unwrap_or("dropped");
    let direction = record["ctdir"].as_str().unwrap_or("no direction");
    format!("{proto} {flags} in {state}, {verdict} {direction}: {}", place(difference))
}

/// Where in a record a difference is, whichever packet or flow it is about.
fn place(difference: &Difference) -> String {
    let parts = difference.path.split('/').filter(|part| part.parse::<u32>().is_err());
    parts.collect::<Vec<_>>().join("/")
}
