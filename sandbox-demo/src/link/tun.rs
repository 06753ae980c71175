//! A link over a TUN device: the other end is the kernel of this namespace.

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

/// An attached TUN device.
pub(super) struct TunLink {
    tun: OwnedFd,
    buffer: Vec<u8>,
}

impl TunLink {
    pub(super) fn open(name: &str) -> anyhow::Result<Self> {
        Ok(Self { tun: attached(name)?, buffer: vec![0; MAX_DATAGRAM] })
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
            if ethertype(datagram).is_some() {
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
    sys::keep_tun(&attached(name)?).map_err(|errno| errno_fault(format_args!("keeping tun:{name}"), errno))
}

/// A descriptor of the TUN device of this name in the present namespace; a new device if there is none.
fn attached(name: &str) -> Result<OwnedFd, Fault> {
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
    sys::attach_tun(&tun, name).map_err(|errno| match errno {
        Errno::BUSY => Fault::new(
            format!("attaching to tun:{name}: {errno}"),
            "another process is attached to it: end that one, or name another device",
        ),
        other => errno_fault(format_args!("attaching to tun:{name}"), other),
    })?;
    Ok(tun)
}

const DEVICE_NODE: &str = "/dev/net/tun";
/// The longest IP datagram.
const MAX_DATAGRAM: usize = 65_535;
