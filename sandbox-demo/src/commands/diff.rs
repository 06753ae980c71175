//! What changed between two images, for people and as JSON.

use std::cell::Cell;
use std::io::ErrorKind;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;

use anstream::AutoStream;
use anstream::ColorChoice;
use anyhow::Context;
use hibernet_netstack::Contents;
use hibernet_snapshot::Entropy;
use hibernet_snapshot::diff::Difference;
use serde::Serialize;
use serde::Serializer;

use crate::fault::image_fault;
use crate::gateway::ImageFiles;
use crate::gateway::SAVED_AT;

/// Prints what changed between two images as it is found, and says whether anything did.
pub(crate) fn diff(before: &ImageFiles, after: &ImageFiles, json: bool) -> anyhow::Result<bool> {
    let (before, after) = (contents(before)?, contents(after)?);
    let counts = Counts::default();
    let changes = before.diff(&after).inspect(|difference| counts.count(difference));
    let written = if json { write_json(changes, &counts) } else { write_text(changes, &counts) };
    match written {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(counts.any()),
        result => result.map(|()| counts.any()).context("writing to standard output"),
    }
}

/// What an image and the deltas behind it come to.
fn contents(files: &ImageFiles) -> anyhow::Result<Contents> {
    // The keys drawn for it protect nothing.
    let mut entropy = Entropy::from_os().context("drawing keys")?;
    let last = files.paths.last().map(PathBuf::as_path).unwrap_or(Path::new(""));
    let contents = files.open()?.contents(&mut entropy).map_err(|error| image_fault(last, &error))?;
    // The time of the save is not what was saved.
    Ok(contents.without_section(SAVED_AT))
}

/// How many items were told of.
#[derive(Default)]
struct Counts {
    added: Cell<u64>,
    removed: Cell<u64>,
    changed: Cell<u64>,
}

impl Counts {
    fn count(&self, difference: &Difference) {
        let count = match difference {
            Difference::Added { .. } => &self.added,
            Difference::Removed { .. } => &self.removed,
            _ => &self.changed,
        };
        count.set(count.get() + 1);
    }

    fn any(&self) -> bool {
        self.added.get() + self.removed.get() + self.changed.get() > 0
    }
}

/// Coloured on a terminal, unless NO_COLOR is set.
fn write_text(changes: impl Iterator<Item = Difference>, counts: &Counts) -> std::io::Result<()> {
    let coloured = AutoStream::choice(&std::io::stdout()) != ColorChoice::Never;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for difference in changes {
        let text = difference.to_string();
        if !coloured {
            writeln!(out, "{text}")?;
            continue;
        }
        for line in text.lines() {
            let colour = match line.trim_start().as_bytes().first() {
                Some(b'+') => GREEN,
                Some(b'-') => RED,
                _ => YELLOW,
            };
            writeln!(out, "{colour}{line}{PLAIN}")?;
        }
    }
    let Counts { added, removed, changed } = counts;
    match counts.any() {
        true => writeln!(out, "{} added, {} removed, {} changed", added.get(), removed.get(), changed.get())?,
        false => writeln!(out, "no difference but the generation")?,
    }
    out.flush()
}

/// `{"changes": [..], "added": n, "removed": n, "changed": n}`.
fn write_json(changes: impl Iterator<Item = Difference>, counts: &Counts) -> std::io::Result<()> {
    #[derive(Serialize)]
    struct Whole<'a, I: Iterator<Item = Difference>> {
        #[serde(serialize_with = "one_by_one")]
        changes: Cell<Option<I>>,
        added: &'a Cell<u64>,
        removed: &'a Cell<u64>,
        changed: &'a Cell<u64>,
    }
    let Counts { added, removed, changed } = counts;
    let whole = Whole { changes: Cell::new(Some(changes)), added, removed, changed };
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    serde_json::to_writer(&mut out, &whole)?;
    writeln!(out)?;
    out.flush()
}

/// A list that is made while it is written; the counts behind it are right by then.
fn one_by_one<I: Iterator<Item = Difference>, S: Serializer>(
    changes: &Cell<Option<I>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(changes.take().into_iter().flatten())
}

const GREEN: &str = "\x1b[32m";
const RED: &str = "\x1b[31m";
const YELLOW: &str = "\x1b[33m";
const PLAIN: &str = "\x1b[0m";
