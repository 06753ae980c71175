//! The stack's own TCP sockets against kernel peers, through save, SIGKILL and restore.
//!
//! The stack runs in a process of its own; its peer is the kernel of a network namespace. Neither root nor anything else of
//! the system is needed where user namespaces are allowed.

#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "the lists keep I/O and clocks out of the libraries; here are real sockets, files and processes"
)]

mod checks;
mod flow;
mod host;
mod kernel;
mod lab;
mod protocol;
mod weather;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use sandbox_demo::parts::{enter_router, raise_file_limit, silence_kernel};
use serde_json::{Map, Value, json};

use self::checks::{CHECKS, Check};

/// Holds the stack's own TCP sockets against kernel peers: every check saves the stack, kills its process with SIGKILL, and
/// goes on with a process restored from the image.
///
/// Prints one line for each check with its figures; exits with 1 if one fails or cannot run.
#[derive(Parser)]
#[command(name = "sockets", args_conflicts_with_subcommands = true)]
struct Arguments {
    /// Run only the checks whose name has this in it; may be given more than once.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// List the checks and what each must show.
    #[arg(long)]
    list: bool,
    /// Print one JSON object instead of lines.
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Subcommand)]
enum Role {
    /// The stack's process; started by the checks.
    #[command(hide = true)]
    Host {
        #[arg(long)]
        parent: u32,
        #[arg(long)]
        link: String,
        #[arg(long)]
        image: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match &arguments.role {
        Some(Role::Host { parent, link, image }) => {
            let start = host::Start { parent: *parent, device: link.clone(), image: image.clone() };
            host::run(&start).map(|()| true)
        }
        None if arguments.list => {
            for check in CHECKS {
                println!("{:<28} {}", check.name, check.shows);
            }
            Ok(true)
        }
        None => run(&arguments),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("sockets: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the checks that were asked for; false if one failed.
fn run(arguments: &Arguments) -> Result<bool> {
    let asked = |check: &&Check| {
        arguments.only.is_empty() || arguments.only.iter().any(|name| check.name.contains(name.as_str()))
    };
    let checks: Vec<&Check> = CHECKS.iter().filter(asked).collect();
    anyhow::ensure!(!checks.is_empty(), "no check is named like that; `--list` shows them");
    enter_router()?;
    silence_kernel();
    raise_file_limit(FILES)?;
    let mut rows = Vec::new();
    let mut failed = 0;
    for check in checks {
        let begun = Instant::now();
        let mut figures = Map::new();
        // A thread of its own has a namespace of its own.
        let result = std::thread::scope(|scope| {
            let thread = scope.spawn(|| (check.run)(&mut figures));
            thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("it panicked")))
        });
        let seconds = (begun.elapsed().as_secs_f64() * 10.0).round() / 10.0;
        let problem = result.err().map(|error| format!("{error:#}"));
        failed += usize::from(problem.is_some());
        if !arguments.json {
            println!("{}", line(check, &figures, seconds, problem.as_deref()));
        }
        rows.push(json!({"name": check.name, "ok": problem.is_none(), "seconds": seconds, "figures": figures,
            "problem": problem}));
    }
    if arguments.json {
        let all = json!({"ok": failed == 0, "checks": rows});
        println!("{}", serde_json::to_string_pretty(&all).context("writing the result")?);
    } else {
        println!("{} of {} checks passed", rows.len() - failed, rows.len());
    }
    Ok(failed == 0)
}

fn line(check: &Check, figures: &Map<String, Value>, seconds: f64, problem: Option<&str>) -> String {
    let figures: Vec<String> = figures.iter().map(|(name, value)| format!("{name} {value}")).collect();
    let verdict = problem.map_or_else(|| "ok".to_owned(), |problem| format!("FAILED: {problem}"));
    format!("{:<28} {verdict} ({seconds} s) {}", check.name, figures.join(", "))
}

/// A kernel's end of each of 10,000 connections, and what else is open.
const FILES: u64 = 11_000;
