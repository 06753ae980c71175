//! Plays kernel scenarios through the stack.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow};
use clap::Parser;
use hibernet_tests::check::{Verdict, differences_by_restores};
use hibernet_tests::play::{Between, Run, play};
use hibernet_tests::scenario::Scenario;
use serde_json::json;

/// Plays kernel scenarios through the stack on a simulated clock and writes one JSON record a step.
///
/// A scenario NAME.json is played to its end before NAME.expected.jsonl beside it is opened, and that only with --check.
#[derive(Parser)]
struct Arguments {
    /// Scenario files.
    #[arg(required = true, value_name = "SCENARIO.json")]
    scenarios: Vec<PathBuf>,
    /// Write the records to DIR/NAME.actual.jsonl, not to standard output.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Compare with the recorded answers and show the first difference of each scenario; exit 1 if one fails.
    #[arg(long)]
    check: bool,
    /// With --check: print the verdicts as one JSON object.
    #[arg(long, requires = "check")]
    json: bool,
    /// With --check: differences in events, hooks passed and the tracker's wording fail a scenario, too.
    #[arg(long, requires = "check")]
    strict_events: bool,
    /// Save the stack after every step and go on with one restored under new keys. A scenario also fails if its records
    /// differ from those without restores, or if an image saves back to other bytes.
    #[arg(long)]
    restore_each_step: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = if arguments.check { check(&arguments) } else { record(&arguments) };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("conformance: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Plays every scenario; false if one of them stopped before its end.
fn record(arguments: &Arguments) -> Result<bool> {
    let mut whole = true;
    for path in &arguments.scenarios {
        let played = Scenario::load(path).and_then(|scenario| {
            let run = played(&scenario, arguments)?;
            match &arguments.out {
                Some(folder) => keep(folder, &scenario, &run)?,
                None => write_records(&mut io::stdout().lock(), &run)?,
            }
            run.error.map_or(Ok(()), |error| Err(error.context(scenario.name)))
        });
        if let Err(error) = played {
            eprintln!("conformance: {error:#}");
            whole = false;
        }
    }
    Ok(whole)
}

/// Plays every scenario and compares; false if one of them differs or cannot be compared.
fn check(arguments: &Arguments) -> Result<bool> {
    let mut verdicts = Vec::new();
    for path in &arguments.scenarios {
        let verdict = judge(path, arguments).unwrap_or_else(|error| Verdict::unplayable(path, &error));
        if !arguments.json {
            show(&verdict, arguments.strict_events)?;
        }
        verdicts.push(verdict);
    }
    let passed = verdicts.iter().filter(|verdict| verdict.passed(arguments.strict_events)).count();
    let failed = verdicts.len() - passed;
    let mut stdout = io::stdout().lock();
    if arguments.json {
        let report = json!({"passed": passed, "failed": failed, "scenarios": verdicts});
        writeln!(stdout, "{report:#}")?;
    } else {
        let loose = |part: &str| {
            let differences = verdicts.iter().flat_map(|verdict| &verdict.loose);
            differences.filter(|difference| difference.path.starts_with(part)).count()
        };
        let [events, trace, why] = ["event", "trace", "why"].map(loose);
        writeln!(stdout, "apart from that, differences in events {events}, trace {trace}, why {why}")?;
        writeln!(stdout, "{passed} passed, {failed} failed")?;
    }
    Ok(failed == 0)
}

/// The run asked for. One with restores that can be told from one without has that as its error.
fn played(scenario: &Scenario, arguments: &Arguments) -> Result<Run> {
    let plain = play(scenario, Between::Nothing);
    if !arguments.restore_each_step {
        return Ok(plain);
    }
    let mut restored = play(scenario, Between::Restore);
    if let (None, Some(difference)) = (&restored.error, differences_by_restores(&plain, &restored)?.first()) {
        restored.error = Some(anyhow!("restores show: {difference}"));
    }
    Ok(restored)
}

/// One scenario's verdict. Its answers are opened when its records are complete and written.
fn judge(path: &Path, arguments: &Arguments) -> Result<Verdict> {
    let scenario = Scenario::load(path)?;
    let run = played(&scenario, arguments)?;
    if let Some(folder) = &arguments.out {
        keep(folder, &scenario, &run)?;
    }
    Verdict::of(path, &scenario, &run)
}

fn show(verdict: &Verdict, strict_events: bool) -> Result<()> {
    let mut stdout = io::stdout().lock();
    let aside = match verdict.loose.len() {
        0 => String::new(),
        count => format!("  (events, trace, why: {count} differences)"),
    };
    match verdict.first_fault(strict_events) {
        None => writeln!(stdout, "ok   {}{aside}", verdict.name)?,
        Some(fault) => {
            writeln!(stdout, "FAIL {}{aside}", verdict.name)?;
            writeln!(stdout, "  {fault}")?;
            if verdict.strict.len() > 1 {
                writeln!(stdout, "  and {} more", verdict.strict.len() - 1)?;
            }
        }
    }
    Ok(())
}

fn keep(folder: &Path, scenario: &Scenario, run: &Run) -> Result<()> {
    let path = folder.join(format!("{}.actual.jsonl", scenario.name));
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(&path);
    let mut file = io::BufWriter::new(file.with_context(|| format!("cannot write {}", path.display()))?);
    write_records(&mut file, run)?;
    file.flush().with_context(|| format!("cannot write {}", path.display()))
}

fn write_records(to: &mut dyn Write, run: &Run) -> Result<()> {
    for record in &run.records {
        writeln!(to, "{}", serde_json::to_string(record)?)?;
    }
    Ok(())
}
