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
use self::scenario::Rules;
use self::watch::Watch;
use crate::clock;
use crate::fault::raise_file_limit;
use crate::peers::FILES_NEEDED;

/// Runs the demonstration and prints its story, or its figures as JSON.
pub(crate) fn demo(in_memory: bool, json: bool) -> anyhow::Result<ExitCode> {
    let begun = clock::monotonic();
    let watch = Watch::new(json)?;
    let dir = private_dir()?;
    raise_file_limit(FILES_NEEDED)?;
    let network = if in_memory { Err(anyhow::anyhow!("--in-memory was given")) } else { Network::build() };
    let (carried, control) = match network {
        Ok(network) => with_kernels(network, dir.path(), &watch)?,
        Err(why) => within_process(&why, dir.path(), &watch)?,
    };
    let (mut figures, failed) = judge::judge(&carried, &control);
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

fn with_kernels(mut network: Network, dir: &Path, watch: &Watch) -> anyhow::Result<(Carried, Broken)> {
    watch.say(format_args!("Mode: kernel peers. {}", network.description()));
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

fn within_process(why: &anyhow::Error, dir: &Path, watch: &Watch) -> anyhow::Result<(Carried, Broken)> {
    watch.say(format_args!("Mode: in memory, without kernel peers: {why:#}"));
    let (carried, control) = memory::run(dir, watch)?;
    tell_control(&control, watch);
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
