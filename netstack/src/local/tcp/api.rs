//! What an embedder calls. Nothing here waits: what is not ready says so, and a waker tells when it may be.

use core::net::{IpAddr, SocketAddr};
use core::task::Waker;

use hibernet_conntrack::{ProtocolState, TcpState, Zone};
use hibernet_snapshot::{Instant, Snapshot};
use smoltcp::socket::tcp::State;

use super::connection::{Connection, Owner};
use super::seq::Seq;
use super::{Connections, Ends, ListenOptions, StreamError, StreamOptions, TcpListener, TcpStream};
use crate::local::{EPHEMERAL_TRIES, LocalError};
use crate::route::is_own;
use crate::stack::Stack;

/// State of a connection (RFC 9293, section 3.3.2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Snapshot)]
#[expect(missing_docs, reason = "the RFC's names say it")]
pub enum StreamState {
    SynSent,
    SynReceived,
    Established,
    FinWait1,
    FinWait2,
    CloseWait,
    Closing,
    LastAck,
    TimeWait,
    Closed,
}

impl Stack {
    /// Accepts TCP connections at a port. The unspecified address stands for all: `0.0.0.0` for those of IPv4, `::` for
    /// both versions'.
    pub fn tcp_listen(&mut self, addr: IpAddr, port: u16, options: ListenOptions) -> Result<TcpListener, LocalError> {
        self.local.tcp.listen(addr, port, options)
    }

    /// The next stream that has come to a listener; `None` if none waits.
    pub fn tcp_accept(&mut self, listener: TcpListener) -> Option<TcpStream> {
        self.local.tcp.listeners.get_mut(&listener)?.arrived.pop_front()
    }

    /// Wakes once when a stream has come to the listener. True if one waits already: then nothing is registered.
    pub fn tcp_wake_on_accept(&mut self, listener: TcpListener, waker: &Waker) -> bool {
        let Some(listener) = self.local.tcp.listeners.get_mut(&listener) else { return true };
        if listener.arrived.is_empty() {
            listener.set_waker(waker);
        }
        !listener.arrived.is_empty()
    }

    /// Closes a listener. Streams nobody has accepted, and handshakes under way, are reset.
    pub fn tcp_close_listener(&mut self, listener: TcpListener, now: Instant) {
        self.tell(now);
        self.local.tcp.close_listener(listener, now);
        self.settle(now);
    }

    /// Opens a connection. A drop of its SYN is no error: the connection times out, as in the kernel. An ICMP error that says
    /// that the peer cannot be reached ends it ([`StreamError::Unreachable`]).
    ///
    /// `from` is this end; without it, the address that speaks to `remote` and a port nobody can guess.
    pub fn tcp_connect(
        &mut self,
        from: Option<SocketAddr>,
        remote: SocketAddr,
        options: StreamOptions,
        now: Instant,
    ) -> Result<TcpStream, LocalError> {
        self.tell(now);
        options.check()?;
        if !self.local.tcp.has_room(&options) {
            return Err(LocalError::TooMany { most: self.local.tcp.most });
        }
        if remote.port() == 0 || from.is_some_and(|from| from.port() == 0) {
            return Err(LocalError::PortZero);
        }
        let local = match from {
            Some(from) if is_own(&self.links, from.ip()) => {
                let is_reachable = self.routes.output(&self.links, from.ip(), remote.ip()).is_some();
                if from.is_ipv4() == remote.is_ipv4() && !is_reachable {
                    return Err(LocalError::NoRoute { remote: remote.ip() });
                }
                from
            }
            Some(from) => return Err(LocalError::NoRoute { remote: from.ip() }),
            None => self.ephemeral_end(remote)?,
        };
        let ends = Ends { local, remote };
        let floor = self.last_number(&ends);
        let stream = self.local.tcp.connect(ends, options, floor, now)?;
        self.settle(now);
        Ok(stream)
    }

    /// Queues bytes to be sent; how many there was room for. [`StreamError::WouldBlock`] if for none.
    pub fn tcp_write(&mut self, stream: TcpStream, bytes: &[u8], now: Instant) -> Result<usize, StreamError> {
        self.tell(now);
        self.local.tcp.make_room_to_write(stream, bytes.len(), now);
        let written = self.local.tcp.act(stream, now, |connection| connection.write(bytes));
        self.settle(now);
        written
    }

    /// Takes bytes that have arrived; how many. 0 means that the peer has sent all it will;
    /// [`StreamError::WouldBlock`] that nothing has come yet.
    pub fn tcp_read(&mut self, stream: TcpStream, room: &mut [u8], now: Instant) -> Result<usize, StreamError> {
        match self.with_stream(stream, now, |connection| connection.read(room)) {
            // It ended in order, and all has been read.
            Err(StreamError::BrokenPipe) => Ok(0),
            read => read,
        }
    }

    /// Ends this side: the peer gets a FIN behind what is queued. Reading goes on. [`StreamError::WouldBlock`] as long as the
    /// handshake is not over.
    pub fn tcp_shutdown(&mut self, stream: TcpStream, now: Instant) -> Result<(), StreamError> {
        self.with_stream(stream, now, |connection| {
            let socket = connection.socket();
            if matches!(socket.state(), State::SynSent | State::SynReceived) {
                return Err(StreamError::WouldBlock);
            }
            socket.close();
            Ok(())
        })
    }

    /// Gives the stream back. What is queued is still sent; if something has arrived that nobody has read, the peer is
    /// reset (RFC 9293, section 3.10.4), so that it does not take it for read.
    pub fn tcp_close(&mut self, stream: TcpStream, now: Instant) {
        self.tell(now);
        self.local.tcp.close(stream, now);
        self.settle(now);
    }

    /// Gives the stream back and resets the peer.
    pub fn tcp_abort(&mut self, stream: TcpStream, now: Instant) {
        self.tell(now);
        self.local.tcp.abort(stream, now);
        self.settle(now);
    }

    /// State of a stream; `None` if the id names none.
    pub fn tcp_state(&self, stream: TcpStream) -> Option<StreamState> {
        let tcp = &self.local.tcp;
        match tcp.connection(stream) {
            Some(connection) => Some(connection.state().into()),
            None => tcp.ended.contains_key(&stream).then_some(StreamState::Closed),
        }
    }

    /// This host's end of a stream that is not over.
    pub fn tcp_local_addr(&self, stream: TcpStream) -> Option<SocketAddr> {
        self.local.tcp.connection(stream).map(|connection| connection.ends.local)
    }

    /// The peer's end of a stream that is not over.
    pub fn tcp_peer_addr(&self, stream: TcpStream) -> Option<SocketAddr> {
        self.local.tcp.connection(stream).map(|connection| connection.ends.remote)
    }

    /// The address a listener accepts at.
    pub fn tcp_listener_addr(&self, listener: TcpListener) -> Option<SocketAddr> {
        self.local.tcp.listeners.get(&listener).map(|listener| SocketAddr::new(listener.addr, listener.port))
    }

    /// Settings of a stream.
    pub fn tcp_options(&self, stream: TcpStream) -> Option<StreamOptions> {
        self.local.tcp.connection(stream).map(|connection| connection.options)
    }

    /// Changes settings of a stream. Buffers and congestion control stay as they are.
    pub fn tcp_set_options(
        &mut self,
        stream: TcpStream,
        options: StreamOptions,
        now: Instant,
    ) -> Result<(), LocalError> {
        options.check()?;
        self.with_stream(stream, now, |connection| {
            let StreamOptions { receive_buffer, send_buffer, congestion, .. } = connection.options;
            connection.options = StreamOptions { receive_buffer, send_buffer, congestion, ..options };
            connection.apply_options();
            connection.patience = None;
            connection.rearm(true, now);
            Ok(())
        })
        .map_err(|_| LocalError::Closed)
    }

    /// Wakes once when there may be something to read: bytes, the end, an error.
    pub fn tcp_wake_on_read(&mut self, stream: TcpStream, waker: &Waker) {
        match self.local.tcp.connection_mut(stream) {
            Some(connection) => connection.socket().register_recv_waker(waker),
            None => waker.wake_by_ref(),
        }
    }

    /// Wakes once when there may be room to write, or an error.
    pub fn tcp_wake_on_write(&mut self, stream: TcpStream, waker: &Waker) {
        match self.local.tcp.connection_mut(stream) {
            Some(connection) => connection.socket().register_send_waker(waker),
            None => waker.wake_by_ref(),
        }
    }

    /// Bytes that were written and that the peer has not acknowledged (`SIOCOUTQ`); `None` if the stream is over.
    pub fn tcp_unacknowledged(&self, stream: TcpStream) -> Option<usize> {
        Some(self.local.tcp.connection(stream)?.look(|socket| socket.send_queue()))
    }

    /// All streams that are not given back, in the order they were opened.
    pub fn tcp_streams(&self) -> Vec<TcpStream> {
        let tcp = &self.local.tcp;
        let is_owned = |stream: &&TcpStream| tcp.connection(**stream).is_some();
        let mut streams: Vec<_> = tcp.ids.keys().filter(is_owned).chain(tcp.ended.keys()).copied().collect();
        streams.sort_unstable();
        streams
    }

    /// All listeners the embedder has opened, in that order.
    pub fn tcp_listeners(&self) -> Vec<TcpListener> {
        let listeners = self.local.tcp.listeners.iter();
        listeners.filter(|(_, listener)| listener.owner == Owner::Embedder).map(|(id, _)| *id).collect()
    }

    fn with_stream<T>(
        &mut self,
        stream: TcpStream,
        now: Instant,
        act: impl FnOnce(&mut Connection) -> Result<T, StreamError>,
    ) -> Result<T, StreamError> {
        self.tell(now);
        let done = self.local.tcp.act(stream, now, act);
        self.settle(now);
        done
    }

    /// The last number this host has sent between two ends, if connection tracking remembers a connection that is over: the
    /// next one's numbers start behind it.
    fn last_number(&self, ends: &Ends) -> Option<Seq> {
        let (handle, direction) = self.conntrack.find(&ends.tuple(), Zone::default())?;
        let ProtocolState::Tcp(track) = self.conntrack.flow(handle)?.protocol else { return None };
        let [original, reply] = track.sides;
        let own = if direction == hibernet_conntrack::Direction::Original { original } else { reply };
        matches!(track.state, TcpState::TimeWait | TcpState::Close | TcpState::LastAck).then_some(Seq(own.td_end))
    }

    /// An own end nobody uses towards that peer: the port is drawn (RFC 6056, section 3.3.2).
    fn ephemeral_end(&mut self, remote: SocketAddr) -> Result<SocketAddr, LocalError> {
        let addr =
            self.routes.source_for(&self.links, remote.ip()).ok_or(LocalError::NoRoute { remote: remote.ip() })?;
        for _ in 0..EPHEMERAL_TRIES {
            let local = SocketAddr::new(addr, self.local.ephemeral_port(remote.port()));
            if self.local.tcp.find(&Ends { local, remote }).is_none() {
                return Ok(local);
            }
        }
        Err(LocalError::NoPort)
    }
}

impl Connections {
    fn connection(&self, stream: TcpStream) -> Option<&Connection> {
        self.live.get(*self.ids.get(&stream)?).filter(|connection| connection.owner == Owner::Embedder)
    }

    fn connection_mut(&mut self, stream: TcpStream) -> Option<&mut Connection> {
        self.live.get_mut(*self.ids.get(&stream)?).filter(|connection| connection.owner == Owner::Embedder)
    }

    fn connect(
        &mut self,
        ends: Ends,
        options: StreamOptions,
        floor: Option<Seq>,
        now: Instant,
    ) -> Result<TcpStream, LocalError> {
        let floor = match self.find(&ends).and_then(|slot| Some((slot, self.live.get(slot)?))) {
            None => floor,
            // RFC 9293, section 3.6.1: the end that was in TIME-WAIT may go on with higher numbers.
            Some((slot, last)) if last.state() == State::TimeWait && last.owner == Owner::Orphan => {
                let nxt = last.shim.nxt;
                self.remove(slot);
                Some(nxt)
            }
            Some(_) => return Err(LocalError::PortTaken { port: ends.local.port() }),
        };
        let mss = self.wire.mss(ends.local.ip());
        let shim = self.shim(&ends, &options, floor, now);
        let mut connection = Connection::new(self.next_id(), ends, Owner::Embedder, options, mss, shim);
        let stream = connection.stream;
        let context = self.wire.interface.context();
        let connected = connection.socket().connect(context, ends.remote, ends.local);
        connected.map_err(|_| LocalError::NoRoute { remote: ends.remote.ip() })?;
        let slot = self.insert(connection);
        self.serve(slot, now);
        Ok(stream)
    }

    fn act<T>(
        &mut self,
        stream: TcpStream,
        now: Instant,
        act: impl FnOnce(&mut Connection) -> Result<T, StreamError>,
    ) -> Result<T, StreamError> {
        let Some(connection) = self.connection_mut(stream) else {
            return Err(match self.ended.get(&stream) {
                Some(Some(failure)) => *failure,
                Some(None) => StreamError::BrokenPipe,
                None => StreamError::NoSuchStream,
            });
        };
        let done = act(connection);
        if let Some(slot) = self.ids.get(&stream).copied() {
            self.serve(slot, now);
        }
        done
    }

    /// Gives the stream rings of full size before a write that needs them.
    fn make_room_to_write(&mut self, stream: TcpStream, bytes: usize, now: Instant) {
        let Some(slot) = self.ids.get(&stream).copied() else { return };
        let Self { wire, out, live, scratch, .. } = self;
        let Some(connection) = live.get_mut(slot).filter(|connection| connection.owner == Owner::Embedder) else {
            return;
        };
        if let Some(rings) = connection.rings_to_write(bytes) {
            connection.flush(wire, out, now);
            scratch.change_rings(connection, rings, now);
        }
    }

    fn close(&mut self, stream: TcpStream, now: Instant) {
        self.withdraw(stream);
        self.ended.remove(&stream);
        let Some(slot) = self.ids.get(&stream).copied() else { return };
        let Some(connection) = self.live.get_mut(slot) else { return };
        connection.owner = Owner::Orphan;
        let socket = connection.socket();
        if socket.state() == State::SynSent {
            // Nobody has heard of it.
            return self.remove(slot);
        }
        // In SYN-RECEIVED smoltcp would take the acknowledgement of its SYN for one of its FIN.
        if socket.recv_queue() > 0 || socket.state() == State::SynReceived {
            socket.abort();
        } else {
            socket.close();
        }
        self.serve(slot, now);
    }

    fn abort(&mut self, stream: TcpStream, now: Instant) {
        self.withdraw(stream);
        self.ended.remove(&stream);
        let Some(slot) = self.ids.get(&stream).copied() else { return };
        if let Some(connection) = self.live.get_mut(slot) {
            connection.owner = Owner::Orphan;
            connection.abort();
        }
        self.serve(slot, now);
    }

    fn close_listener(&mut self, id: TcpListener, now: Instant) {
        let Some(listener) = self.listeners.remove(&id) else { return };
        for stream in listener.arrived {
            self.abort(stream, now);
        }
        let half_open = self.live.iter().filter(|(_, connection)| connection.listener == Some(id));
        let half_open: Vec<TcpStream> = half_open.map(|(_, connection)| connection.stream).collect();
        for stream in half_open {
            self.abort(stream, now);
        }
    }
}

impl From<State> for StreamState {
    fn from(state: State) -> Self {
        match state {
            State::Closed | State::Listen => Self::Closed,
            State::SynSent => Self::SynSent,
            State::SynReceived => Self::SynReceived,
            State::Established => Self::Established,
            State::FinWait1 => Self::FinWait1,
            State::FinWait2 => Self::FinWait2,
            State::CloseWait => Self::CloseWait,
            State::Closing => Self::Closing,
            State::LastAck => Self::LastAck,
            State::TimeWait => Self::TimeWait,
        }
    }
}

impl From<StreamState> for State {
    fn from(state: StreamState) -> Self {
        match state {
            StreamState::SynSent => Self::SynSent,
            StreamState::SynReceived => Self::SynReceived,
            StreamState::Established => Self::Established,
            StreamState::FinWait1 => Self::FinWait1,
            StreamState::FinWait2 => Self::FinWait2,
            StreamState::CloseWait => Self::CloseWait,
            StreamState::Closing => Self::Closing,
            StreamState::LastAck => Self::LastAck,
            StreamState::TimeWait => Self::TimeWait,
            StreamState::Closed => Self::Closed,
        }
    }
}
