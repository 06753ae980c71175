//! What must hold.

mod flood;
mod many;
mod states;
mod transfer;
mod twice;
mod untracked;

use anyhow::Result;
use serde_json::{Map, Value};

/// Figures of a check by name.
pub(super) type Figures = Map<String, Value>;

/// One check.
pub(super) struct Check {
    pub(super) name: &'static str,
    /// What it shows, in a sentence.
    pub(super) shows: &'static str,
    /// Runs it in a thread of its own.
    pub(super) run: fn(&mut Figures) -> Result<()>,
}

/// All checks, quickest first.
pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "states",
        shows: "connections in every state, both roles, IPv4 and IPv6, go on through two checkpoints",
        run: states::every_state,
    },
    Check {
        name: "states-options",
        shows: "the same with peers that lack window scaling, SACK or timestamps, in all combinations",
        run: states::every_option,
    },
    Check {
        name: "untracked",
        shows: "a stream goes on when its flow is forgotten, and when it is tracked no longer",
        run: untracked::run,
    },
    Check {
        name: "twice",
        shows: "two stacks of one image choose other initial numbers, ports and generations",
        run: twice::run,
    },
    Check {
        name: "flood",
        shows: "100 clients connect within 3 s each while 100,000 spoofed SYNs come in 10 s",
        run: flood::run,
    },
    Check { name: "many", shows: "10,000 connections are saved and restored, and speak again", run: many::run },
    Check {
        name: "transfer-clean",
        shows: "32 MB each way with 20 checkpoints at random moments, 5 seeds",
        run: transfer::clean,
    },
    Check {
        name: "transfer-loss-0.5",
        shows: "the same with 0.5 % of all frames lost, and some doubled and reordered",
        run: transfer::half_a_percent,
    },
    Check { name: "transfer-loss-3", shows: "the same with 3 % lost", run: transfer::three_percent },
];
