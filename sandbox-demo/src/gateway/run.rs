//! One gateway process: waits for its links, its control socket and its stack's deadlines, and serves them in turn.

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context;
use hibernet_netstack::Supplied;
use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::Timespec;
use rustix::io::Errno;

use super::config::GatewayConfig;
use super::engine::Engine;
use super::images::ImageFiles;
use crate::clock;
use crate::commands::print;
use crate::control::ControlServer;
use crate::control::RunState;
use crate::fault::Fault;
use crate::link::Link;
use crate::link::LinkSpec;

/// How a gateway comes to its stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Start {
    /// A new one with an empty table, from a configuration file.
    Fresh(PathBuf),
    /// One restored from an image, which brings its configuration along.
    Restored(ImageFiles),
}

/// Runs a gateway until it is told to stop, by SIGINT or SIGTERM.
///
/// With `hold` it passes nothing until it is told to `resume`. A restored one says first what became of what was saved.
pub(crate) fn run(start: &Start, links: &[LinkSpec], control: &Path, hold: bool, json: bool) -> anyhow::Result<()> {
    let stopped = stop_on_signals()?;
    let mut engine = match start {
        Start::Fresh(file) => {
            let mut config = GatewayConfig::read(file)?;
            config.settle_macs(links)?;
            Engine::fresh(&config)?
        }
        Start::Restored(files) => Engine::restored(files, Supplied::default())?,
    };
    for spec in links {
        let medium = engine.medium_of(spec.name())?;
        engine.attach(Link::open(spec, medium)?)?;
    }
    engine.check_links()?;
    let mut server = ControlServer::bind(control)?;
    if let Some(summary) = engine.summary() {
        print(json, summary, || summary.text())?;
    }
    if !hold {
        engine.resume();
    }
    while !stopped.load(Ordering::Relaxed) {
        wait(&engine, &server)?;
        engine.turn();
        if let Some(first) = engine.first_packet() {
            eprintln!("first packet {first} ms after the restore began");
        }
        server.serve(clock::monotonic(), |request| engine.answer(request));
    }
    Ok(())
}

/// Reads an image whole; what it may not be is the reader's to say.
pub(crate) fn read_image(path: &Path) -> Result<Vec<u8>, Fault> {
    fs::read(path).map_err(|error| {
        Fault::new(
            format!("cannot read the image {}: {error}", path.display()),
            "give the path of a file made by `sandbox-demo save`",
        )
    })
}

/// Waits until there is something to do, at most until the stack's next deadline.
fn wait(engine: &Engine, server: &ControlServer) -> anyhow::Result<()> {
    let mut timeout = engine.next_deadline().unwrap_or(LONGEST_WAIT).min(LONGEST_WAIT);
    if server.has_pending() {
        timeout = timeout.min(SHORT_WAIT);
    }
    let mut fds = Vec::new();
    if engine.state() == RunState::Running {
        for link in engine.links() {
            if link.is_blocked() {
                timeout = timeout.min(SHORT_WAIT);
            }
            fds.extend(link.fd().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        }
    }
    for (fd, for_writing) in server.waits() {
        let flags = if for_writing { PollFlags::OUT } else { PollFlags::IN };
        fds.push(PollFd::from_borrowed_fd(fd, flags));
    }
    let timeout = Timespec::try_from(timeout).unwrap_or_default();
    match rustix::event::poll(&mut fds, Some(&timeout)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(errno).context("waiting for traffic"),
    }
}

fn stop_on_signals() -> anyhow::Result<Arc<AtomicBool>> {
    let stopped = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stopped)).context("watching for signals")?;
    }
    Ok(stopped)
}

/// Even an idle gateway looks around now and then.
const LONGEST_WAIT: Duration = Duration::from_millis(500);
/// While a file is being written, or a device has no room: it does not say when it has again.
const SHORT_WAIT: Duration = Duration::from_millis(1);
