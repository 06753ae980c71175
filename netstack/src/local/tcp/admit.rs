//! Connections without a listener: a SYN to another host's address that the embedder takes in that host's place.

use hibernet_snapshot::Instant;
use smoltcp::socket::tcp::State;
use smoltcp::wire::IpListenEndpoint;

use super::connection::{Connection, Owner};
use super::segment::Head;
use super::seq::Seq;
use super::{Connections, Ends, StreamOptions, TcpStream};
use crate::drop_reason::DropReason;

/// What a segment to another host's address asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Asked {
    /// It is of a connection there is.
    Known,
    /// A new connection, whose numbers start behind this one.
    Opening(Option<u32>),
    /// Nothing that can be given.
    Nothing,
}

impl Connections {
    /// Whether a connection has these ends.
    pub(in crate::local) fn has(&mut self, ends: &Ends) -> bool {
        self.find_again(ends).is_some()
    }

    /// What a SYN asks for. If it starts the successor of a connection in TIME-WAIT, that one makes room.
    pub(in crate::local) fn asks_for(&mut self, ends: &Ends, datagram: &[u8]) -> Asked {
        let head = Head::read(datagram).filter(|head| head.readable && head.opens());
        let Some(slot) = self.find(ends) else {
            return head.map_or(Asked::Nothing, |_| Asked::Opening(None));
        };
        let connection = self.live.get_mut(slot);
        let successor = connection.zip(head).and_then(|(connection, head)| connection.succeeded_by(&head));
        match successor {
            Some(Seq(floor)) => {
                self.remove(slot);
                Asked::Opening(Some(floor))
            }
            None => Asked::Known,
        }
    }

    /// Opens a connection for a SYN that no listener is asked about.
    pub(in crate::local) fn admit(
        &mut self,
        ends: Ends,
        mut syn: Vec<u8>,
        options: StreamOptions,
        floor: Option<u32>,
        now: Instant,
    ) -> Result<TcpStream, DropReason> {
        if !self.has_room(&options) || self.find(&ends).is_some() {
            return Err(DropReason::LocalBacklogFull);
        }
        let mss = self.wire.mss(ends.local.ip());
        let shim = self.shim(&ends, &options, floor.map(Seq), now);
        let mut connection = Connection::new(self.next_id(), ends, Owner::Embedder, options, mss, shim);
        let stream = connection.stream;
        let endpoint = IpListenEndpoint { addr: Some(ends.local.ip().into()), port: ends.local.port() };
        connection.socket().listen(endpoint).map_err(|_| DropReason::LocalMalformed)?;
        let head = Head::read(&syn).ok_or(DropReason::LocalMalformed)?;
        connection.feed(&head, &mut syn, (&mut self.wire, &mut self.scratch), &mut self.out, now)?;
        if connection.state() == State::Listen {
            return Err(DropReason::LocalMalformed);
        }
        let slot = self.insert(connection);
        self.serve(slot, now);
        Ok(stream)
    }
}
