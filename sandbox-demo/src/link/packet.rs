//! A link over an existing device, read and written through a packet socket.

use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;

use anyhow::Context;
use rustix::io::Errno;
use rustix::net::AddressFamily;
use rustix::net::SocketFlags;
use rustix::net::SocketType;

use super::LinkCounts;
use super::ethertype;
use crate::fault::Fault;
use crate::fault::errno_fault;
use crate::netlink::Device;
use crate::netlink::Netlink;
use crate::sys;
use crate::sys::PacketRing;

/// The device's frames without their Ethernet header. Both ends of the wire have the same hardware address, so what
/// is sent to the device's own address is the other end's to take, and no ARP is needed.
pub(super) struct PacketLink {
    ring: PacketRing,
    socket: OwnedFd,
    device: Device,
}

impl PacketLink {
    pub(super) fn open(name: &str) -> anyhow::Result<Self> {
        let device = Netlink::open()?.device(name)?;
        if !device.up {
            return Err(Fault::new(format!("device {name} is down"), format!("`ip link set {name} up`")).into());
        }
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::PACKET, SocketType::DGRAM, flags, None)
            .map_err(|errno| errno_fault(format_args!("opening a packet socket on {name}"), errno))?;
        let ring = PacketRing::attach(socket.as_fd(), device.mtu, RING_FRAMES)
            .with_context(|| format!("making the receive ring of {name}"))?;
        sys::bind_packet(socket.as_fd(), device.index).with_context(|| format!("binding a packet socket to {name}"))?;
        Ok(Self { ring, socket, device })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(super) fn receive(&mut self, counts: &mut LinkCounts) -> Option<Vec<u8>> {
        loop {
            let mut read = None;
            if !self.ring.take(|frame| {
                let readable =
                    !frame.truncated && !frame.checksum_missing && ethertype(frame.datagram) == Some(frame.ethertype);
                read = readable.then(|| frame.datagram.to_vec());
            }) {
                return None;
            }
            match read {
                Some(datagram) => return Some(datagram),
                None => counts.unreadable += 1,
            }
        }
    }

    pub(super) fn send(&self, datagram: &[u8]) -> Result<(), Errno> {
        let ethertype = ethertype(datagram).ok_or(Errno::INVAL)?;
        sys::send_packet(self.socket.as_fd(), self.device.index, self.device.mac, ethertype, datagram)
    }

    pub(super) fn overruns(&self) -> u64 {
        sys::packet_drops(self.socket.as_fd()).map_or(0, u64::from)
    }
}

/// Slots of the receive ring: a fifth of a second at 40,000 datagrams a second, 16 MiB at the usual MTU.
const RING_FRAMES: usize = 8192;
