//! The arguments of `vm`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;

use super::Control;
use super::restoring::RestoreArgs;
use crate::link::LinkSpec;
use crate::vm::RestoreVm;
use crate::vm::SaveVm;

#[derive(Debug, Subcommand)]
pub(super) enum VmCommand {
    /// Stop a machine, save it and its gateway to a directory, and end both.
    ///
    /// The machine is stopped first; then the gateway takes in what the machine had sent and is saved; then QEMU writes the
    /// machine's state. The directory appears whole or not at all. If anything fails, machine and gateway go on.
    #[command(after_long_help = VM_EXAMPLE)]
    Save {
        /// The directory to make: vm.state, net.hib and checkpoint.json.
        directory: PathBuf,
        /// Let machine and gateway go on; the checkpoint is a copy of the past. To run both, restore it with --fork.
        #[arg(long)]
        keep_running: bool,
        /// The machine's monitor (`-qmp unix:SOCKET,server=on,wait=off`).
        #[arg(long, value_name = "SOCKET", default_value = "qmp.sock")]
        qmp: PathBuf,
        #[command(flatten)]
        control: Control,
    },
    /// Restore a machine and its gateway from a directory, and stay until the machine ends.
    ///
    /// The gateway is restored and listens first, then QEMU reads the machine's state, then both go on. Behind `--` stands
    /// QEMU's command line as it was at the first start, but for -S, -qmp and -incoming, which are added.
    #[command(after_long_help = VM_EXAMPLE)]
    Restore {
        /// The directory that `vm save` has made.
        directory: PathBuf,
        /// As for `run`, the guest's first. Of a checkpoint of `sandbox-demo gateway` the second is the uplink.
        #[arg(long = "link", value_name = "DEVICE", required = true)]
        links: Vec<LinkSpec>,
        #[command(flatten)]
        how: RestoreArgs,
        /// Where the machine's monitor will listen.
        #[arg(long, value_name = "SOCKET", default_value = "qmp.sock")]
        qmp: PathBuf,
        #[command(flatten)]
        control: Control,
        /// QEMU's command line.
        #[arg(last = true, required = true, value_name = "QEMU")]
        qemu: Vec<String>,
    },
}

impl VmCommand {
    pub(super) fn run(self, json: bool) -> anyhow::Result<ExitCode> {
        match self {
            Self::Save { directory, keep_running, qmp, control } => {
                SaveVm { directory, qmp, control: control.socket, keep_running, json }.run()?;
                Ok(ExitCode::SUCCESS)
            }
            Self::Restore { directory, links, how, qmp, control, qemu } => {
                let (how, links) = (how.arguments(), links.iter().map(ToString::to_string).collect());
                let status = RestoreVm { directory, qmp, control: control.socket, links, how, qemu, json }.run()?;
                Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
            }
        }
    }
}

const VM_EXAMPLE: &str = "\
An example. `gateway.json` has an Ethernet link `guest0`; the gateway listens for QEMU first:

  sandbox-demo run --link stream:guest0@/tmp/net.sock .. --config gateway.json &
  qemu-system-x86_64 .. -netdev stream,id=n0,server=off,addr.type=unix,addr.path=/tmp/net.sock \\
    -device virtio-net-pci,netdev=n0 -qmp unix:qmp.sock,server=on,wait=off &
  sandbox-demo vm save checkpoint1
  sandbox-demo vm restore checkpoint1 --link stream:guest0@/tmp/net.sock .. -- qemu-system-x86_64 ..

A copy that runs beside the first one gets sockets of its own, and ends what the first one goes on with:

  sandbox-demo vm restore checkpoint1 --fork --inside guest0 --control 2.sock --qmp qmp2.sock \\
    --link stream:guest0@/tmp/net2.sock .. -- qemu-system-x86_64 .. -device vmgenid,guid=auto

With -device vmgenid,guid=auto the guest's kernel (Linux 5.18 and later) draws its random numbers afresh.";
