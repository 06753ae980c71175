//! Links: where the gateway's IP datagrams or Ethernet frames come from and go to.

mod buffers;
mod memory;
mod packet;
mod tun;
mod unix_datagram;
mod unix_socket;
mod unix_stream;

use std::collections::VecDeque;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::Context;
use hibernet_netstack::Ingress;
use hibernet_netstack::LinkOffloads;
use hibernet_netstack::MacAddr;
use hibernet_netstack::Medium;
use hibernet_netstack::Offload;
use rustix::io::Errno;
use serde::Serialize;
use serde::Serializer;

pub(crate) use self::buffers::Buffers;
use self::memory::MemoryLink;
pub(crate) use self::memory::Wire;
use self::packet::PacketLink;
use self::tun::TunLink;
pub(crate) use self::tun::make_tun;
use self::unix_datagram::DatagramLink;
use self::unix_stream::StreamLink;
use crate::gateway::MediumName;
use crate::netlink::Netlink;
use crate::netns;

/// One open link and what has not left it yet.
pub struct Link {
    name: String,
    port: Port,
    waiting: Waiting,
    waiting_bytes: usize,
    /// Why the device did not take the first of them.
    refused: Option<Errno>,
    /// The device is gone: nothing comes and nothing leaves.
    gone: bool,
    counts: LinkCounts,
}

/// Frames or datagrams on their way out, with what is left to do about each.
type Waiting = VecDeque<(Vec<u8>, Offload)>;

/// What a link with a full device waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoomWhen {
    /// Its descriptor says when there is room.
    Writable,
    /// Nobody says: to be tried again soon.
    Soon,
}

/// A device to open: its kind and name, as the user writes it (`guest0`, `packet:guest0`, `tun:guest0`, `tap:guest0`), and
/// where it is if not in the namespace of this process (`tun:guest0@/run/netns/guest`). Or a unix socket that carries frames:
/// the link's name, then the socket's path (`stream:guest0@/run/guest.sock`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkSpec {
    kind: LinkKind,
    name: String,
    namespace: Option<PathBuf>,
    offload: bool,
    socket: Option<SocketPaths>,
}

/// Where a unix socket is, and where its peer's is if that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
struct SocketPaths {
    own: PathBuf,
    peer: Option<PathBuf>,
}

/// What passed a link since it was opened, and what did not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct LinkCounts {
    /// Datagrams read.
    pub received: u64,
    /// Datagrams written.
    pub sent: u64,
    /// Datagrams the kernel had no room to hand us.
    pub receive_overruns: u64,
    /// Frames left unread: not IP, cut short, or without a checksum (an offload is still on).
    pub unreadable: u64,
    /// Datagrams given up because the device would not take them.
    pub send_drops: u64,
    /// Times somebody came to the other end of a socket.
    pub connects: u64,
    /// Times they went again, or had to go because what they sent made no sense.
    pub disconnects: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LinkKind {
    Packet,
    Tun,
    Tap,
    /// A unix stream socket that listens.
    Stream,
    /// A unix stream socket that connects.
    StreamTo,
    /// A unix datagram socket.
    Datagram,
}

enum Port {
    Packet(PacketLink),
    Tun(TunLink),
    Stream(StreamLink),
    Datagram(DatagramLink),
    Memory(MemoryLink),
}

impl Link {
    /// Opens the device for a link of that medium. What arrives from now on waits until it is read.
    pub fn open(spec: &LinkSpec, medium: Medium) -> anyhow::Result<Self> {
        spec.within_its_namespace(|| Self::open_here(spec, medium))
    }

    /// Opens a device of the namespace this process is in.
    fn open_here(spec: &LinkSpec, medium: Medium) -> anyhow::Result<Self> {
        let name = &spec.name;
        let port = match (spec.kind, medium) {
            (LinkKind::Packet, medium) => Port::Packet(PacketLink::open(name, medium, spec.offload)?),
            (LinkKind::Tun, Medium::Ip) => Port::Tun(TunLink::open(name, false, spec.offload)?),
            (LinkKind::Tap, Medium::Ethernet { .. }) => Port::Tun(TunLink::open(name, true, spec.offload)?),
            (LinkKind::Stream, Medium::Ethernet { .. }) => Port::Stream(StreamLink::listen(&spec.socket()?.own)?),
            (LinkKind::StreamTo, Medium::Ethernet { .. }) => Port::Stream(StreamLink::connect(&spec.socket()?.own)?),
            (LinkKind::Datagram, Medium::Ethernet { .. }) => {
                let SocketPaths { own, peer } = spec.socket()?;
                Port::Datagram(DatagramLink::bind(own, peer.as_deref())?)
            }
            (LinkKind::Stream | LinkKind::StreamTo | LinkKind::Datagram, Medium::Ip) => anyhow::bail!(
                "link {name} carries IP, what is at the other end of {spec} sends Ethernet frames: say \
                 `\"medium\": \"ethernet\"` of it in the configuration"
            ),
            (LinkKind::Tun, Medium::Ethernet { .. }) => anyhow::bail!(
                "link {name} carries Ethernet, a TUN device carries IP: give `--link tap:{name}`, or make it a link of IP"
            ),
            (LinkKind::Tap, Medium::Ip) => anyhow::bail!(
                "link {name} carries IP, a TAP device carries Ethernet: say `\"medium\": \"ethernet\"` of it in the \
                 configuration, or give `--link tun:{name}`"
            ),
        };
        Ok(Self::with_port(&spec.name, port))
    }

    /// Opens a wire within the process.
    pub(crate) fn memory(name: &str, wire: &Wire) -> Self {
        Self::with_port(name, Port::Memory(MemoryLink::open(wire)))
    }

    /// The link's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The descriptor to wait on, if the link has one.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.port {
            _ if self.gone => None,
            Port::Packet(link) => Some(link.fd()),
            Port::Tun(link) => Some(link.fd()),
            Port::Stream(link) => Some(link.fd()),
            Port::Datagram(link) => Some(link.fd()),
            Port::Memory(_) => None,
        }
    }

    /// Somebody is at the other end, as far as can be seen.
    pub(crate) fn is_up(&self) -> bool {
        match &self.port {
            Port::Stream(link) => link.is_up(),
            Port::Datagram(link) => link.is_up(),
            Port::Packet(_) | Port::Tun(_) | Port::Memory(_) => !self.gone,
        }
    }

    /// What the device takes, of what can be left undone.
    pub fn offloads(&self) -> LinkOffloads {
        match &self.port {
            Port::Packet(link) => link.offloads(),
            Port::Tun(link) => link.offloads(),
            Port::Stream(_) | Port::Datagram(_) | Port::Memory(_) => LinkOffloads::default(),
        }
    }

    /// Whether something waits for the device to take it, and what for.
    pub fn is_blocked(&self) -> Option<RoomWhen> {
        let is_half_sent = matches!(&self.port, Port::Stream(link) if link.is_blocked());
        match (&self.port, self.refused) {
            _ if self.waiting.is_empty() && !is_half_sent => None,
            (Port::Packet(_) | Port::Tun(_), Some(Errno::AGAIN)) if !self.gone => Some(RoomWhen::Writable),
            _ => Some(RoomWhen::Soon),
        }
    }

    /// Reads what waits into `burst`, as much as is good to handle at once. True if there may be more.
    pub(crate) fn receive_burst(&mut self, burst: &mut Vec<Ingress>, buffers: &mut Buffers) -> bool {
        let mut bytes = 0;
        while burst.len() < BURST && bytes < BURST_BYTES {
            let Some(received) = self.receive_into(buffers) else { return false };
            bytes += received.frame.len();
            burst.push(received);
        }
        true
    }

    /// Reads one datagram, or none if none waits.
    pub fn receive(&mut self) -> Option<Ingress> {
        self.receive_into(&mut Buffers::default())
    }

    /// Sends a datagram, in order behind those that wait. One the device has no room for waits too.
    pub fn send(&mut self, datagram: Vec<u8>) {
        let buffers = &mut Buffers::default();
        self.queue(datagram, Offload::NONE, buffers);
        self.flush_into(buffers);
    }

    /// Sends what waits, as far as the device takes it.
    pub fn flush(&mut self) {
        self.flush_into(&mut Buffers::default());
    }

    /// Puts a frame behind those that wait; [`Link::flush_into`] sends it. One too many is given up.
    pub(crate) fn queue(&mut self, frame: Vec<u8>, offload: Offload, buffers: &mut Buffers) {
        let is_full = self.waiting.len() >= MAX_WAITING || self.waiting_bytes >= MAX_WAITING_BYTES;
        if self.gone || is_full && self.refused.is_some() {
            self.counts.send_drops += 1;
            return buffers.give(frame);
        }
        self.waiting_bytes += frame.len();
        self.waiting.push_back((frame, offload));
        if self.waiting.len() >= BURST && self.refused.is_none() {
            self.flush_into(buffers);
        }
    }

    /// Sends what waits, as far as the device takes it, and gives the buffers back.
    pub(crate) fn flush_into(&mut self, buffers: &mut Buffers) {
        self.refused = None;
        if let Port::Stream(link) = &mut self.port {
            link.flush(&mut self.counts);
        }
        while !self.waiting.is_empty() {
            let front = self.waiting.front().map_or(&[][..], |(frame, _)| frame);
            let sent = match &mut self.port {
                Port::Packet(link) => link.send(&self.waiting),
                Port::Tun(link) => link.send(&self.waiting),
                Port::Stream(link) => link.send(front, &mut self.counts).map(|()| 1),
                Port::Datagram(link) => link.send(front, &mut self.counts).map(|()| 1),
                Port::Memory(link) => link.send(&self.waiting),
            };
            let (sent, done) = match sent {
                Ok(sent) => {
                    self.counts.sent += sent as u64;
                    (sent, sent)
                }
                Err(errno @ (Errno::AGAIN | Errno::NOBUFS)) => {
                    self.refused = Some(errno);
                    return;
                }
                Err(Errno::INTR) => continue,
                // The first is at fault, or the device is down for the moment: it is lost, as on any wire.
                Err(_) => {
                    self.counts.send_drops += 1;
                    (0, 1)
                }
            };
            debug_assert!(sent <= done && done > 0);
            for _ in 0..done {
                let Some((frame, _)) = self.waiting.pop_front() else { break };
                self.waiting_bytes -= frame.len();
                buffers.give(frame);
            }
        }
    }

    /// Looks at what waiting on the descriptor has told of, other than frames and room: an error, or a hang-up.
    pub(crate) fn look_at_error(&mut self) {
        if let Port::Packet(link) = &self.port {
            link.take_error();
        }
    }

    fn receive_into(&mut self, buffers: &mut Buffers) -> Option<Ingress> {
        if self.gone {
            return None;
        }
        let received = match &mut self.port {
            Port::Packet(link) => link.receive(&mut self.counts, buffers),
            Port::Tun(link) => match link.receive(&mut self.counts, buffers) {
                Ok(received) => Some(received),
                Err(Errno::BADFD) => {
                    eprintln!("sandbox-demo: the device of link {} is gone; the others go on without it", self.name);
                    self.gone = true;
                    None
                }
                Err(_) => None,
            },
            Port::Stream(link) => link.receive(&mut self.counts).map(unsaid),
            Port::Datagram(link) => link.receive(&mut self.counts).map(unsaid),
            Port::Memory(link) => link.receive().map(unsaid),
        }?;
        self.counts.received += 1;
        Some(received)
    }

    /// What passed, and what did not.
    pub fn counts(&mut self) -> LinkCounts {
        if let Port::Packet(link) = &self.port {
            self.counts.receive_overruns += link.overruns();
        }
        self.counts
    }

    fn with_port(name: &str, port: Port) -> Self {
        Self {
            name: name.to_owned(),
            port,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            refused: None,
            gone: false,
            counts: LinkCounts::default(),
        }
    }
}

impl LinkSpec {
    /// A device of this process's namespace, behind a packet socket.
    pub(crate) fn packet(name: &str) -> Self {
        Self { kind: LinkKind::Packet, name: name.to_owned(), namespace: None, socket: None, offload: false }
    }

    /// A TUN device in the network namespace of another process.
    pub(crate) fn tun_of(name: &str, pid: u32) -> Self {
        let namespace = PathBuf::from(format!("/proc/{pid}/ns/net"));
        Self { kind: LinkKind::Tun, name: name.to_owned(), namespace: Some(namespace), socket: None, offload: false }
    }

    /// Whether the device is to leave checksums and segmentation undone, and to be left them. Not unless this is said.
    pub(crate) fn with_offload(mut self, offload: bool) -> Self {
        self.offload = offload;
        self
    }

    /// Whether the device carries Ethernet whatever it is told.
    pub(crate) const fn is_tap(&self) -> bool {
        matches!(self.kind, LinkKind::Tap)
    }

    /// What such a device carries unless it is told: datagrams through a TUN device, frames through all others.
    pub(crate) const fn usual_medium(&self) -> MediumName {
        if matches!(self.kind, LinkKind::Tun) { MediumName::Ip } else { MediumName::Ethernet }
    }

    fn socket(&self) -> anyhow::Result<&SocketPaths> {
        self.socket.as_ref().context("a link over a socket has a path")
    }

    /// The device's name, which is the link's.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The hardware address a link over this device has unless it is given one: the device's, for a packet socket stands in
    /// its place; none for TAP, whose device is the other end.
    pub(crate) fn own_mac(&self) -> anyhow::Result<Option<MacAddr>> {
        match self.kind {
            LinkKind::Packet => {
                let device = self.within_its_namespace(|| Netlink::open()?.device(&self.name))?;
                let mac = MacAddr::new(device.mac);
                Ok(mac.is_unicast().then_some(mac))
            }
            LinkKind::Tun | LinkKind::Tap | LinkKind::Stream | LinkKind::StreamTo | LinkKind::Datagram => Ok(None),
        }
    }

    fn within_its_namespace<T>(&self, act: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        match &self.namespace {
            Some(namespace) => netns::within(namespace, act),
            None => act(),
        }
    }
}

impl LinkKind {
    const fn is_socket(self) -> bool {
        matches!(self, Self::Stream | Self::StreamTo | Self::Datagram)
    }
}

impl FromStr for LinkSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (device, place) = match text.split_once('@') {
            Some((_, "")) => {
                return Err("found nothing after `@`, expected the path of a network namespace or socket".to_owned());
            }
            Some((device, place)) => (device, Some(place)),
            None => (text, None),
        };
        let (kind, name) = match device.split_once(':') {
            None => (LinkKind::Packet, device),
            Some(("packet", name)) => (LinkKind::Packet, name),
            Some(("tun", name)) => (LinkKind::Tun, name),
            Some(("tap", name)) => (LinkKind::Tap, name),
            Some(("stream", name)) => (LinkKind::Stream, name),
            Some(("stream-to", name)) => (LinkKind::StreamTo, name),
            Some(("dgram", name)) => (LinkKind::Datagram, name),
            Some((other, _)) => {
                return Err(format!(
                    "found link kind `{other}`, expected `packet`, `tun`, `tap`, `stream`, `stream-to` or `dgram`"
                ));
            }
        };
        if name.is_empty() || name.len() > MAX_DEVICE_NAME || name.contains(['/', ' ']) {
            return Err(format!("found device name `{name}`, expected 1 to {MAX_DEVICE_NAME} letters or digits"));
        }
        let name = name.to_owned();
        if !kind.is_socket() {
            return Ok(Self { kind, name, namespace: place.map(PathBuf::from), socket: None, offload: false });
        }
        let place = place.ok_or_else(|| format!("found no socket, expected its path: `{text}@/run/guest.sock`"))?;
        let (own, peer) = match place.split_once(',') {
            Some((own, peer)) if kind == LinkKind::Datagram => (own, Some(PathBuf::from(peer))),
            _ => (place, None),
        };
        Ok(Self {
            kind,
            name,
            namespace: None,
            socket: Some(SocketPaths { own: PathBuf::from(own), peer }),
            offload: false,
        })
    }
}

impl Serialize for LinkSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for LinkSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            LinkKind::Packet => write!(f, "{}", self.name)?,
            LinkKind::Tun => write!(f, "tun:{}", self.name)?,
            LinkKind::Tap => write!(f, "tap:{}", self.name)?,
            LinkKind::Stream => write!(f, "stream:{}", self.name)?,
            LinkKind::StreamTo => write!(f, "stream-to:{}", self.name)?,
            LinkKind::Datagram => write!(f, "dgram:{}", self.name)?,
        }
        if let Some(SocketPaths { own, peer }) = &self.socket {
            write!(f, "@{}", own.display())?;
            if let Some(peer) = peer {
                write!(f, ",{}", peer.display())?;
            }
        }
        match &self.namespace {
            Some(namespace) => write!(f, "@{}", namespace.display()),
            None => Ok(()),
        }
    }
}

/// A frame of a link that says nothing of offloads.
fn unsaid(frame: Vec<u8>) -> Ingress {
    Ingress { frame, offload: Offload::NONE }
}

/// The EtherType of a datagram's IP version, from its first four bits.
fn ethertype(datagram: &[u8]) -> Option<u16> {
    match datagram.first()? >> 4 {
        4 => Some(0x0800),
        6 => Some(0x86dd),
        _ => None,
    }
}

/// Datagrams kept while a device is full: some milliseconds at full rate, as a queueing discipline would.
const MAX_WAITING: usize = 1024;
/// The same for super-packets.
const MAX_WAITING_BYTES: usize = 4 << 20;
/// Frames handled at once: of that many the stack's stages overlap.
const BURST: usize = 32;
/// Bytes handled at once: two super-packets fit the processor's second cache with all else.
const BURST_BYTES: usize = 128 << 10;
/// IFNAMSIZ less the closing zero.
const MAX_DEVICE_NAME: usize = 15;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_name_is_a_packet_link() {
        let spec: LinkSpec = "guest0".parse().expect("a device name");
        assert_eq!(spec, "packet:guest0".parse().expect("the same, spelt out"));
        assert_eq!(spec.to_string(), "guest0");
    }

    #[test]
    fn a_device_may_be_in_another_namespace() {
        let spec: LinkSpec = "tun:guest0@/proc/7/ns/net".parse().expect("a device with its namespace");
        assert_eq!(spec, LinkSpec::tun_of("guest0", 7));
        assert_eq!(spec.to_string(), "tun:guest0@/proc/7/ns/net");
        let tap: LinkSpec = "tap:guest0@/run/netns/guest".parse().expect("a device with its namespace");
        assert_eq!(tap.to_string(), "tap:guest0@/run/netns/guest");
        assert!("tun:guest0@".parse::<LinkSpec>().is_err());
    }

    #[test]
    fn a_link_over_a_socket_says_where_it_is() {
        for text in ["stream:guest@/run/g.sock", "stream-to:guest@/run/q.sock", "dgram:guest@/run/a,/run/b"] {
            let spec: LinkSpec = text.parse().expect("a socket");
            assert_eq!((spec.to_string().as_str(), spec.name()), (text, "guest"));
        }
        let error = "stream:guest".parse::<LinkSpec>().expect_err("no path");
        assert!(error.contains("`stream:guest@"), "{error}");
    }

    #[test]
    fn kinds_and_names_that_cannot_be_are_refused_with_what_was_expected() {
        let error = "wire:x".parse::<LinkSpec>().expect_err("no such kind");
        assert!(error.contains("`wire`") && error.contains("`tap`"), "{error}");
        let error = "a-name-longer-than-any-device".parse::<LinkSpec>().expect_err("too long");
        assert!(error.contains("1 to 15"), "{error}");
    }

    #[test]
    fn a_device_that_carries_something_else_than_its_link_is_refused_with_the_remedy() {
        let open = |spec: &str, medium| {
            let spec: LinkSpec = spec.parse().expect("a device");
            Link::open(&spec, medium).err().expect("they do not fit").to_string()
        };
        let ethernet = Medium::Ethernet { mac: MacAddr::new([2, 0, 0, 0, 0, 1]) };
        assert!(open("tun:g0", ethernet).contains("`--link tap:g0`"));
        assert!(open("tap:g0", Medium::Ip).contains("\"medium\": \"ethernet\""));
        assert_eq!("tap:g0".parse::<LinkSpec>().expect("a device").to_string(), "tap:g0");
    }

    #[test]
    fn a_device_that_takes_nothing_lets_so_much_wait_and_the_rest_is_given_up_in_order() {
        let wire = Wire::default();
        let mut link = Link::memory("net", &wire);
        let mut buffers = Buffers::default();
        let (taken, most) = (1024, MAX_WAITING);
        for number in 0..taken + most + 50 {
            link.queue(u64::try_from(number).expect("it fits").to_be_bytes().to_vec(), Offload::NONE, &mut buffers);
        }
        link.flush_into(&mut buffers);
        assert_eq!(link.is_blocked(), Some(RoomWhen::Soon));
        assert_eq!((link.counts().sent, link.counts().send_drops), (1024, 50));
        let received: Vec<Vec<u8>> = std::iter::from_fn(|| wire.receive()).collect();
        link.flush_into(&mut buffers);
        let rest: Vec<Vec<u8>> = std::iter::from_fn(|| wire.receive()).collect();
        assert_eq!((link.is_blocked(), rest.len()), (None, most));
        let numbers =
            received.iter().chain(&rest).map(|bytes| u64::from_be_bytes(*bytes.first_chunk().expect("eight")));
        assert!(numbers.eq(0..2048), "in order");
    }

    #[test]
    fn super_packets_that_wait_are_bounded_by_their_bytes() {
        let wire = Wire::default();
        let mut link = Link::memory("net", &wire);
        let mut buffers = Buffers::default();
        for _ in 0..1024 + 200 {
            link.queue(vec![0; 65_000], Offload::NONE, &mut buffers);
        }
        assert!(link.counts().send_drops > 100, "{} given up", link.counts().send_drops);
        assert!(link.waiting_bytes <= MAX_WAITING_BYTES + 65_000 * BURST);
    }

    #[test]
    fn the_ethertype_follows_the_version() {
        assert_eq!(ethertype(&[0x45]), Some(0x0800));
        assert_eq!(ethertype(&[0x60]), Some(0x86dd));
        assert_eq!(ethertype(&[0x00]), None);
        assert_eq!(ethertype(&[]), None);
    }
}
