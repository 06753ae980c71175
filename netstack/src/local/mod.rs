//! This host's own sockets: smoltcp behind INPUT and OUTPUT.
//!
//! UDP and ping sockets are our own. smoltcp sees what INPUT has accepted for TCP, one segment at a time, and what it sends
//! goes to OUTPUT. Every TCP connection has
//! a `SocketSet` of its own, because smoltcp looks through a set from end to end; a connection that is restored live will
//! take that same place.

mod datagrams_saved;
mod device;
mod error;
mod notice;
mod ping;
mod sockets;
mod tcp;
mod tproxy;
mod udp;

use core::net::{IpAddr, Ipv6Addr};

use hibernet_conntrack::{CanaryScan, WireChoices, proto};
use hibernet_snapshot::{Entropy, Instant, Invalid, Redraw, Snapshot};
use serde::{Deserialize, Serialize};
use smoltcp::iface::{Config, Interface, PollResult, SocketSet};
use smoltcp::wire::{HardwareAddress, Ipv4Packet};
use thiserror::Error;

pub(crate) use self::datagrams_saved::DatagramsSection;
use self::device::{Borrowed, MemoryDevice, Sent};
pub use self::error::SocketError;
pub use self::ping::{PingReply, PingSocket};
pub use self::sockets::ReceiveLimits;
use self::sockets::SocketTable;
use self::tcp::Connections;
pub(crate) use self::tcp::Removed;
pub(crate) use self::tcp::{Asked, Ends, Fed, Rebuilt, StreamReset, TcpSection};
pub use self::tcp::{Congestion, ListenOptions, StreamError, StreamOptions, StreamState, TcpListener, TcpStream};
use self::tproxy::ProxyQueue;
pub(crate) use self::tproxy::can_be_proxied;
pub use self::tproxy::{Opening, Proxied, ProxyDatagram, ProxyEcho, Unreached};
pub use self::udp::{UdpDatagram, UdpSocket};
use crate::link::Links;
use crate::stack::Stack;

/// Services of this host. None by default; pings are always answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, Snapshot)]
#[serde(default, deny_unknown_fields)]
#[snapshot(validate = ports_are_real)]
pub struct LocalServices {
    /// Port at which UDP datagrams are sent back (RFC 862 has 7).
    #[snapshot(saved)]
    pub udp_echo: Option<u16>,
    /// Port at which TCP streams are sent back.
    #[snapshot(saved)]
    pub tcp_echo: Option<u16>,
}

/// No service is at port 0.
pub(crate) fn ports_are_real(services: &LocalServices) -> Result<(), Invalid> {
    let LocalServices { udp_echo, tcp_echo } = services;
    for (field, port) in [("udp_echo", udp_echo), ("tcp_echo", tcp_echo)] {
        if *port == Some(0) {
            return Err(Invalid::new(field, "port 0", "1 to 65535"));
        }
    }
    Ok(())
}

/// Why a socket was not opened.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum LocalError {
    /// Somebody has it.
    #[error("port {port} is taken")]
    PortTaken {
        /// The port.
        port: u16,
    },
    /// No socket binds to port 0.
    #[error("port 0: expected 1 to 65535")]
    PortZero,
    /// The address is another host's.
    #[error("{addr} is not an address of this host")]
    AddressNotOwn {
        /// The address.
        addr: IpAddr,
    },
    /// No free port was found.
    #[error("no free port was found")]
    NoPort,
    /// All places for connections, or for sockets of the kind, are taken.
    #[error("no place for another one: at most {most}")]
    TooMany {
        /// How many there may be.
        most: usize,
    },
    /// There is no route, so no address to speak from.
    #[error("no route to {remote}")]
    NoRoute {
        /// The peer.
        remote: IpAddr,
    },
    /// The handle's socket is closed.
    #[error("the socket is closed")]
    Closed,
    /// A setting cannot be.
    #[error("options: {0}")]
    Options(#[from] Invalid),
}

/// Bounds of local sockets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LocalLimits {
    /// TCP connections at once, those not accepted yet and those in TIME-WAIT included.
    pub connections: u32,
}

impl Default for LocalLimits {
    fn default() -> Self {
        Self { connections: 65_536 }
    }
}

/// The local stack.
#[derive(Debug)]
pub(crate) struct Local {
    services: LocalServices,
    datagrams: Datagrams,
    tcp: Connections,
    choices: WireChoices,
    /// What waits for a proxy; never saved.
    proxied: ProxyQueue,
}

/// UDP and ping sockets.
#[derive(Debug)]
pub(crate) struct Datagrams {
    udp: SocketTable,
    ping: SocketTable,
}

impl Datagrams {
    /// How many sockets there are, and how many datagrams wait in them.
    pub(crate) fn count(&self) -> (usize, usize) {
        let Self { udp, ping } = self;
        let all = || udp.sockets.values().chain(ping.sockets.values());
        (all().count(), all().fold(0, |sum, socket| sum.saturating_add(socket.waiting.len())))
    }
}

impl Local {
    /// A local stack with its services listening.
    pub(crate) fn new(services: LocalServices, limits: LocalLimits, links: &Links, entropy: &mut Entropy) -> Self {
        let choices = WireChoices::redraw(entropy);
        let tcp = Wire::new(links.smallest_mtu(), choices.fixed(TCP_SEED));
        let mut local = Self {
            datagrams: Datagrams { udp: SocketTable::new(services.udp_echo), ping: SocketTable::default() },
            tcp: Connections::new(services.tcp_echo, tcp, WireChoices::redraw(entropy)),
            services,
            choices,
            proxied: ProxyQueue::default(),
        };
        local.set_limits(limits);
        local
    }

    pub(crate) fn set_limits(&mut self, limits: LocalLimits) {
        self.tcp.set_most(usize::try_from(limits.connections).unwrap_or(usize::MAX));
    }

    /// TCP connections and listeners, as they are saved.
    pub(crate) fn tcp_section(&self, now: Instant) -> TcpSection {
        self.tcp.section(now)
    }

    /// Takes TCP connections and listeners from an image.
    pub(crate) fn restore_tcp(&mut self, section: TcpSection, now: Instant) -> Rebuilt {
        self.tcp.restore(section, now)
    }

    pub(crate) const fn services(&self) -> LocalServices {
        self.services
    }

    pub(crate) const fn datagrams(&self) -> &Datagrams {
        &self.datagrams
    }

    /// The same with restored UDP and ping sockets.
    pub(crate) fn with_datagrams(self, datagrams: Datagrams) -> Self {
        Self { datagrams, ..self }
    }

    /// Adds the key and the seeds that follow from it to what a canary scan looks for.
    pub(crate) fn watch(&self, scan: &mut CanaryScan) {
        self.choices.watch("local sockets", scan);
        scan.watch_key("smoltcp seed", &self.choices.fixed(TCP_SEED).to_le_bytes());
        self.tcp.watch(scan);
    }

    /// The sources of ports and of TCP's numbers.
    pub(crate) const fn choices_mut(&mut self) -> (&mut WireChoices, &mut WireChoices) {
        (&mut self.choices, self.tcp.choices_mut())
    }

    /// A port nobody can guess (RFC 6056, section 3.3.2), from the range Linux draws from.
    fn ephemeral_port(&mut self, towards: u16) -> u16 {
        let width = u64::from(LAST_EPHEMERAL.abs_diff(FIRST_EPHEMERAL)).saturating_add(1);
        let draw = self.choices.draw([u64::from(towards), 0]);
        let offset = u16::try_from(draw.checked_rem(width).unwrap_or(0)).unwrap_or(0);
        FIRST_EPHEMERAL.saturating_add(offset)
    }

    /// Runs the timers of all connections.
    pub(crate) fn poll(&mut self, now: Instant) {
        self.tcp.poll(now);
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.tcp.next_deadline()
    }

    /// What smoltcp has sent since it was last asked.
    fn take_sent(&mut self) -> Option<Sent> {
        self.tcp.take_sent()
    }
}

impl Stack {
    /// Queues what the local stack has sent for OUTPUT. False if it has sent nothing.
    pub(crate) fn emit_local(&mut self, now: Instant) -> bool {
        let mut any = false;
        while let Some(Sent { datagram, offload }) = self.local.take_sent() {
            any = true;
            // An answer has no sender who could be told of its drop; the drop is counted.
            let _outcome = self.originate_leaving(datagram, offload, now);
        }
        any
    }

    /// Gives an IPv4 datagram that may be fragmented an identification: everything but TCP, which heeds the path's MTU.
    pub(super) fn identified(&mut self, mut datagram: Vec<u8>) -> Vec<u8> {
        if let Ok(mut packet) = Ipv4Packet::new_checked(datagram.as_mut_slice())
            && packet.version() == 4
            && u8::from(packet.next_header()) != proto::TCP
        {
            let id = self.next_ip_id();
            packet.set_dont_frag(false);
            packet.set_ident(u16::try_from(id & 0xffff).unwrap_or(0));
            packet.fill_checksum();
        }
        datagram
    }
}

/// A smoltcp interface with its device.
struct Wire {
    interface: Interface,
    device: MemoryDevice,
    mtu: usize,
}

impl Wire {
    /// `mtu` is that of the links; `seed` is secret: smoltcp's numbers follow from it.
    fn new(mtu: usize, seed: u64) -> Self {
        let mut device = MemoryDevice::default();
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut device, smoltcp::time::Instant::ZERO);
        // Which addresses are this host's own was decided before INPUT.
        interface.set_any_ip(true);
        Self { interface, device, mtu }
    }

    /// Gives one datagram to a set of sockets.
    fn feed(&mut self, datagram: &[u8], sockets: &mut SocketSet<'static>, now: Instant) {
        self.feed_at(datagram, sockets, clock(now));
    }

    fn feed_at(&mut self, datagram: &[u8], sockets: &mut SocketSet<'static>, at: smoltcp::time::Instant) {
        let mut device = Borrowed::new(datagram, &mut self.device);
        self.interface.poll_ingress_single(at, &mut device, sockets);
    }

    /// Lets a set of sockets send all it has to send.
    fn flush(&mut self, sockets: &mut SocketSet<'static>, now: Instant) {
        self.flush_at(sockets, clock(now));
    }

    fn flush_at(&mut self, sockets: &mut SocketSet<'static>, at: smoltcp::time::Instant) {
        for _ in 0..FLUSH_LIMIT {
            if self.interface.poll_egress(at, &mut self.device, sockets) == PollResult::None {
                return;
            }
        }
    }
}

impl core::fmt::Debug for Wire {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        // The interface knows the state of its generator.
        f.debug_struct("Wire").field("device", &self.device).finish_non_exhaustive()
    }
}

/// Our time as smoltcp's: microseconds.
fn clock(now: Instant) -> smoltcp::time::Instant {
    let micros = now.as_nanos().checked_div(1000).unwrap_or(0);
    smoltcp::time::Instant::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
}

/// smoltcp's time as ours.
pub(crate) fn from_clock(at: smoltcp::time::Instant) -> Instant {
    let micros = u64::try_from(at.total_micros()).unwrap_or(0);
    Instant::from_nanos(micros.saturating_mul(1000))
}

/// Most segments one connection sends at once.
const FLUSH_LIMIT: usize = 1024;
/// The address that stands for all of both versions.
const ANY: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
/// Ephemeral ports, as Linux has them.
const FIRST_EPHEMERAL: u16 = 32_768;
const LAST_EPHEMERAL: u16 = 60_999;
/// Draws of a port before giving up.
const EPHEMERAL_TRIES: usize = 64;
/// What the seed of the interface is drawn for.
const TCP_SEED: [u64; 2] = [0x7365_6564, 6];

#[cfg(test)]
mod tests;
