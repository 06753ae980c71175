//! The recorded kernel scenarios that lie beside this crate.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

/// The scenario files: those of the kernel's set, then our own, each sorted by name.
pub fn scenarios() -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for folder in ["scenarios/kernel", "scenarios/own"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        let entries = std::fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
        let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
        paths.sort();
        all.append(&mut paths);
    }
    Ok(all)
}

/// Where the answers to a scenario lie: `NAME.expected.jsonl` beside `NAME.json`.
pub fn answers_of(scenario: &Path) -> PathBuf {
    scenario.with_extension("expected.jsonl")
}

/// Reads a file of records, one JSON object a line.
pub fn read_records(path: &Path) -> Result<Vec<Value>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let parse = |(number, line): (usize, &str)| {
        serde_json::from_str(line).with_context(|| format!("{}, line {}", path.display(), number + 1))
    };
    lines.map(parse).collect()
}
