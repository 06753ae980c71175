//! From a directory to a running machine.

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::ExitStatus;
use std::process::Stdio;
use std::sync::atomic::Ordering;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;
use serde_json::Value;

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
use crate::control::ControlClient;
use crate::control::Request;
use crate::control::RestoreSummary;
use crate::control::StatusReply;
use crate::fault::Fault;
use crate::gateway::ImageFiles;
use crate::gateway::has_application;
use crate::gateway::stop_on_signals;

/// What `vm restore` is told.
pub(crate) struct RestoreVm {
    pub(crate) directory: PathBuf,
    pub(crate) qmp: PathBuf,
    pub(crate) control: PathBuf,
    /// The gateway's links, the guest's first.
    pub(crate) links: Vec<String>,
    /// How its image comes back, as arguments.
    pub(crate) how: Vec<String>,
    /// QEMU and its arguments, but for those that restore.
    pub(crate) qemu: Vec<String>,
    pub(crate) json: bool,
}

/// What `vm restore` says once the machine runs.
#[derive(Serialize)]
struct Restored<'a> {
    directory: &'a Path,
    network: &'a Option<RestoreSummary>,
    gateway_pid: u32,
    qemu_pid: u32,
    /// From the request to a machine that runs.
    restore_ms: f64,
}

/// A process that ends with this one's interest in it.
struct Owned(Child);

impl Drop for Owned {
    fn drop(&mut self) {
        // It may have ended by itself. Asked to end it takes its sockets along.
        let pid = i32::try_from(self.0.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let (Ok(None), Some(pid)) = (self.0.try_wait(), pid) {
            let _ended = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            let begun = clock::monotonic();
            while matches!(self.0.try_wait(), Ok(None)) && clock::monotonic().saturating_since(begun) < GRACE {
                sleep(LOOK_AGAIN);
            }
        }
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl RestoreVm {
    /// Restores machine and network, lets them run, and stays until the machine ends. Where that fails, neither is left.
    pub(crate) fn run(&self) -> anyhow::Result<ExitStatus> {
        let begun = clock::monotonic();
        let directory = std::path::absolute(&self.directory)?;
        self.check(&directory)?;
        let (program, arguments) = self.qemu.split_first().context("give QEMU's command line behind `--`")?;
        let mut gateway = Owned(self.start_gateway(&directory)?);
        let mut control = wait_for("the gateway", &mut gateway, || ControlClient::connect(&self.control))?;
        let status: StatusReply = control.call(&Request::Status)?;

        let incoming = qmp::from_file(&directory.join(VM_STATE))?;
        let monitor = format!("unix:{},server=on,wait=off", self.qmp.display());
        let qemu = Command::new(program)
            .args(arguments)
            .args(["-S", "-qmp", &monitor, "-incoming", &incoming])
            .stdin(Stdio::null())
            .spawn()
            .map_err(|error| {
                let remedy =
                    "install QEMU (`apt-get install qemu-system-x86`), or give the path of its program behind `--`";
                Fault::new(format!("cannot start {program}: {error}"), remedy)
            })?;
        let mut qemu = Owned(qemu);
        let mut machine = wait_for("QEMU", &mut qemu, || Qmp::connect(&self.qmp))?;
        while machine.state().context("QEMU has not taken the machine's state")? == "inmigrate" {
            if let Migration::Failed(why) = machine.migration()? {
                anyhow::bail!("QEMU could not read the machine's state: {why}");
            }
            sleep(LOOK_AGAIN);
        }
        control.call::<StatusReply>(&Request::Resume)?;
        machine.run("cont", &Value::Null)?;
        drop((control, machine));

        let restored = Restored {
            directory: &directory,
            network: &status.restored,
            gateway_pid: gateway.0.id(),
            qemu_pid: qemu.0.id(),
            restore_ms: millis(clock::monotonic().saturating_since(begun)),
        };
        print(self.json, &restored, || {
            let network = restored.network.as_ref().map(|network| network.text()).unwrap_or_default();
            format!("{network}\nthe machine runs, {} ms after the request", restored.restore_ms)
        })?;
        let stopped = stop_on_signals()?;
        loop {
            if let Some(status) = qemu.0.try_wait().context("waiting for the machine to end")? {
                return Ok(status);
            }
            if stopped.load(Ordering::Relaxed) {
                // Both end with this process, which was told to.
                return Ok(ExitStatus::default());
            }
            sleep(LOOK_AGAIN);
        }
    }

    /// The checkpoint is whole, and nobody is at the sockets.
    fn check(&self, directory: &Path) -> anyhow::Result<()> {
        let path = directory.join(MANIFEST);
        let whole = |what: String| Fault::new(what, "give a directory that `sandbox-demo vm save` has made");
        let text = fs::read_to_string(&path).map_err(|error| whole(format!("{}: {error}", path.display())))?;
        let manifest: Manifest =
            serde_json::from_str(&text).map_err(|error| whole(format!("{}: {error}", path.display())))?;
        let Manifest { version, vm_bytes, net_bytes, generation: _ } = manifest;
        if version != VERSION {
            return Err(whole(format!("{} has version {version}, expected {VERSION}", path.display())).into());
        }
        for (name, expected) in [(VM_STATE, vm_bytes), (NET_IMAGE, net_bytes)] {
            let path = directory.join(name);
            let found = fs::metadata(&path).map_err(|error| whole(format!("{}: {error}", path.display())))?.len();
            if found != expected {
                return Err(whole(format!("{} has {found} bytes, expected {expected}", path.display())).into());
            }
        }
        if Qmp::connect(&self.qmp).is_ok() {
            let what = format!("a virtual machine answers at {} already", self.qmp.display());
            return Err(Fault::new(what, "end it, or name another socket with --qmp").into());
        }
        Ok(())
    }

    /// The gateway as a process of its own: restored, listening, passing nothing.
    fn start_gateway(&self, directory: &Path) -> anyhow::Result<Child> {
        let program = std::env::current_exe().context("the path of this program")?;
        let image = directory.join(NET_IMAGE);
        let mut command = Command::new(program);
        // What `gateway` has saved holds leases and forwards beside the stack.
        if has_application(&ImageFiles::from(image.clone()).open()?) {
            command.arg("gateway").arg("--restore").arg(&image);
            for (link, kind) in self.links.iter().zip(["--link", "--uplink"]) {
                command.arg(kind).arg(link);
            }
        } else {
            command.arg("restore").arg(&image).args(["--parent", &std::process::id().to_string()]);
            self.links.iter().for_each(|link| {
                command.arg("--link").arg(link);
            });
        }
        command
            .arg("--hold")
            .arg("--control")
            .arg(&self.control)
            .args(&self.how)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("starting the gateway")
    }
}

/// Tries until it works, for as long as the process lives.
fn wait_for<T>(who: &str, process: &mut Owned, mut attempt: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let begun = clock::monotonic();
    loop {
        match attempt() {
            Ok(found) => return Ok(found),
            Err(error) => {
                if let Some(status) = process.0.try_wait().with_context(|| format!("looking after {who}"))? {
                    anyhow::bail!("{who} has ended ({status}); what it printed says why");
                }
                if clock::monotonic().saturating_since(begun) > PATIENCE {
                    return Err(error.context(format!("{who} does not answer")));
                }
            }
        }
        sleep(LOOK_AGAIN);
    }
}

const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// How long a process may take to end when it is asked to.
const GRACE: Duration = Duration::from_secs(2);
/// Both are there within a second, on a busy machine within some.
const PATIENCE: Duration = Duration::from_secs(60);
