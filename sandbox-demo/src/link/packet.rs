//! A link over an existing device, read and written through a packet socket.

use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;

use anyhow::Context;
use hibernet_netstack::Medium;
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

/// The device's frames: whole for an Ethernet link, without their Ethernet header for an IP link. Both ends of an IP
/// link's wire have the same hardware address, so what is sent to the device's own address is the other end's to take,
/// and no ARP is needed.
pub(super) struct PacketLink {
    ring: PacketRing,
    socket: OwnedFd,
    device: Device,
    whole_frames: bool,
}

impl PacketLink {
    pub(super) fn open(name: &str, medium: Medium) -> anyhow::Result<Self> {
        let device = Netlink::open()?.device(name)?;
        if !device.up {
            return Err(Fault::new(format!("device {name} is down"), format!("`ip link set {name} up`")).into());
        }
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let kind = if medium == Medium::Ip { SocketType::DGRAM } else { SocketType::RAW };
        let socket = rustix::net::socket_with(AddressFamily::PACKET, kind, flags, None)
            .map_err(|errno| errno_fault(format_args!("opening a packet socket on {name}"), errno))?;
        let ring = PacketRing::attach(socket.as_fd(), device.mtu, RING_FRAMES)
            .with_context(|| format!("making the receive ring of {name}"))?;
        sys::bind_packet(socket.as_fd(), device.index).with_context(|| format!("binding a packet socket to {name}"))?;
        if let Medium::Ethernet { mac } = medium {
            // Neighbour discovery uses groups the device knows nothing of, and the link may have an address of its own.
            sys::widen_filter(socket.as_fd(), device.index, mac.octets() != device.mac)
                .and_then(|()| sys::widen_filter(socket.as_fd(), device.index, false))
                .with_context(|| format!("asking {name} for frames to groups"))?;
        }
        Ok(Self { ring, socket, device, whole_frames: medium != Medium::Ip })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(super) fn receive(&mut self, counts: &mut LinkCounts) -> Option<Vec<u8>> {
        loop {
            let mut read = None;
            if !self.ring.take(|frame| {
                let is_ours = self.whole_frames || ethertype(frame.bytes) == Some(frame.ethertype);
                let readable = !frame.truncated && !frame.checksum_missing && is_ours;
                read = readable.then(|| match frame.vlan {
                    Some(tag) if self.whole_frames => tagged(frame.bytes, tag),
                    _ => frame.bytes.to_vec(),
                });
            }) {
                return None;
            }
            match read {
                Some(datagram) => return Some(datagram),
                None => counts.unreadable += 1,
            }
        }
    }

    pub(super) fn send(&self, bytes: &[u8]) -> Result<(), Errno> {
        let ethertype = match self.whole_frames {
            true => bytes.get(ETHERTYPE_AT..).and_then(<[u8]>::first_chunk).map(|bytes| u16::from_be_bytes(*bytes)),
            false => ethertype(bytes),
        };
        let ethertype = ethertype.ok_or(Errno::INVAL)?;
        sys::send_packet(self.socket.as_fd(), self.device.index, self.device.mac, ethertype, bytes)
    }

    pub(super) fn overruns(&self) -> u64 {
        sys::packet_drops(self.socket.as_fd()).map_or(0, u64::from)
    }
}

/// The frame with the VLAN tag back in its place, from where the kernel has taken it.
fn tagged(frame: &[u8], tag: [u16; 2]) -> Vec<u8> {
    let (addresses, rest) = frame.split_at(ETHERTYPE_AT.min(frame.len()));
    [addresses, &tag[0].to_be_bytes(), &tag[1].to_be_bytes(), rest].concat()
}

/// Where a frame says what it carries: behind two hardware addresses.
const ETHERTYPE_AT: usize = 12;
/// Slots of the receive ring: a fifth of a second at 40,000 datagrams a second, 16 MiB at the usual MTU.
const RING_FRAMES: usize = 8192;
