//! Connections without a listener: a SYN to another host's address that the embedder takes in that host's place.

use hibernet_snapshot::Instant;
use smoltcp::socket::tcp::State;
use smoltcp::wire::IpListenEndpoint;

use super::connection::{Connection, Owner};
use super::seq::Seq;
use super::{Connections, Ends, StreamOptions, TcpStream};
use crate::drop_reason::DropReason;

impl Connections {
    /// Whether a connection has these ends.
    pub(in crate::local) fn has(&self, ends: &Ends) -> bool {
        self.find(ends).is_some()
    }

    /// If a connection in TIME-WAIT has these ends and `syn` starts its successor, it makes room: the number the next one
    /// starts behind.
    pub(in crate::local) fn make_way(&mut self, ends: &Ends, syn: &[u8]) -> Option<u32> {
        let slot = self.find(ends)?;
        let Seq(floor) = self.live.get_mut(slot)?.succeeded_by(syn)?;
        self.remove(slot);
        Some(floor)
    }

    /// Opens a connection for a SYN that no listener is asked about.
    pub(in crate::local) fn admit(
        &mut self,
        ends: Ends,
        syn: Vec<u8>,
        options: StreamOptions,
        floor: Option<u32>,
        now: Instant,
    ) -> Result<TcpStream, DropReason> {
        if !self.has_room(&options) || self.has(&ends) {
            return Err(DropReason::LocalBacklogFull);
        }
        let mss = self.wire.mss(ends.local.ip());
        let shim = self.shim(&ends, &options, floor.map(Seq), now);
        let mut connection = Connection::new(self.next_id(), ends, Owner::Embedder, options, mss, shim);
        let stream = connection.stream;
        let endpoint = IpListenEndpoint { addr: Some(ends.local.ip().into()), port: ends.local.port() };
        connection.socket().listen(endpoint).map_err(|_| DropReason::LocalMalformed)?;
        connection.feed(syn, &mut self.wire, &mut self.out, now)?;
        if connection.state() == State::Listen {
            return Err(DropReason::LocalMalformed);
        }
        let slot = self.insert(connection);
        self.serve(slot, now);
        Ok(stream)
    }
}
