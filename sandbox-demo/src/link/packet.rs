//! A link over an existing device, read and written through a packet socket.

use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;

use anyhow::Context;
use hibernet_netstack::ChecksumState;
use hibernet_netstack::Ingress;
use hibernet_netstack::LinkOffloads;
use hibernet_netstack::Medium;
use hibernet_netstack::Offload;
use rustix::io::Errno;
use rustix::net::AddressFamily;
use rustix::net::SocketFlags;
use rustix::net::SocketType;
use rustix::net::sockopt;

use super::Buffers;
use super::LinkCounts;
use super::Waiting;
use super::ethertype;
use crate::fault::Fault;
use crate::fault::errno_fault;
use crate::netlink::Device;
use crate::netlink::Netlink;
use crate::sys;
use crate::sys::PacketMessage;
use crate::sys::PacketRing;
use crate::sys::RingFrame;
use crate::sys::SEND_BURST;
use crate::sys::VNET_HEADER;

/// The device's frames: whole for an Ethernet link, without their Ethernet header for an IP link. Both ends of an IP
/// link's wire have the same hardware address, so what is sent to the device's own address is the other end's to take,
/// and no ARP is needed.
pub(super) struct PacketLink {
    ring: PacketRing,
    socket: OwnedFd,
    device: Device,
    whole_frames: bool,
    offload: bool,
}

impl PacketLink {
    pub(super) fn open(name: &str, medium: Medium, offload: bool) -> anyhow::Result<Self> {
        let device = Netlink::open()?.device(name)?;
        if !device.up {
            return Err(Fault::new(format!("device {name} is down"), format!("`ip link set {name} up`")).into());
        }
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        // Only a raw socket's ring says what is missing in a frame.
        let kind = if medium == Medium::Ip && !offload { SocketType::DGRAM } else { SocketType::RAW };
        let socket = rustix::net::socket_with(AddressFamily::PACKET, kind, flags, None)
            .map_err(|errno| errno_fault(format_args!("opening a packet socket on {name}"), errno))?;
        if offload {
            sys::speak_of_offloads(socket.as_fd()).with_context(|| format!("asking {name} for offloads"))?;
            // Some super-packets fill the usual buffers. Without the right to more, TCP has to go slower.
            if sockopt::set_socket_send_buffer_size_force(&socket, BUFFER).is_err() {
                let _less = sockopt::set_socket_send_buffer_size(&socket, BUFFER);
            }
            if sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER).is_err() {
                let _less = sockopt::set_socket_recv_buffer_size(&socket, BUFFER);
            }
        }
        let ring = PacketRing::attach(socket.as_fd(), device.mtu, RING_FRAMES, offload)
            .with_context(|| format!("making the receive ring of {name}"))?;
        sys::bind_packet(socket.as_fd(), device.index).with_context(|| format!("binding a packet socket to {name}"))?;
        if let Medium::Ethernet { mac } = medium {
            // Neighbour discovery uses groups the device knows nothing of, and the link may have an address of its own.
            sys::widen_filter(socket.as_fd(), device.index, mac.octets() != device.mac)
                .and_then(|()| sys::widen_filter(socket.as_fd(), device.index, false))
                .with_context(|| format!("asking {name} for frames to groups"))?;
        }
        Ok(Self { ring, socket, device, whole_frames: medium != Medium::Ip, offload })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(super) fn offloads(&self) -> LinkOffloads {
        match self.offload {
            true => LinkOffloads { udp: knows_udp_segmentation(), ..LinkOffloads::ALL },
            false => LinkOffloads::default(),
        }
    }

    /// The next frame, or none if none waits.
    pub(super) fn receive(&mut self, counts: &mut LinkCounts, buffers: &mut Buffers) -> Option<Ingress> {
        let Self { ring, socket, device: _, whole_frames, offload } = self;
        loop {
            let mut read = None;
            let take = |frame: RingFrame<'_>| {
                read = match *offload && frame.truncated {
                    true => queued(&frame, socket.as_fd(), *whole_frames, buffers),
                    false => taken(&frame, *offload, *whole_frames, buffers),
                };
            };
            if !ring.take(take) {
                return None;
            }
            match read {
                Some(received) => return Some(received),
                None => counts.unreadable += 1,
            }
        }
    }

    /// Sends as much of what waits as goes with one call.
    pub(super) fn send(&self, waiting: &Waiting) -> Result<usize, Errno> {
        let mut vnet = [[0; VNET_HEADER]; SEND_BURST];
        let mut ethernet = [[0; ETHERNET_HEADER]; SEND_BURST];
        let mut messages = Vec::with_capacity(SEND_BURST.min(waiting.len()));
        for (((frame, offload), vnet), ethernet) in waiting.iter().zip(&mut vnet).zip(&mut ethernet) {
            let ethertype = match self.whole_frames {
                true => frame.get(ETHERTYPE_AT..).and_then(<[u8]>::first_chunk).map(|bytes| u16::from_be_bytes(*bytes)),
                false => ethertype(frame),
            };
            let Some(ethertype) = ethertype else {
                if messages.is_empty() {
                    return Err(Errno::INVAL);
                }
                break;
            };
            let mut parts: [&[u8]; 3] = [&[], &[], frame];
            if self.offload {
                let mut header = offload.to_virtio(frame);
                if !self.whole_frames {
                    *ethernet = self.header(ethertype);
                    parts[1] = ethernet;
                    header = pushed_back(header);
                }
                *vnet = header;
                parts[0] = vnet;
            }
            messages.push(PacketMessage { to: self.device.mac, ethertype, parts });
        }
        sys::send_packets(self.socket.as_fd(), self.device.index, &messages)
    }

    /// Takes the socket's error away, so that waiting on it does not end at once for ever.
    pub(super) fn take_error(&self) {
        let _told = sockopt::socket_error(&self.socket);
    }

    pub(super) fn overruns(&self) -> u64 {
        sys::packet_drops(self.socket.as_fd()).map_or(0, u64::from)
    }

    /// The header of a frame on a wire whose ends have the same address.
    fn header(&self, ethertype: u16) -> [u8; ETHERNET_HEADER] {
        let mut header = [0; ETHERNET_HEADER];
        header[..6].copy_from_slice(&self.device.mac);
        header[6..12].copy_from_slice(&self.device.mac);
        header[12..].copy_from_slice(&ethertype.to_be_bytes());
        header
    }
}

/// Whether this kernel cuts UDP that a packet socket sends: since 6.2. There is nothing to ask but its version.
fn knows_udp_segmentation() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(|byte: char| !byte.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (6, 2)
}

/// What a frame in the ring holds for the stack; `None` where that cannot be read.
fn taken(frame: &RingFrame<'_>, offload: bool, whole_frames: bool, buffers: &mut Buffers) -> Option<Ingress> {
    if frame.truncated || (frame.checksum_missing && !offload) {
        return None;
    }
    let said = if offload { Offload::from_virtio(&frame.vnet) } else { Offload::NONE };
    let behind = if offload && !whole_frames { ETHERNET_HEADER } else { 0 };
    let bytes = frame.bytes.get(behind..)?;
    if !whole_frames && ethertype(bytes) != Some(frame.ethertype) {
        return None;
    }
    let mut buffer = buffers.take();
    match frame.vlan {
        Some([stood, tag]) if whole_frames => {
            // The tag goes back in its place, from where the kernel has taken it.
            let (addresses, rest) = bytes.split_at(ETHERTYPE_AT.min(bytes.len()));
            for part in [addresses, &stood.to_be_bytes(), &tag.to_be_bytes(), rest] {
                buffer.extend_from_slice(part);
            }
        }
        _ => buffer.extend_from_slice(bytes),
    }
    Some(Ingress { frame: buffer, offload: pulled(said, behind as u16) })
}

/// The frame that the slot holds the beginning of, from the socket's queue.
fn queued(slot: &RingFrame<'_>, socket: BorrowedFd<'_>, whole_frames: bool, buffers: &mut Buffers) -> Option<Ingress> {
    if !slot.queued {
        return None;
    }
    let mut vnet = [0; VNET_HEADER];
    let mut buffer = buffers.take();
    let read = sys::read_frame(socket, Some(&mut vnet), &mut buffer);
    let fits = whole_frames || buffer.get(ETHERNET_HEADER..).and_then(ethertype) == Some(slot.ethertype);
    if read.is_err() || !fits {
        buffers.give(buffer);
        return None;
    }
    let offload = Offload::from_virtio(&vnet);
    if !whole_frames {
        buffer.drain(..ETHERNET_HEADER);
        return Some(Ingress { frame: buffer, offload: pulled(offload, ETHERNET_HEADER as u16) });
    }
    if let Some([stood, tag]) = slot.vlan {
        let at = ETHERTYPE_AT.min(buffer.len());
        buffer.splice(at..at, [stood.to_be_bytes(), tag.to_be_bytes()].concat());
    }
    Some(Ingress { frame: buffer, offload })
}

/// The same without as many bytes in front. What then lies before the beginning is for the stack to refuse.
fn pulled(offload: Offload, by: u16) -> Offload {
    match offload.checksum {
        ChecksumState::Partial { start, offset } => {
            let start = start.checked_sub(by).unwrap_or(u16::MAX);
            Offload { checksum: ChecksumState::Partial { start, offset }, ..offload }
        }
        ChecksumState::Complete | ChecksumState::Verified => offload,
    }
}

/// A `virtio_net_hdr` for a frame whose header it did not know of: length of headers and start of the checksum move.
fn pushed_back(mut header: [u8; VNET_HEADER]) -> [u8; VNET_HEADER] {
    for at in [2, 6] {
        let word = u16::from_ne_bytes([header[at], header[at + 1]]);
        if word != 0 {
            header[at..at + 2].copy_from_slice(&word.saturating_add(ETHERNET_HEADER as u16).to_ne_bytes());
        }
    }
    header
}

const ETHERNET_HEADER: usize = 14;
/// Where a frame says what it carries: behind two hardware addresses.
const ETHERTYPE_AT: usize = 12;
/// Slots of the receive ring: a fifth of a second at 40,000 datagrams a second, 16 MiB at the usual MTU.
const RING_FRAMES: usize = 8192;
/// Room for some super-packets each way.
const BUFFER: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_a_frame_fits_the_datagram_in_it_and_the_other_way_round() {
        // TCP over IPv4 behind an Ethernet header: checksum missing from 34 on, headers of 54 bytes, segments of 1448.
        let word = u16::to_ne_bytes;
        let mut header = [1, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        for (at, value) in [(2, 54_u16), (4, 1448), (6, 34), (8, 16)] {
            header[at..at + 2].copy_from_slice(&word(value));
        }
        let offload = pulled(Offload::from_virtio(&header), ETHERNET_HEADER as u16);
        assert_eq!(offload.checksum, ChecksumState::Partial { start: 20, offset: 16 });
        let mut datagram = vec![0; 3000];
        datagram[32] = 5 << 4;
        assert_eq!(pushed_back(offload.to_virtio(&datagram)), header);
        assert_eq!(pushed_back([0; VNET_HEADER]), [0; VNET_HEADER]);
    }
}
