//! From a running machine to a directory.

use std::fs;
use std::fs::File;
use std::io::IsTerminal;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;
use serde_json::Value;
use serde_json::json;

use super::MANIFEST;
use super::Manifest;
use super::NET_IMAGE;
use super::VERSION;
use super::VM_STATE;
use super::qmp;
use super::qmp::Migration;
use super::qmp::Qmp;
use crate::clock;
use crate::clock::millis;
use crate::commands::print;
use crate::control::After;
use crate::control::ControlClient;
use crate::control::PauseReply;
use crate::control::Request;
use crate::control::RunState;
use crate::control::SaveForm;
use crate::control::SaveReply;
use crate::control::StatusReply;
use crate::fault::Fault;

/// What `vm save` is told.
pub(crate) struct SaveVm {
    pub(crate) directory: PathBuf,
    pub(crate) qmp: PathBuf,
    pub(crate) control: PathBuf,
    /// Whether machine and gateway go on.
    pub(crate) keep_running: bool,
    pub(crate) json: bool,
}

/// What `vm save` says.
#[derive(Serialize)]
struct Saved<'a> {
    directory: &'a Path,
    #[serde(flatten)]
    manifest: &'a Manifest,
    /// Frames the machine had sent before it was stopped and that the gateway had not read yet.
    drained: u64,
    /// From the request to a checkpoint that is safe on disk.
    save_ms: f64,
}

impl SaveVm {
    /// Makes a checkpoint. Where it fails, machine and gateway go on as before, and nothing is left behind.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let begun = clock::monotonic();
        let target =
            std::path::absolute(&self.directory).with_context(|| format!("the path {}", self.directory.display()))?;
        if target.exists() {
            let remedy = "name a directory that does not exist yet: a checkpoint is written whole or not at all";
            return Err(Fault::new(format!("{} exists", target.display()), remedy).into());
        }
        let mut qmp = Qmp::connect(&self.qmp)?;
        let mut gateway = ControlClient::connect(&self.control)?;
        let was_running = qmp.state()? == "running";
        let was = gateway.call::<StatusReply>(&Request::Status)?.state;
        let partial = Partial::make(&target)?;
        qmp.run("stop", &Value::Null)?;
        let outcome = checkpoint(&mut qmp, &mut gateway, &partial.0);
        let outcome = outcome.and_then(|found| partial.finish(&target).map(|()| found));
        if outcome.is_err() || self.keep_running {
            // The error that is told is the first one.
            let resumed = match was {
                RunState::Running => gateway.call::<StatusReply>(&Request::Resume).map(drop),
                RunState::Paused => Ok(()),
            };
            let went_on = if was_running { qmp.run("cont", &Value::Null).map(drop) } else { Ok(()) };
            if outcome.is_ok() {
                resumed?;
                went_on?;
            }
        }
        let (manifest, drained) = outcome.context("no checkpoint was made, the machine goes on")?;
        if !self.keep_running {
            qmp.run("quit", &Value::Null).context("the checkpoint is made; QEMU does not end")?;
        }
        let save_ms = millis(clock::monotonic().saturating_since(begun));
        let saved = Saved { directory: &target, manifest: &manifest, drained, save_ms };
        print(self.json, &saved, || {
            format!(
                "checkpoint {}: machine {} bytes, network {} bytes (generation {}), {drained} frames taken in, {save_ms} ms",
                target.display(),
                manifest.vm_bytes,
                manifest.net_bytes,
                manifest.generation
            )
        })
    }
}

/// The steps between `stop` and a directory that is whole.
fn checkpoint(qmp: &mut Qmp, gateway: &mut ControlClient, directory: &Path) -> anyhow::Result<(Manifest, u64)> {
    let PauseReply { drained, .. } = gateway.call(&Request::Pause)?;
    let net = directory.join(NET_IMAGE);
    let saved: SaveReply = gateway.call(&Request::Save { path: net, after: After::Hold, form: SaveForm::default() })?;
    let state = directory.join(VM_STATE);
    qmp.run("migrate", &json!({ "uri": qmp::to_file(&state)? }))?;
    let shows = std::io::stderr().is_terminal();
    loop {
        match qmp.migration()? {
            Migration::Done => break,
            Migration::Failed(why) => anyhow::bail!("QEMU could not write the machine's state: {why}"),
            Migration::Under { transferred, total } if shows => {
                eprint!("\r{} of {} MiB", transferred >> 20, total >> 20);
            }
            Migration::Under { .. } => {}
        }
        sleep(LOOK_AGAIN);
    }
    if shows {
        eprint!("\r\x1b[K");
    }
    let written = File::open(&state).context("looking at the machine's state")?;
    written.sync_all().context("writing the machine's state to disk")?;
    let vm_bytes = written.metadata().context("looking at the machine's state")?.len();
    anyhow::ensure!(vm_bytes > 0, "QEMU wrote an empty state");
    let net_bytes = saved.bytes as u64;
    let manifest = Manifest { version: VERSION, generation: saved.generation, vm_bytes, net_bytes };
    let text = serde_json::to_vec_pretty(&manifest)?;
    let path = directory.join(MANIFEST);
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    File::open(&path)?.sync_all().context("writing the checkpoint to disk")?;
    Ok((manifest, drained))
}

/// A directory that becomes the checkpoint once it is whole, and goes if it does not.
struct Partial(PathBuf);

impl Partial {
    fn make(target: &Path) -> anyhow::Result<Self> {
        let parent = target.parent().context("a checkpoint needs a directory to be in")?;
        let directory = tempfile::Builder::new()
            .prefix(".checkpoint-")
            // The machine's memory is in it, and QEMU makes files that everybody may read.
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir_in(parent)
            .map_err(|error| {
                let what = format!("cannot write in {}: {error}", parent.display());
                Fault::new(what, "choose a directory you can write in")
            })?;
        Ok(Self(directory.keep()))
    }

    /// Under its name from now on, all of it on disk.
    fn finish(&self, target: &Path) -> anyhow::Result<()> {
        File::open(&self.0)?.sync_all().context("writing the checkpoint to disk")?;
        fs::rename(&self.0, target).with_context(|| format!("naming the checkpoint {}", target.display()))?;
        if let Some(parent) = target.parent() {
            File::open(parent)?.sync_all().context("writing the checkpoint to disk")?;
        }
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Under its final name it is not here any more.
        drop(fs::remove_dir_all(&self.0));
    }
}

const LOOK_AGAIN: Duration = Duration::from_millis(50);
