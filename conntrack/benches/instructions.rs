//! Work for an instruction counter: `instructions CASE` does one case, whose name is that of the function to count in.
//!
//! `.ci/instructions` runs it under callgrind and holds the counts against those stored in `.ci/instructions.baseline`.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a benchmark")]

mod packets;
mod work;

use std::process::ExitCode;

use hibernet_conntrack::Direction;

use crate::work::{Connections, Newcomers, Seekers};

fn main() -> ExitCode {
    // Cargo adds `--bench`.
    let Some(case) = std::env::args().skip(1).find(|argument| !argument.starts_with("--")) else {
        println!("{}", CASES.join("\n"));
        return ExitCode::SUCCESS;
    };
    let v6 = case.ends_with("v6");
    match case.trim_end_matches("_v4").trim_end_matches("_v6") {
        "pass_in_bursts" => pass(Connections::pass_in_bursts, v6),
        "pass_one_by_one" => pass(Connections::pass_one_by_one, v6),
        "refresh_in_bursts" => Seekers::new(FLOWS, v6).refresh_in_bursts(),
        "confirm_in_bursts" => Newcomers::new(FLOWS, v6).confirm_in_bursts(),
        _ => {
            eprintln!("found the case {case}, expected one of {}", CASES.join(", "));
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// Once each way.
fn pass(work: fn(&mut Connections), v6: bool) {
    let mut connections = Connections::new(FLOWS / 2, v6);
    for direction in [Direction::Original, Direction::Reply] {
        connections.prepare(direction);
        work(&mut connections);
    }
}

/// What each case comes to in all: packets, look-ups, new flows.
const FLOWS: u16 = 1024;
const CASES: [&str; 8] = [
    "pass_in_bursts_v4",
    "pass_in_bursts_v6",
    "pass_one_by_one_v4",
    "pass_one_by_one_v6",
    "refresh_in_bursts_v4",
    "refresh_in_bursts_v6",
    "confirm_in_bursts_v4",
    "confirm_in_bursts_v6",
];
