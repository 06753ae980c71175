//! Switching the offloads of a device off: where a link is not told of them, what is left undone is lost.

use rustix::io::Errno;

use crate::fault::errno_fault;
use crate::sys;

/// Makes the device's kernel compute every checksum and cut and join no segments.
pub fn switch_off_offloads(device: &str) -> anyhow::Result<()> {
    for feature in [SET_TX_CHECKSUM, SET_SCATTER_GATHER, SET_TSO, SET_GSO, SET_GRO] {
        match sys::set_device_feature(device, feature, false) {
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno_fault(format_args!("switching the offloads of {device} off"), errno).into()),
        }
    }
    Ok(())
}

/// Commands of the ethtool ioctl (linux/ethtool.h).
const SET_TX_CHECKSUM: u32 = 0x17;
const SET_SCATTER_GATHER: u32 = 0x19;
const SET_TSO: u32 = 0x1f;
const SET_GSO: u32 = 0x24;
const SET_GRO: u32 = 0x2c;
