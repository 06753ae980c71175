//! Writes the stored corpora from the kernel scenarios: the frames of each as one input, and the image a stack saves after
//! them. `cargo run --release --bin seeds` in this folder.
#![expect(clippy::disallowed_methods, reason = "a tool that writes files")]

use std::fs;
use std::io::Error;

use hibernet_fuzz::{GENERATION, RULES, START, feed, framed, reseal, with_sockets};
use hibernet_netstack::{Decoded, Ruleset};
use hibernet_snapshot::Entropy;
use hibernet_snapshot::image::Limits;

fn main() -> Result<(), Error> {
    let kernel = fs::read_dir("../tests/scenarios/kernel")?.map(|entry| (entry, ""));
    // Of ours those that end with fragments that wait, so that they are in an image.
    let own = fs::read_dir("../tests/scenarios/own")?.map(|entry| (entry, "frag"));
    for (entry, prefix) in kernel.chain(own) {
        let path = entry?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let Some(name) = name.strip_suffix(".expected.jsonl").filter(|name| name.starts_with(prefix)) else { continue };
        let mut input = Vec::new();
        for line in fs::read_to_string(&path)?.lines().take(24) {
            for (out, frame) in injected(line) {
                input.extend(framed(out, 1, &frame));
            }
        }
        fs::write(format!("corpus/ingress/{name}"), &input)?;
        // Two rules now, one later: masquerade, and what the name's first letters happen to choose.
        let [a, b, c, ..] = *name.as_bytes() else { continue };
        let mut packets = vec![2, 1, 10, 1, 1, 0, 5, 8, 2, a, b, c, 8, 1, b, c, a];
        packets.extend(&input);
        fs::write(format!("corpus/rules/{name}"), packets)?;
        let rules = Ruleset::from_json(RULES).map_err(Error::other)?;
        let mut stack = with_sockets(rules).ok_or_else(|| Error::other("the configuration is sound"))?;
        let now = feed(&mut stack, &input);
        let image = stack.save(GENERATION, now).map_err(Error::other)?;
        if name == "frag6_ends" {
            let spelled = with_a_second_in_nanoseconds(&image).ok_or_else(|| Error::other("no time is in the image"))?;
            fs::write("corpus/restore/refused_nanoseconds", spelled)?;
        }
        fs::write(format!("corpus/restore/{name}"), image)?;
    }
    Ok(())
}

/// The image with another spelling of a time: what `restore` once found to load and to be saved otherwise.
fn with_a_second_in_nanoseconds(image: &[u8]) -> Option<Vec<u8>> {
    let spelled = |at: usize| {
        let mut spelled = image.to_vec();
        spelled.get_mut(at..at + 4)?.copy_from_slice(&1_000_000_000_u32.to_le_bytes());
        reseal(&mut spelled);
        Some(spelled)
    };
    (0..image.len()).filter_map(spelled).find(|spelled| {
        let decoded = Decoded::open(spelled, &Limits::default());
        let validated = decoded.and_then(|decoded| decoded.validate(&mut Entropy::from_test_seed(1), START));
        validated.is_err_and(|error| error.to_string().ends_with(REFUSAL))
    })
}

/// The frames a record says were injected. The records are written by one tool in one spelling, so the text is enough.
fn injected(line: &str) -> Vec<(bool, Vec<u8>)> {
    let Some((_, rest)) = line.split_once("\"inject\": ") else { return Vec::new() };
    let part = rest.split("\"ctstate\"").next().unwrap_or_default().split("\"out\": ").next().unwrap_or_default();
    let mut frames = Vec::new();
    for piece in part.split("{\"dev\": \"").skip(1).take(4) {
        let out = piece.starts_with("out");
        let Some((_, hex)) = piece.split_once("\"hex\": \"") else { continue };
        let hex = hex.split('"').next().unwrap_or_default();
        let bytes = (0..hex.len() / 2).filter_map(|at| u8::from_str_radix(hex.get(at * 2..at * 2 + 2)?, 16).ok());
        frames.push((out, bytes.collect()));
    }
    frames
}

/// How a time is refused that is not spelled as it would be saved.
const REFUSAL: &str = "found 1000000000 ns, expected less than a second";
