//! A link over a TUN or TAP device: the other end is the kernel of this namespace.

use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;

use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::LinkCounts;
use super::ethertype;
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
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let tun = rustix::fs::open("/dev/net/tun", flags, Mode::empty())
            .map_err(|errno| errno_fault("opening /dev/net/tun", errno))?;
        let kind = if frames { "tap" } else { "tun" };
        sys::attach_tun(&tun, name, frames)
            .map_err(|errno| errno_fault(format_args!("attaching to {kind}:{name}"), errno))?;
        Ok(Self { tun, frames, buffer: vec![0; MAX_READ] })
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

/// The longest IP datagram in a frame with a VLAN tag.
const MAX_READ: usize = 65_535 + 18;
