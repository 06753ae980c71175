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

/// Where a message of a packet socket goes, and its parts in order.
pub(crate) struct PacketMessage<'a> {
    /// The hardware address; of no meaning for a raw socket.
    pub(crate) to: [u8; 6],
    /// What the frame carries.
    pub(crate) ethertype: u16,
    /// What is sent, one behind the other.
    pub(crate) parts: [&'a [u8]; 3],
}

/// Sends messages through a packet socket, in order, as many as the device takes at once: how many it took, or why not even
/// the first. No more than [`SEND_BURST`] are taken.
pub(crate) fn send_packets(
    socket: BorrowedFd<'_>,
    device: u32,
    messages: &[PacketMessage<'_>],
) -> rustix::io::Result<usize> {
    let count = messages.len().min(SEND_BURST);
    let mut addresses = [const { packet_address(0, 0, [0; 6]) }; SEND_BURST];
    let mut parts = [[libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; 3]; SEND_BURST];
    // SAFETY: an mmsghdr is integers and pointers, for all of which zero is a valid value.
    let mut headers: [libc::mmsghdr; SEND_BURST] = unsafe { std::mem::zeroed() };
    for (((message, address), parts), header) in messages.iter().zip(&mut addresses).zip(&mut parts).zip(&mut headers) {
        *address = packet_address(device, message.ethertype, message.to);
        for (to, part) in parts.iter_mut().zip(message.parts) {
            *to = libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() };
        }
        header.msg_hdr.msg_name = std::ptr::from_mut(address).cast();
        header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        header.msg_hdr.msg_iov = parts.as_mut_ptr();
        header.msg_hdr.msg_iovlen = parts.len() as _;
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the first `count` headers lead to addresses and parts in the arrays above and to the messages' bytes, all
    // alive through the call with their true lengths; sending reads the bytes only.
    let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), count as u32, flags as _) };
    if sent < 0 { Err(last_errno()) } else { Ok(sent as usize) }
}

/// Lets a packet socket say of its frames, and be told, which checksums are missing and what is to be cut: a
/// `virtio_net_hdr` stands in front of each. To be called before anything is received.
pub(crate) fn speak_of_offloads(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_packet_option(socket, libc::PACKET_VNET_HDR, &1_i32)
}

/// Reads one frame of a TUN or TAP device, or of a packet socket's queue, behind what is in `frame` now, which should be nothing: into its spare room, of
/// which there must be enough. If there is a `header` the device says that first.
pub(crate) fn read_frame(
    device: BorrowedFd<'_>,
    header: Option<&mut [u8; VNET_HEADER]>,
    frame: &mut Vec<u8>,
) -> rustix::io::Result<()> {
    let (header, header_length) = header.map_or((std::ptr::null_mut(), 0), |bytes| (bytes.as_mut_ptr(), bytes.len()));
    let room = frame.spare_capacity_mut();
    let parts = [
        libc::iovec { iov_base: header.cast(), iov_len: header_length },
        libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() },
    ];
    // SAFETY: both parts are valid for writes of their lengths; the kernel only writes, so the room need not be initialised.
    let read = unsafe { libc::readv(device.as_raw_fd(), parts.as_ptr(), parts.len() as c_int) };
    let Ok(read) = usize::try_from(read) else { return Err(last_errno()) };
    let length = frame.len() + read.saturating_sub(header_length);
    // SAFETY: the kernel has written that many bytes into the room, which begins where the vector ended.
    unsafe { frame.set_len(length) };
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
    /// It is the next in the socket's queue.
    pub(crate) queued: bool,
    /// The sender left the checksum to hardware that does not exist.
    pub(crate) checksum_missing: bool,
    /// What the kernel says of offloads, if the socket was told to ([`speak_of_offloads`]).
    pub(crate) vnet: [u8; VNET_HEADER],
}

impl PacketRing {
    /// Gives `socket` a ring of `frames` slots for datagrams of up to `mtu` bytes. With `copies` a longer one, of which the
    /// slot has the beginning, waits whole in the socket's queue, if there is room.
    pub(crate) fn attach(socket: BorrowedFd<'_>, mtu: u32, frames: usize, copies: bool) -> io::Result<Self> {
        if copies {
            set_packet_option(socket, libc::PACKET_COPY_THRESH, &1_i32)?;
        }
        set_packet_option(socket, libc::PACKET_VERSION, &(libc::tpacket_versions::TPACKET_V2 as c_int))?;
        // Headers, address and alignment take less than 128 bytes of a slot.
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
    let vnet = slot.get(start.saturating_sub(VNET_HEADER)..).and_then(<[u8]>::first_chunk).copied().unwrap_or_default();
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
        queued: flags & libc::TP_STATUS_COPY != 0,
        checksum_missing: flags & libc::TP_STATUS_CSUMNOTREADY != 0,
        vnet,
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
/// With `offload` there is a `virtio_net_hdr` in front of what is read and written.
pub(crate) fn attach_tun(tun: &OwnedFd, device: &str, frames: bool, offload: bool) -> rustix::io::Result<()> {
    let mut request = device_request(device)?;
    let kind = if frames { libc::IFF_TAP } else { libc::IFF_TUN };
    let header = if offload { libc::IFF_VNET_HDR } else { 0 };
    request.ifr_ifru.ifru_flags = (kind | libc::IFF_NO_PI | header) as i16;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which outlives the call.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    if result < 0 { Err(last_errno()) } else { Ok(()) }
}

/// Says what the kernel may leave undone of what is read from a TUN device with headers: checksums, TCP's segmentation, and
/// if `udp` UDP's.
pub(crate) fn set_tun_offloads(tun: &OwnedFd, udp: bool) -> rustix::io::Result<()> {
    let tcp = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    let udp = if udp { libc::TUN_F_USO4 | libc::TUN_F_USO6 } else { 0 };
    // SAFETY: TUNSETOFFLOAD takes its argument by value and touches no memory of ours.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETOFFLOAD as _, libc::c_ulong::from(tcp | udp)) };
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

const fn packet_address(device: u32, ethertype: u16, hardware: [u8; 6]) -> libc::sockaddr_ll {
    let [a, b, c, d, e, f] = hardware;
    libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: ethertype.to_be(),
        sll_ifindex: device as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [a, b, c, d, e, f, 0, 0],
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

/// Length of `virtio_net_hdr` as TUN, TAP and packet sockets have it by themselves.
pub(crate) const VNET_HEADER: usize = 10;
/// Most messages that one call sends.
pub(crate) const SEND_BURST: usize = 64;

fn last_errno() -> rustix::io::Errno {
    rustix::io::Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(rustix::io::Errno::IO)
}
