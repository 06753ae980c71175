//! Telling the story, waiting, and noticing that the user has had enough.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context;

use crate::clock;

/// The supervisor's patience and voice.
pub(super) struct Watch {
    interrupted: Arc<AtomicBool>,
    json: bool,
}

impl Watch {
    pub(super) fn new(json: bool) -> anyhow::Result<Self> {
        let interrupted = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&interrupted)).context("watching for signals")?;
        }
        Ok(Self { interrupted, json })
    }

    /// A line of the story; beside JSON it goes to standard error.
    pub(super) fn say(&self, line: fmt::Arguments<'_>) {
        if self.json { eprintln!("{line}") } else { println!("{line}") }
    }

    /// Lets time pass.
    pub(super) fn pause(&self, time: Duration) -> anyhow::Result<()> {
        let until = clock::monotonic().saturating_add(time);
        while clock::monotonic() < until {
            self.check()?;
            std::thread::sleep(STEP.min(until.saturating_since(clock::monotonic())));
        }
        Ok(())
    }

    /// Waits until `done`, at most for `time`; false if it did not come to be.
    pub(super) fn wait(&self, time: Duration, mut done: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<bool> {
        let until = clock::monotonic().saturating_add(time);
        loop {
            self.check()?;
            if done()? {
                return Ok(true);
            }
            if clock::monotonic() >= until {
                return Ok(false);
            }
            std::thread::sleep(STEP);
        }
    }

    /// Fails once the user has had enough.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(!self.interrupted.load(Ordering::Relaxed), "interrupted");
        Ok(())
    }
}

/// How often it looks.
const STEP: Duration = Duration::from_millis(10);
