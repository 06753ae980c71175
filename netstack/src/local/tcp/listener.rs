//! Listeners: where streams come in, and how many may wait.

use core::net::{IpAddr, SocketAddr};
use core::task::Waker;
use std::collections::VecDeque;

use super::connection::Owner;
use super::{Connections, ListenOptions, TcpListener, TcpStream};
use crate::local::LocalError;
use crate::local::udp::{overlap, takes_any};

/// One listener.
pub(super) struct Listener {
    pub(super) addr: IpAddr,
    pub(super) port: u16,
    pub(super) owner: Owner,
    pub(super) options: ListenOptions,
    /// Connections whose handshake is not finished.
    pub(super) half_open: u32,
    /// Streams that wait to be accepted.
    pub(super) arrived: VecDeque<TcpStream>,
    waker: Option<Waker>,
}

impl Listener {
    pub(super) fn new(addr: IpAddr, port: u16, owner: Owner, options: ListenOptions) -> Self {
        Self { addr, port, owner, options, half_open: 0, arrived: VecDeque::new(), waker: None }
    }

    /// Whether another handshake may begin.
    pub(super) fn has_place(&self) -> bool {
        self.half_open < self.options.half_open && !self.is_full()
    }

    /// Whether as many streams wait to be accepted as may.
    pub(super) fn is_full(&self) -> bool {
        u32::try_from(self.arrived.len()).is_ok_and(|waiting| waiting >= self.options.backlog)
    }

    /// Whether a SYN is answered with a cookie: handshakes take all places, but streams can still wait.
    pub(super) fn wants_cookie(&self) -> bool {
        self.options.cookies && self.half_open >= self.options.half_open && !self.is_full()
    }

    pub(super) fn set_waker(&mut self, waker: &Waker) {
        self.waker = Some(waker.clone());
    }

    pub(super) fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn takes(&self, local: SocketAddr) -> bool {
        self.port == local.port() && (self.addr == local.ip() || takes_any(self.addr, local.ip()))
    }
}

impl Connections {
    /// Opens a listener.
    pub(super) fn listen(
        &mut self,
        addr: IpAddr,
        port: u16,
        options: ListenOptions,
    ) -> Result<TcpListener, LocalError> {
        options.check()?;
        if port == 0 {
            return Err(LocalError::PortZero);
        }
        if self.listeners.values().any(|other| other.port == port && overlap(other.addr, addr)) {
            return Err(LocalError::PortTaken { port });
        }
        let id = TcpListener(self.next_listener);
        self.next_listener = self.next_listener.wrapping_add(1);
        self.listeners.insert(id, Listener::new(addr, port, Owner::Embedder, options));
        Ok(id)
    }

    /// The listener a SYN to `local` is for. Two that overlap cannot be.
    pub(super) fn listener(&self, local: SocketAddr) -> Option<TcpListener> {
        self.listeners.iter().find(|(_, listener)| listener.takes(local)).map(|(id, _)| *id)
    }
}

/// Whether two listeners at one port would take each other's connections.
pub(super) fn is_same_place(one: IpAddr, other: IpAddr) -> bool {
    overlap(one, other)
}
