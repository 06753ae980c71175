//! The socket's rings: small at first and again when a connection rests, of full size for those that carry much.
//!
//! smoltcp takes its rings when a socket is made and shows no way to others. But a connection can be led into a new socket, as
//! a restore does it. So one begins with rings for a segment; the first segment that does not fit, or comes out of order, and
//! the first write that does not fit bring those of full size, before anything has been lost. The peer is offered the full
//! window all the time: what a ring lacks is promised (`shim::Ring`), and kept by making it larger in time.

use core::time::Duration;

use smoltcp::socket::tcp::{Socket, SocketBuffer, State};

use super::connection::Connection;
use super::options::StreamOptions;
use super::segment::Head;
use super::seq::Seq;

/// Sizes of a socket's rings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Rings {
    receive: u32,
    send: u32,
}

impl Rings {
    /// Those of full size, for a link with segments of `mss` bytes.
    pub(super) fn full(options: &StreamOptions, mss: u16) -> Self {
        Self { receive: options.room(mss), send: options.send_buffer }
    }

    /// The smallest that hold so many bytes.
    pub(super) fn holding(full: Self, unread: usize, unacked: usize) -> Self {
        let fitting = |full: u32, bytes: usize| match u32::try_from(bytes) {
            Ok(bytes) if bytes <= SMALL => full.min(SMALL),
            _ => full,
        };
        Self { receive: fitting(full.receive, unread), send: fitting(full.send, unacked) }
    }

    /// A socket with such rings.
    pub(super) fn socket(self) -> Socket<'static> {
        let room = |bytes: u32| SocketBuffer::new(vec![0; usize::try_from(bytes).unwrap_or(0)]);
        Socket::new(room(self.receive), room(self.send))
    }

    /// By what a socket with such rings shifts its windows: from the size alone.
    pub(super) fn shift(self) -> u8 {
        let bits = u32::BITS.saturating_sub(self.receive.leading_zeros());
        u8::try_from(bits.saturating_sub(16)).unwrap_or(0)
    }

    /// Bytes of the full receive ring that these lack.
    pub(super) const fn promised(self, full: Self) -> u32 {
        full.receive.saturating_sub(self.receive)
    }

    /// The send ring of full size.
    pub(super) const fn sending(self, full: Self) -> Self {
        Self { send: full.send, ..self }
    }

    /// The receive ring of full size.
    pub(super) const fn receiving(self, full: Self) -> Self {
        Self { receive: full.receive, ..self }
    }
}

impl Connection {
    /// The rings a segment needs, if it needs others.
    pub(super) fn rings_for(&self, head: &Head, rcv_nxt: Seq) -> Option<Rings> {
        let larger = self.rings.receiving(self.full);
        (larger != self.rings && !head.rst && self.shim.exceeds_ring(head, rcv_nxt)).then_some(larger)
    }

    /// The rings a write of so many bytes needs, if it needs others.
    pub(super) fn rings_to_write(&mut self, bytes: usize) -> Option<Rings> {
        let larger = self.rings.sending(self.full);
        let socket = self.socket();
        let has_room = socket.send_capacity().saturating_sub(socket.send_queue()) >= bytes;
        let may_send = matches!(socket.state(), State::Established | State::CloseWait);
        (larger != self.rings && may_send && !has_room).then_some(larger)
    }

    /// The rings for a connection that rests, if it has others.
    pub(super) fn rings_at_rest(&mut self) -> Option<Rings> {
        let smallest = Rings::holding(self.full, 0, 0);
        let socket = self.socket();
        let is_open = matches!(socket.state(), State::Established | State::CloseWait | State::FinWait2);
        let is_empty = socket.recv_queue() == 0 && socket.send_queue() == 0;
        (smallest != self.rings && is_open && is_empty).then_some(smallest)
    }
}

/// Room for a segment of an Ethernet link.
const SMALL: u32 = 2048;
/// Silence after which a connection rests.
pub(super) const REST: Duration = Duration::from_secs(5);
