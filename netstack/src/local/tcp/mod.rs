//! TCP connections of this host.

use core::net::{IpAddr, SocketAddr};
use std::collections::{BTreeMap, VecDeque};

use hibernet_snapshot::Instant;
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::wire::IpListenEndpoint;

use super::udp::{overlap, takes_any};
use super::{ANY, EPHEMERAL_TRIES, Local, LocalError, Wire, clock, from_clock};
use crate::drop_reason::DropReason;
use crate::route::is_own;
use crate::stack::Stack;

/// A TCP connection of this host: its two ends.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TcpHandle {
    local: SocketAddr,
    remote: SocketAddr,
}

impl TcpHandle {
    /// This host's end.
    pub const fn local(&self) -> SocketAddr {
        self.local
    }

    /// The peer's end.
    pub const fn remote(&self) -> SocketAddr {
        self.remote
    }
}

/// A port at which TCP connections are accepted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TcpListener(u64);

/// What has to be known of a segment to find its connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Segment {
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    /// It is a SYN that opens.
    pub(crate) opening: bool,
    /// It has an acknowledgement.
    pub(crate) acknowledges: bool,
    /// A socket can make sense of it.
    pub(crate) readable: bool,
}

/// All connections and listeners.
pub(super) struct Connections {
    pub(super) wire: Wire,
    flows: BTreeMap<TcpHandle, Connection>,
    listeners: BTreeMap<TcpListener, Listener>,
    next: u64,
}

/// One connection in a set of its own.
struct Connection {
    sockets: SocketSet<'static>,
    socket: SocketHandle,
    owner: Owner,
    /// When its timers want it next.
    due: Option<Instant>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    Echo,
    Embedder,
}

struct Listener {
    addr: IpAddr,
    port: u16,
    owner: Owner,
    arrived: VecDeque<TcpHandle>,
}

impl Connections {
    pub(super) fn new(echo: Option<u16>, wire: Wire) -> Self {
        let mut connections = Self { wire, flows: BTreeMap::new(), listeners: BTreeMap::new(), next: 0 };
        if let Some(port) = echo {
            // Port 0 was refused, and no other listener is there yet that could have the port.
            let _echo = connections.listen(ANY, port, Owner::Echo);
        }
        connections
    }

    fn listen(&mut self, addr: IpAddr, port: u16, owner: Owner) -> Result<TcpListener, LocalError> {
        if port == 0 {
            return Err(LocalError::PortZero);
        }
        if self.listeners.values().any(|other| other.port == port && overlap(other.addr, addr)) {
            return Err(LocalError::PortTaken { port });
        }
        let handle = TcpListener(self.next);
        self.next = self.next.wrapping_add(1);
        self.listeners.insert(handle, Listener { addr, port, owner, arrived: VecDeque::new() });
        Ok(handle)
    }

    fn listener(&mut self, local: SocketAddr) -> Option<&mut Listener> {
        let fits = |listener: &&mut Listener| {
            listener.port == local.port() && (listener.addr == local.ip() || takes_any(listener.addr, local.ip()))
        };
        self.listeners.values_mut().find(fits)
    }

    fn feed(&mut self, segment: Segment, datagram: Vec<u8>, now: Instant) -> Result<(), DropReason> {
        let Segment { local, remote, opening, acknowledges, readable } = segment;
        let handle = TcpHandle { local, remote };
        if let Some(connection) = self.flows.get_mut(&handle) {
            if !readable {
                return Err(DropReason::LocalMalformed);
            }
            self.wire.feed(datagram, &mut connection.sockets, now);
            self.serve(handle, now);
            return Ok(());
        }
        let full = self.flows.len() >= MAX_CONNECTIONS;
        let Some(listener) = self.listener(local) else { return Err(DropReason::NoConnection) };
        if !opening || !readable {
            // RFC 9293, section 3.10.7.2: a listener answers an acknowledgement with a reset, and nothing else but a SYN.
            return Err(if acknowledges { DropReason::NoConnection } else { DropReason::LocalMalformed });
        }
        if full || listener.arrived.len() >= BACKLOG {
            return Err(DropReason::LocalBacklogFull);
        }
        let owner = listener.owner;
        let mut connection = Connection::new(owner);
        let endpoint = IpListenEndpoint { addr: Some(local.ip().into()), port: local.port() };
        let listening = connection.sockets.get_mut::<Socket<'_>>(connection.socket).listen(endpoint);
        listening.map_err(|_| DropReason::LocalMalformed)?;
        self.wire.feed(datagram, &mut connection.sockets, now);
        if connection.state() == State::Listen {
            return Err(DropReason::LocalMalformed);
        }
        self.flows.insert(handle, connection);
        if owner == Owner::Embedder
            && let Some(listener) = self.listener(local)
        {
            listener.arrived.push_back(handle);
        }
        self.serve(handle, now);
        Ok(())
    }

    /// Lets a connection send, its service act, and forgets it when it is over.
    fn serve(&mut self, handle: TcpHandle, now: Instant) {
        let Some(connection) = self.flows.get_mut(&handle) else { return };
        if connection.owner == Owner::Echo {
            connection.echo();
        }
        self.wire.flush(&mut connection.sockets, now);
        connection.due = self.wire.interface.poll_at(clock(now), &connection.sockets).map(from_clock);
        if connection.state() == State::Closed {
            self.flows.remove(&handle);
        }
    }

    pub(super) fn poll(&mut self, now: Instant) {
        let due = |connection: &Connection| connection.due.is_some_and(|due| due <= now);
        let handles = self.flows.iter().filter(|(_, connection)| due(connection)).map(|(handle, _)| *handle);
        for handle in handles.collect::<Vec<TcpHandle>>() {
            self.serve(handle, now);
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.flows.values().filter_map(|connection| connection.due).min()
    }
}

impl core::fmt::Debug for Connections {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        // Sockets would print their sequence numbers and buffers.
        f.debug_struct("Connections").field("handles", &self.flows.keys()).finish_non_exhaustive()
    }
}

impl Connection {
    fn new(owner: Owner) -> Self {
        let mut socket =
            Socket::new(SocketBuffer::new(vec![0; RECEIVE_BUFFER]), SocketBuffer::new(vec![0; SEND_BUFFER]));
        // A kernel's connection acknowledges its first segments at once, and so does this one all of them.
        socket.set_ack_delay(None);
        let mut sockets = SocketSet::new(Vec::new());
        let socket = sockets.add(socket);
        Self { sockets, socket, owner, due: None }
    }

    fn state(&self) -> State {
        self.sockets.get::<Socket<'_>>(self.socket).state()
    }

    fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.socket)
    }

    /// Sends back what has arrived, as far as there is room, and closes after the peer.
    fn echo(&mut self) {
        let socket = self.socket();
        while socket.can_recv() && socket.can_send() {
            let room = socket.send_capacity().saturating_sub(socket.send_queue());
            let taken = socket.recv(|bytes| {
                let taken = bytes.get(..bytes.len().min(room)).unwrap_or_default().to_vec();
                (taken.len(), taken)
            });
            let Ok(taken) = taken else { return };
            if taken.is_empty() || socket.send_slice(&taken).is_err() {
                return;
            }
        }
        if !socket.may_recv() && socket.recv_queue() == 0 && socket.state() == State::CloseWait {
            socket.close();
        }
    }
}

impl Local {
    /// Gives a segment to its connection or to a listener.
    pub(crate) fn feed_segment(&mut self, segment: Segment, datagram: Vec<u8>, now: Instant) -> Result<(), DropReason> {
        self.tcp.feed(segment, datagram, now)
    }
}

impl Stack {
    /// Accepts TCP connections at a port. The unspecified address stands for all: `0.0.0.0` for those of IPv4, `::` for
    /// both versions'.
    pub fn listen_tcp(&mut self, addr: IpAddr, port: u16) -> Result<TcpListener, LocalError> {
        self.local.tcp.listen(addr, port, Owner::Embedder)
    }

    /// The next connection that has come to a listener.
    pub fn tcp_accept(&mut self, listener: TcpListener) -> Option<TcpHandle> {
        self.local.tcp.listeners.get_mut(&listener)?.arrived.pop_front()
    }

    /// Opens a connection. A drop of its SYN is no error: the connection times out, as in the kernel.
    ///
    /// `from` is this end; without it, the address that speaks to `remote` and a port nobody can guess.
    pub fn tcp_connect(
        &mut self,
        from: Option<SocketAddr>,
        remote: SocketAddr,
        now: Instant,
    ) -> Result<TcpHandle, LocalError> {
        self.tell(now);
        if self.local.tcp.flows.len() >= MAX_CONNECTIONS {
            return Err(LocalError::TooMany { most: MAX_CONNECTIONS });
        }
        if remote.port() == 0 || from.is_some_and(|from| from.port() == 0) {
            return Err(LocalError::PortZero);
        }
        let local = match from {
            Some(from) if is_own(&self.links, from.ip()) => from,
            Some(from) => return Err(LocalError::NoRoute { remote: from.ip() }),
            None => self.ephemeral_end(remote)?,
        };
        let handle = TcpHandle { local, remote };
        let Local { tcp, .. } = &mut self.local;
        if tcp.flows.contains_key(&handle) {
            return Err(LocalError::PortTaken { port: local.port() });
        }
        let mut connection = Connection::new(Owner::Embedder);
        let socket = connection.sockets.get_mut::<Socket<'_>>(connection.socket);
        socket
            .connect(tcp.wire.interface.context(), remote, local)
            .map_err(|_| LocalError::NoRoute { remote: remote.ip() })?;
        tcp.flows.insert(handle, connection);
        tcp.serve(handle, now);
        self.settle(now);
        Ok(handle)
    }

    /// Queues bytes for a connection; how many it took.
    pub fn tcp_send(&mut self, handle: TcpHandle, bytes: &[u8], now: Instant) -> Result<usize, LocalError> {
        let connection = self.local.tcp.flows.get_mut(&handle).ok_or(LocalError::Closed)?;
        let sent = connection.socket().send_slice(bytes).map_err(|_| LocalError::Closed);
        self.local.tcp.serve(handle, now);
        self.settle(now);
        sent
    }

    /// Takes what has arrived on a connection. Empty when nothing has; an error when nothing will any more.
    pub fn tcp_recv(&mut self, handle: TcpHandle, now: Instant) -> Result<Vec<u8>, LocalError> {
        let connection = self.local.tcp.flows.get_mut(&handle).ok_or(LocalError::Closed)?;
        let socket = connection.socket();
        let mut taken = Vec::new();
        while let Ok(some) = socket.recv(|bytes| (bytes.len(), bytes.to_vec())) {
            if some.is_empty() {
                break;
            }
            taken.extend(some);
        }
        let over =
            taken.is_empty() && !socket.may_recv() && !matches!(socket.state(), State::SynSent | State::SynReceived);
        self.local.tcp.serve(handle, now);
        self.settle(now);
        if over { Err(LocalError::Closed) } else { Ok(taken) }
    }

    /// Whether a connection is open both ways.
    pub fn tcp_is_open(&self, handle: TcpHandle) -> bool {
        self.local.tcp.flows.get(&handle).is_some_and(|connection| connection.state() == State::Established)
    }

    /// Closes this end of a connection; what is queued is still sent.
    pub fn tcp_close(&mut self, handle: TcpHandle, now: Instant) {
        if let Some(connection) = self.local.tcp.flows.get_mut(&handle) {
            connection.socket().close();
            self.local.tcp.serve(handle, now);
            self.settle(now);
        }
    }

    /// An own end nobody uses towards that peer: the port is drawn (RFC 6056, section 3.3.2).
    fn ephemeral_end(&mut self, remote: SocketAddr) -> Result<SocketAddr, LocalError> {
        let addr =
            self.routes.source_for(&self.links, remote.ip()).ok_or(LocalError::NoRoute { remote: remote.ip() })?;
        for _ in 0..EPHEMERAL_TRIES {
            let local = SocketAddr::new(addr, self.local.ephemeral_port(remote.port()));
            if !self.local.tcp.flows.contains_key(&TcpHandle { local, remote }) {
                return Ok(local);
            }
        }
        Err(LocalError::NoPort)
    }
}

/// What a connection offers first: what Linux offers on a link of 1500 bytes.
const RECEIVE_BUFFER: usize = 64_240;
const SEND_BUFFER: usize = 65_536;
/// Most connections at once.
const MAX_CONNECTIONS: usize = 1024;
/// Most connections that wait to be accepted at one listener.
const BACKLOG: usize = 128;
