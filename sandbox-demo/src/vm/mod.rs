//! A virtual machine and its network, checkpointed together: QEMU over QMP, the gateway over its control socket.
//!
//! The order is what makes a checkpoint whole. On the way out the machine is stopped first, then the gateway takes in what the
//! machine had sent, and is saved; frames between the two would be in neither otherwise. On the way back the gateway is
//! restored and listens before QEMU starts, and no frame passes before both are whole.

mod qmp;
mod restore;
mod save;

use serde::Deserialize;
use serde::Serialize;

pub(crate) use self::restore::RestoreVm;
pub(crate) use self::save::SaveVm;

/// What a checkpoint consists of. Written last: a directory without it is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// Version of this file's layout.
    pub(crate) version: u32,
    /// The generation of the network's image.
    pub(crate) generation: String,
    /// Bytes of the machine's state.
    pub(crate) vm_bytes: u64,
    /// Bytes of the network's image.
    pub(crate) net_bytes: u64,
}

/// The machine's state, as QEMU writes it.
const VM_STATE: &str = "vm.state";
/// The network's image.
const NET_IMAGE: &str = "net.hib";
const MANIFEST: &str = "checkpoint.json";
const VERSION: u32 = 1;
