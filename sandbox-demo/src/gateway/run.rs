//! One gateway process: waits for its links, its control socket and its stack's deadlines, and serves them in turn.

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
use super::restoring::RestoreRequest;
use crate::clock;
use crate::commands::print;
use crate::control::ControlServer;
use crate::control::RunState;
use crate::link::Link;
use crate::link::LinkSpec;
use crate::link::RoomWhen;

/// How a gateway comes to its stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Start {
    /// A new one with an empty table, from a configuration file.
    Fresh(PathBuf),
    /// One restored from an image, which brings its configuration along.
    Restored(Box<RestoreRequest>),
}

impl Start {
    /// The stack, held and without devices.
    pub(crate) fn engine(&self, links: &[LinkSpec]) -> anyhow::Result<Engine> {
        match self {
            Self::Fresh(file) => {
                let mut config = GatewayConfig::read(file)?;
                config.settle_macs(links)?;
                Engine::fresh(&config)
            }
            Self::Restored(file) => Engine::restored(file, Supplied::default()),
        }
    }
}

/// Runs a gateway until it is told to stop, by SIGINT or SIGTERM.
///
/// With `hold` it passes nothing until it is told to `resume`. A restored one says first what became of what was saved.
pub(crate) fn run(
    mut engine: Engine,
    links: &[LinkSpec],
    control: &Path,
    hold: bool,
    json: bool,
) -> anyhow::Result<()> {
    let stopped = stop_on_signals()?;
    engine.open_links(links)?;
    let mut server = ControlServer::bind(control)?;
    if let Some(summary) = engine.summary() {
        print(json, summary, || summary.text())?;
    }
    if !hold {
        engine.resume();
    }
    while !stopped.load(Ordering::Relaxed) {
        let asked = wait(&mut engine, &server)?;
        let mut turns = 1;
        while engine.turn() && turns < MOST_TURNS {
            turns += 1;
        }
        if let Some(first) = engine.first_packet() {
            eprintln!("first packet {first} ms after the restore began");
        }
        if asked {
            server.serve(clock::monotonic(), |request| engine.answer(request));
        }
    }
    Ok(())
}

/// Waits until there is something to do, at most until the stack's next deadline. True if that may be a client's request.
fn wait(engine: &mut Engine, server: &ControlServer) -> anyhow::Result<bool> {
    let mut timeout = engine.next_deadline().unwrap_or(LONGEST_WAIT).min(LONGEST_WAIT);
    if server.has_pending() {
        timeout = timeout.min(SHORT_WAIT);
    }
    let running = engine.state() == RunState::Running;
    let mut fds = Vec::with_capacity(4);
    // Places of the links in `fds`, in their order.
    let mut places = Vec::with_capacity(2);
    for link in engine.links().filter(|_| running) {
        let mut flags = PollFlags::IN;
        match link.is_blocked() {
            Some(RoomWhen::Writable) => flags |= PollFlags::OUT,
            Some(RoomWhen::Soon) => timeout = timeout.min(SHORT_WAIT),
            None => {}
        }
        let fd = link.fd().map(|fd| PollFd::from_borrowed_fd(fd, flags));
        places.push(fd.is_some().then_some(fds.len()));
        fds.extend(fd);
    }
    let of_links = fds.len();
    for (fd, for_writing) in server.waits() {
        let flags = if for_writing { PollFlags::OUT } else { PollFlags::IN };
        fds.push(PollFd::from_borrowed_fd(fd, flags));
    }
    let timeout = Timespec::try_from(timeout).unwrap_or_default();
    match rustix::event::poll(&mut fds, Some(&timeout)) {
        Ok(found) => {
            let told: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
            drop(fds);
            let of_link = |place: &Option<usize>| place.and_then(|at| told.get(at)).copied();
            // A link without a descriptor, or without a peer to tell anything, can only be looked at.
            let ups: Vec<bool> = engine.links().map(Link::is_up).collect();
            let is_told = |place| of_link(place).is_none_or(|told| told.intersects(READABLE));
            engine.set_ready(places.iter().zip(ups).map(|(place, up)| found == 0 || !up || is_told(place)));
            for (index, place) in places.iter().enumerate() {
                if of_link(place).is_some_and(|told| told.intersects(PollFlags::ERR)) {
                    engine.look_at_error(index);
                }
            }
            let of_server = told.get(of_links..).unwrap_or_default();
            Ok(found == 0 || of_server.iter().any(|told| !told.is_empty()) || server.has_pending())
        }
        Err(Errno::INTR) => Ok(true),
        Err(errno) => Err(errno).context("waiting for traffic"),
    }
}

pub(crate) fn stop_on_signals() -> anyhow::Result<Arc<AtomicBool>> {
    let stopped = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stopped)).context("watching for signals")?;
    }
    Ok(stopped)
}

/// Turns without a look at the control socket.
const MOST_TURNS: usize = 64;
/// Something to read, or an error, which a read tells.
const READABLE: PollFlags = PollFlags::IN.union(PollFlags::ERR).union(PollFlags::HUP);
/// Even an idle gateway looks around now and then.
const LONGEST_WAIT: Duration = Duration::from_millis(500);
/// While a file is being written, or a device has no room: it does not say when it has again.
const SHORT_WAIT: Duration = Duration::from_millis(1);
