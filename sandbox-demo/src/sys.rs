//! The system calls rustix has no safe face for: packet sockets, their receive ring, device ioctls; and tokio's
//! wait on a descriptor.
//!
//! The only module of the crate with unsafe code. Everything it exports is safe to call with any arguments.

#![expect(unsafe_code, reason = "raw system calls; every block says why it is sound")]

use std::ffi::c_int;
use std::ffi::c_void;
use std::io;
use std::mem::size_of;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;

use rustix::mm::MapFlags;
use rustix::mm::ProtFlags;
use rustix::thread::UnshareFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Moves this process into new namespaces. Only for use before a second thread exists.
pub(crate) fn unshare(namespaces: UnshareFlags) -> rustix::io::Result<()> {
    // SAFETY: the call is unsafe in rustix for `UnshareFlags::FILES` alone, which could make other threads' file
    // descriptors dangle; the mask removes it.
    unsafe { rustix::thread::unshare_unsafe(namespaces.difference(UnshareFlags::FILES)) }
}

/// Waits for a descriptor to become readable, on the present tokio runtime.
pub(crate) fn wait_readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: tokio wants the descriptor open and the same as long as the value lives; an `OwnedFd` that nobody else has is.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

/// Binds a packet socket to one device and all protocols; frames of our own are not shown.
pub(crate) fn bind_packet(socket: BorrowedFd<'_>, device: u32) -> io::Result<()> {
    set_packet_option(socket, libc::PACKET_IGNORE_OUTGOING, &1_i32)?;
    let address = packet_address(device, libc::ETH_P_ALL as u16, [0; 6]);
    // SAFETY: `address` is a valid sockaddr_ll, and the length given is its size.
    let result = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            std::ptr::from_ref(&address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    checked(result).map(drop)
}

/// Asks a device for frames that its own filter would keep back: those to any group, and if `all`, those to any station.
/// The socket's end takes it back.
pub(crate) fn widen_filter(socket: BorrowedFd<'_>, device: u32, all: bool) -> io::Result<()> {
    let kind = if all { libc::PACKET_MR_PROMISC } else { libc::PACKET_MR_ALLMULTI };
    let request = libc::packet_mreq { mr_ifindex: device as i32, mr_type: kind as u16, mr_alen: 0, mr_address: [0; 8] };
    set_packet_option(socket, libc::PACKET_ADD_MEMBERSHIP, &request)
}

/// Sends one IP datagram through a packet socket to the given hardware address; through a raw one, a frame.
pub(crate) fn send_packet(
    socket: BorrowedFd<'_>,
    device: u32,
    to: [u8; 6],
    ethertype: u16,
    datagram: &[u8],
) -> rustix::io::Result<()> {
    let address = packet_address(device, ethertype, to);
    // SAFETY: the pointers cover `datagram` and `address`, both alive through the call, with their true lengths.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            datagram.as_ptr().cast(),
            datagram.len(),
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
            std::ptr::from_ref(&address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if sent < 0 {
        return Err(last_errno());
    }
    Ok(())
}

/// Frames the kernel could not put into the receive ring since the last call.
pub(crate) fn packet_drops(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let mut stats = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    let mut length = size_of::<libc::tpacket_stats>() as libc::socklen_t;
    // SAFETY: `stats` and `length` are valid for writes, and `length` holds the size of `stats`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            std::ptr::from_mut(&mut stats).cast(),
            &raw mut length,
        )
    };
    checked(result).map(|_| stats.tp_drops)
}

/// The receive ring of a packet socket (TPACKET_V2), shared with the kernel.
///
/// Its size is not bound by `net.core.rmem_max`, so an ordinary user gets a buffer that bridges a busy moment.
pub(crate) struct PacketRing {
    base: NonNull<u8>,
    length: usize,
    frame_size: usize,
    frames: usize,
    next: usize,
}

/// One received frame, valid until the closure it is handed to returns.
pub(crate) struct RingFrame<'a> {
    /// The network-layer bytes, of a raw socket the whole frame; shorter than on the wire if `truncated`.
    pub(crate) bytes: &'a [u8],
    /// The frame's EtherType.
    pub(crate) ethertype: u16,
    /// The VLAN tag that was taken out of the frame: what stood in front of it and the tag.
    pub(crate) vlan: Option<[u16; 2]>,
    /// The frame did not fit its slot.
    pub(crate) truncated: bool,
    /// The sender left the checksum to hardware that does not exist.
    pub(crate) checksum_missing: bool,
}

impl PacketRing {
    /// Gives `socket` a ring of `frames` slots for datagrams of up to `mtu` bytes.
    pub(crate) fn attach(socket: BorrowedFd<'_>, mtu: u32, frames: usize) -> io::Result<Self> {
        set_packet_option(socket, libc::PACKET_VERSION, &(libc::tpacket_versions::TPACKET_V2 as c_int))?;
        // Header, address and alignment take less than 128 bytes of a slot.
        let frame_size = (mtu as usize).saturating_add(128).next_power_of_two().max(2048);
        let block_size = frame_size.max(1 << 16);
        let blocks = (frame_size.saturating_mul(frames)).div_ceil(block_size);
        let frames = blocks * (block_size / frame_size);
        let request = libc::tpacket_req {
            tp_block_size: block_size as u32,
            tp_block_nr: blocks as u32,
            tp_frame_size: frame_size as u32,
            tp_frame_nr: frames as u32,
        };
        set_packet_option(socket, libc::PACKET_RX_RING, &request)?;
        let length = blocks * block_size;
        // SAFETY: a fresh mapping at an address the kernel chooses aliases nothing of ours.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                socket.as_fd(),
                0,
            )?
        };
        let base = NonNull::new(base.cast::<u8>()).ok_or_else(|| io::Error::other("the ring was mapped at zero"))?;
        Ok(Self { base, length, frame_size, frames, next: 0 })
    }

    /// Hands the next received frame to `handle` and gives its slot back; false if none waits.
    pub(crate) fn take(&mut self, handle: impl FnOnce(RingFrame<'_>)) -> bool {
        let offset = self.next * self.frame_size;
        // SAFETY: `next < frames`, so the slot lies within the mapping; slots are 2048-aligned, and the status is the
        // header's first word, which the kernel and we access atomically only.
        let status = unsafe { &*self.base.as_ptr().add(offset).cast::<AtomicU32>() };
        let flags = status.load(Ordering::Acquire);
        if flags & libc::TP_STATUS_USER == 0 {
            return false;
        }
        // SAFETY: with TP_STATUS_USER set, and read with Acquire, the slot is ours until the Release store below: the
        // kernel does not write to it. The slot is within the mapping (see above) and initialised by the kernel.
        let slot = unsafe { std::slice::from_raw_parts(self.base.as_ptr().add(offset), self.frame_size) };
        if let Some(frame) = read_slot(slot, flags) {
            handle(frame);
        }
        status.store(libc::TP_STATUS_KERNEL, Ordering::Release);
        self.next = (self.next + 1) % self.frames;
        true
    }
}

impl Drop for PacketRing {
    fn drop(&mut self) {
        // SAFETY: `base` and `length` are of the mapping made in `attach`, and no borrow of it outlives `self`. An
        // error could only mean that it is already gone.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast::<c_void>(), self.length) };
    }
}

/// Reads a slot's header as the kernel laid it out: `tpacket2_hdr`, then an aligned `sockaddr_ll`, then the frame.
fn read_slot(slot: &[u8], flags: u32) -> Option<RingFrame<'_>> {
    let word = |at: usize| slot.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let half = |at: usize| slot.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes);
    let on_wire = word(std::mem::offset_of!(libc::tpacket2_hdr, tp_len))?;
    let kept = word(std::mem::offset_of!(libc::tpacket2_hdr, tp_snaplen))?;
    // Of a socket without frame headers this is where the network layer starts.
    let start = usize::from(half(std::mem::offset_of!(libc::tpacket2_hdr, tp_mac))?);
    let address = size_of::<libc::tpacket2_hdr>().next_multiple_of(libc::TPACKET_ALIGNMENT);
    let ethertype = u16::from_be(half(address + std::mem::offset_of!(libc::sockaddr_ll, sll_protocol))?);
    let bytes = slot.get(start..start.checked_add(kept as usize)?)?;
    let vlan = if flags & libc::TP_STATUS_VLAN_VALID == 0 {
        None
    } else {
        let tag = half(std::mem::offset_of!(libc::tpacket2_hdr, tp_vlan_tci))?;
        Some([half(std::mem::offset_of!(libc::tpacket2_hdr, tp_vlan_tpid))?, tag])
    };
    Some(RingFrame {
        bytes,
        ethertype,
        vlan,
        truncated: kept < on_wire,
        checksum_missing: flags & libc::TP_STATUS_CSUMNOTREADY != 0,
    })
}

/// Sets one on/off feature of a device through the ethtool ioctl.
pub(crate) fn set_device_feature(device: &str, command: u32, on: bool) -> rustix::io::Result<()> {
    #[repr(C)]
    struct EthtoolValue {
        command: u32,
        value: u32,
    }
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    let mut value = EthtoolValue { command, value: u32::from(on) };
    let mut request = device_request(device)?;
    request.ifr_ifru.ifru_data = std::ptr::from_mut(&mut value).cast();
    // SAFETY: SIOCETHTOOL reads an ifreq whose data pointer leads to an ethtool_value; both outlive the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
    if result < 0 { Err(last_errno()) } else { Ok(()) }
}

/// Attaches an open `/dev/net/tun` to the TUN device `device`, or to the TAP device if `frames`, making it if there is none.
pub(crate) fn attach_tun(tun: &OwnedFd, device: &str, frames: bool) -> rustix::io::Result<()> {
    let mut request = device_request(device)?;
    let kind = if frames { libc::IFF_TAP } else { libc::IFF_TUN };
    request.ifr_ifru.ifru_flags = (kind | libc::IFF_NO_PI) as i16;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which outlives the call.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    if result < 0 { Err(last_errno()) } else { Ok(()) }
}

/// Keeps the TUN device that `tun` is attached to when its last descriptor is closed.
pub(crate) fn keep_tun(tun: &OwnedFd) -> rustix::io::Result<()> {
    let on: libc::c_ulong = 1;
    // SAFETY: TUNSETPERSIST takes its argument by value and touches no memory of ours.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETPERSIST as _, on) };
    if result < 0 { Err(last_errno()) } else { Ok(()) }
}

fn device_request(device: &str) -> rustix::io::Result<libc::ifreq> {
    // SAFETY: an ifreq is plain integers, bytes and a pointer, for all of which zero is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if device.len() >= request.ifr_name.len() {
        return Err(rustix::io::Errno::NODEV);
    }
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

fn packet_address(device: u32, ethertype: u16, hardware: [u8; 6]) -> libc::sockaddr_ll {
    let mut sll_addr = [0; 8];
    sll_addr[..6].copy_from_slice(&hardware);
    libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: ethertype.to_be(),
        sll_ifindex: device as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr,
    }
}

fn set_packet_option<T>(socket: BorrowedFd<'_>, option: c_int, value: &T) -> io::Result<()> {
    // SAFETY: `value` is valid for reads of its own size, which is the length given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            option,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    checked(result).map(drop)
}

fn checked(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn last_errno() -> rustix::io::Errno {
    rustix::io::Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(rustix::io::Errno::IO)
}
