//! A link over a TUN or TAP device: the other end is the kernel of the namespace the device is in.

use std::io::IoSlice;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;

use hibernet_netstack::Ingress;
use hibernet_netstack::LinkOffloads;
use hibernet_netstack::Offload;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::Buffers;
use super::LinkCounts;
use super::Waiting;
use super::ethertype;
use crate::fault::Fault;
use crate::fault::errno_fault;
use crate::sys;
use crate::sys::VNET_HEADER;

/// An attached device: TUN has datagrams, TAP has frames.
pub(super) struct TunLink {
    tun: OwnedFd,
    frames: bool,
    offloads: LinkOffloads,
}

impl TunLink {
    pub(super) fn open(name: &str, frames: bool, offload: bool) -> anyhow::Result<Self> {
        let tun = attached(name, frames, offload)?;
        let mut offloads = if offload { LinkOffloads::ALL } else { LinkOffloads::default() };
        // UDP's segmentation came with Linux 6.2; the rest is older than anything that runs this.
        if offload && sys::set_tun_offloads(&tun, true).is_err() {
            sys::set_tun_offloads(&tun, false)
                .map_err(|errno| errno_fault(format_args!("asking {name} for offloads (see --offload)"), errno))?;
            offloads.udp = false;
        }
        Ok(Self { tun, frames, offloads })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.tun.as_fd()
    }

    pub(super) fn offloads(&self) -> LinkOffloads {
        self.offloads
    }

    /// The next frame; the error says that there is none, or never will be again.
    pub(super) fn receive(&self, counts: &mut LinkCounts, buffers: &mut Buffers) -> Result<Ingress, Errno> {
        let mut frame = buffers.take();
        let mut header = [0; VNET_HEADER];
        loop {
            let vnet = self.offloads.checksum.then_some(&mut header);
            match sys::read_frame(self.tun.as_fd(), vnet, &mut frame) {
                Ok(()) if self.frames || ethertype(&frame).is_some() => {
                    return Ok(Ingress { frame, offload: Offload::from_virtio(&header) });
                }
                Ok(()) => {
                    counts.unreadable += 1;
                    frame.clear();
                }
                Err(Errno::INTR) => {}
                Err(errno) => {
                    buffers.give(frame);
                    return Err(errno);
                }
            }
        }
    }

    /// Sends the first of what waits: a device takes one at a time.
    pub(super) fn send(&self, waiting: &Waiting) -> Result<usize, Errno> {
        let Some((frame, offload)) = waiting.front() else { return Ok(0) };
        if self.offloads.checksum {
            let header = offload.to_virtio(frame);
            rustix::io::writev(&self.tun, &[IoSlice::new(&header), IoSlice::new(frame)])?;
        } else {
            rustix::io::write(&self.tun, frame)?;
        }
        Ok(1)
    }
}

/// Makes a TUN device that stays when whoever is attached to it ends.
pub(crate) fn make_tun(name: &str) -> Result<(), Fault> {
    let tun = attached(name, false, false)?;
    sys::keep_tun(&tun).map_err(|errno| errno_fault(format_args!("keeping tun:{name}"), errno))
}

/// A descriptor of the TUN device of this name in the present namespace, or of the TAP device if `frames`; a new device if
/// there is none.
fn attached(name: &str, frames: bool, offload: bool) -> Result<OwnedFd, Fault> {
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
    sys::attach_tun(&tun, name, frames, offload).map_err(|errno| match errno {
        Errno::BUSY => Fault::new(
            format!("attaching to {kind}:{name}: {errno}"),
            "another process is attached to it: end that one, or name another device",
        ),
        other => errno_fault(format_args!("attaching to {kind}:{name}"), other),
    })?;
    Ok(tun)
}

const DEVICE_NODE: &str = "/dev/net/tun";
