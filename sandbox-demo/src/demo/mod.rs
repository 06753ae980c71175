//! The demonstration: connections between real kernels outlive the process that carries them.

mod broken;
mod carried;
mod figures;
mod gateway_process;
mod judge;
mod memory;
mod network;
mod scenario;
mod watch;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;

use self::broken::Broken;
use self::carried::Carried;
use self::network::Network;
use self::network::Wiring;
use self::scenario::Rules;
use self::watch::Watch;
use crate::clock;
use crate::fault::raise_file_limit;
use crate::netns::Rights;
use crate::netns::enter_router;
use crate::netns::silence_kernel;
use crate::peers::FILES_NEEDED;

/// What joins the peers to the gateway. Without a choice the first that can be had, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LinkChoice {
    /// Kernel peers behind veth pairs, read through packet sockets: needs neither root nor a device node.
    Veth,
    /// Kernel peers behind TUN devices: needs /dev/net/tun.
    Tun,
    /// A smaller demonstration within one process, smoltcp at both ends: needs nothing.
    Memory,
}

/// Where the demonstration takes place, and why there.
enum Stage {
    Kernels { network: Box<Network>, rights: Rights, why: String },
    Memory { why: String },
}

/// Runs the demonstration and prints its story, or its figures as JSON.
pub(crate) fn demo(choice: Option<LinkChoice>, json: bool) -> anyhow::Result<ExitCode> {
    let begun = clock::monotonic();
    let watch = Watch::new(json)?;
    let dir = private_dir()?;
    raise_file_limit(FILES_NEEDED)?;
    let (carried, control, why) = match set_up(choice)? {
        Stage::Kernels { network, rights, why } => {
            let wiring = network.wiring();
            watch.say(format_args!(
                "Mode: kernel peers over {} ({why}). {}, a guest and a world with kernel TCP in network namespaces, {}.",
                wiring.name(),
                rights.description(),
                wiring.description()
            ));
            let (carried, control) = with_kernels(*network, dir.path(), &watch)?;
            (carried, control, why)
        }
        Stage::Memory { why } => {
            watch.say(format_args!("Mode: in memory, without kernel peers ({why})."));
            let (carried, control) = memory::run(dir.path(), &watch)?;
            tell_control(&control, &watch);
            (carried, control, why)
        }
    };
    let (mut figures, failed) = judge::judge(&carried, &control);
    figures.why = why;
    figures.seconds = clock::monotonic().saturating_since(begun).as_secs_f64();
    watch.say(format_args!("All in {:.1} s.", figures.seconds));
    if json {
        println!("{}", serde_json::to_string(&figures).context("writing JSON")?);
    }
    for point in &failed {
        eprintln!("sandbox-demo: failed: {point}");
    }
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Makes the links that were asked for, or the first that can be had.
fn set_up(choice: Option<LinkChoice>) -> anyhow::Result<Stage> {
    let asked = || "as --links says".to_owned();
    let wirings: &[Wiring] = match choice {
        None => &[Wiring::Veth, Wiring::Tun],
        Some(LinkChoice::Veth) => &[Wiring::Veth],
        Some(LinkChoice::Tun) => &[Wiring::Tun],
        Some(LinkChoice::Memory) => return Ok(Stage::Memory { why: asked() }),
    };
    let rights = match enter_router() {
        Ok(rights) => rights,
        Err(fault) if choice.is_some() => return Err(fault.into()),
        Err(fault) => return Ok(Stage::Memory { why: format!("no namespaces: {fault}") }),
    };
    silence_kernel();
    let mut refused = Vec::new();
    for wiring in wirings {
        match Network::build(*wiring) {
            Ok(network) => {
                let first = || "the first choice".to_owned();
                let why = if refused.is_empty() { choice.map_or_else(first, |_| asked()) } else { refused.join("; ") };
                return Ok(Stage::Kernels { network: Box::new(network), rights, why });
            }
            Err(error) if choice.is_some() => return Err(error),
            Err(error) => refused.push(format!("no {}: {error:#}", wiring.name())),
        }
    }
    Ok(Stage::Memory { why: refused.join("; ") })
}

fn with_kernels(mut network: Network, dir: &Path, watch: &Watch) -> anyhow::Result<(Carried, Broken)> {
    let carried = carried::carry(&mut network, dir, watch)?;
    let control = broken::count_broken(&mut network, dir, Rules::Strict, watch)?;
    tell_control(&control, watch);
    let permissive = broken::count_broken(&mut network, dir, Rules::Permissive, watch)?;
    watch.say(format_args!(
        "A permissive router (loose pickup, accept all, masquerade that keeps ports) started empty: {} of {} break. \
         That may be few: whoever accepts any packet and guesses the same port again needs no memory, until two guests \
         share a port or a stranger sends the packet.",
        permissive.broken, permissive.streams
    ));
    Ok((carried, control))
}

fn tell_control(control: &Broken, watch: &Watch) {
    watch.say(format_args!(
        "Control: the same rules, killed under traffic and started with an empty table: {} of {} connections break.",
        control.broken, control.streams
    ));
}

/// A directory for images and sockets that only this user can enter; it goes when the value does.
fn private_dir() -> anyhow::Result<tempfile::TempDir> {
    tempfile::Builder::new().prefix("sandbox-demo-").tempdir().with_context(|| {
        format!("no private directory under {}: set TMPDIR to one you can write", std::env::temp_dir().display())
    })
}
