//! The subcommands that ask a gateway or read an image.

mod ask;
mod diff;
mod images;
mod policy;

use std::io::ErrorKind;
use std::io::Write;

use anyhow::Context;
use serde::Serialize;

pub(crate) use self::ask::egress;
pub(crate) use self::ask::events;
pub(crate) use self::ask::hooks;
pub(crate) use self::ask::list;
pub(crate) use self::ask::load;
pub(crate) use self::ask::neighbours;
pub(crate) use self::ask::pause;
pub(crate) use self::ask::resume;
pub(crate) use self::ask::save;
pub(crate) use self::ask::stats;
pub(crate) use self::ask::status;
pub(crate) use self::diff::diff;
pub(crate) use self::images::inspect;
pub(crate) use self::policy::policy_check;
pub(crate) use self::policy::policy_load;

/// Prints `value` as one JSON object, or the text for people.
pub(crate) fn print<T: Serialize>(json: bool, value: &T, text: impl FnOnce() -> String) -> anyhow::Result<()> {
    let mut out = if json { serde_json::to_string(value).context("writing JSON")? } else { text() };
    if !out.is_empty() && !out.ends_with('\n') {
        out.push('\n');
    }
    match std::io::stdout().lock().write_all(out.as_bytes()) {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result.context("writing to standard output"),
    }
}
