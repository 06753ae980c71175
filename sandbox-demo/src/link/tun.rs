//! A link over a TUN or TAP device: the other end is the kernel of this namespace.

use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;

use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::LinkCounts;
use super::ethertype;
use crate::fault::Fault;
use crate::fault::errno_fault;
use crate::sys;

/// An attached device: TUN has datagrams, TAP has frames.
pub(super) struct TunLink {
    tun: OwnedFd,
    frames: bool,
    buffer: Vec<u8>,
}

impl TunLink {
    pub(super) fn open(name: &str, frames: bool) -> anyhow::Result<Self> {
        Ok(Self { tun: attached(name, frames)?, frames, buffer: vec![0; MAX_READ] })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.tun.as_fd()
    }

    pub(super) fn receive(&mut self, counts: &mut LinkCounts) -> Option<Vec<u8>> {
        loop {
            let read = match rustix::io::read(&self.tun, self.buffer.as_mut_slice()) {
                Ok(read) => read,
                Err(Errno::INTR) => continue,
                Err(_) => return None,
            };
            let datagram = self.buffer.get(..read)?;
            if self.frames || ethertype(datagram).is_some() {
                return Some(datagram.to_vec());
            }
            counts.unreadable += 1;
        }
    }

    pub(super) fn send(&self, datagram: &[u8]) -> Result<(), Errno> {
        rustix::io::write(&self.tun, datagram).map(drop)
    }
}

/// Makes a TUN device that stays when whoever is attached to it ends.
pub(crate) fn make_tun(name: &str) -> Result<(), Fault> {
    sys::keep_tun(&attached(name, false)?).map_err(|errno| errno_fault(format_args!("keeping tun:{name}"), errno))
}

/// A descriptor of the TUN device of this name in the present namespace, or of the TAP device if `frames`; a new device if
/// there is none.
fn attached(name: &str, frames: bool) -> Result<OwnedFd, Fault> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let tun = rustix::fs::open(DEVICE_NODE, flags, Mode::empty()).map_err(|errno| match errno {
        Errno::NOENT | Errno::NODEV | Errno::NXIO => Fault::new(
            format!("there is no {DEVICE_NODE}: {errno}"),
            "load the module (`modprobe tun`), or hand the device to the container (`--device /dev/net/tun`)",
        ),
        Errno::PERM | Errno::ACCESS => Fault::new(
            format!("opening {DEVICE_NODE}: {errno}"),
            "it is closed to this user: run as root, or open it (`chmod 666 /dev/net/tun`), or use a packet socket",
        ),
        other => errno_fault(format_args!("opening {DEVICE_NODE}"), other),
    })?;
    let kind = if frames { "tap" } else { "tun" };
    sys::attach_tun(&tun, name, frames).map_err(|errno| match errno {
        Errno::BUSY => Fault::new(
            format!("attaching to {kind}:{name}: {errno}"),
            "another process is attached to it: end that one, or name another device",
        ),
        other => errno_fault(format_args!("attaching to {kind}:{name}"), other),
    })?;
    Ok(tun)
}

const DEVICE_NODE: &str = "/dev/net/tun";
/// The longest IP datagram in a frame with a VLAN tag.
const MAX_READ: usize = 65_535 + 18;
