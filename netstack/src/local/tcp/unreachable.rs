//! ICMP errors about what a connection has sent, as Linux heeds them.
//!
//! While a connection is being opened such an error ends it. Later it may be a passing fault of a router, or a lie: then it is
//! what is told instead of a timeout, if nothing is heard of the peer until then.

use hibernet_snapshot::Instant;
use smoltcp::socket::tcp::State;

use super::connection::Connection;
use super::segment::Ends;
use super::seq::Seq;
use super::{Connections, StreamError};
use crate::local::Local;
use crate::local::sockets::Notice;

impl Local {
    /// Tells the connection that has sent a segment with that number.
    pub(in crate::local) fn fail_tcp(&mut self, ends: &Ends, number: u32, notice: Notice, now: Instant) {
        self.tcp.heed(ends, Seq(number), notice, now);
    }
}

impl Connections {
    fn heed(&mut self, ends: &Ends, number: Seq, notice: Notice, now: Instant) {
        let failure = match notice {
            Notice::Refused(_) => StreamError::Refused,
            Notice::Unreachable(by, code) => StreamError::Unreachable { by, code },
            // The hop limit ran out: that far nobody is.
            Notice::TimeExceeded(by) => StreamError::Unreachable { by, code: HOST },
            // What a link does not take is no reason to give up, and a header that cannot be read is none of TCP's.
            Notice::TooBig(_) | Notice::Parameter(..) => return,
        };
        let Some(slot) = self.find(ends) else { return };
        let Some(connection) = self.live.get_mut(slot) else { return };
        if !connection.has_sent(number) {
            return;
        }
        if connection.socket().state() == State::SynSent {
            connection.failure = Some(failure);
            connection.abort();
            self.see_to(slot);
        } else {
            connection.doubt = Some(failure);
            self.serve(slot, now);
        }
    }
}

impl Connection {
    /// Whether what stands at that number is sent and not acknowledged.
    fn has_sent(&mut self, number: Seq) -> bool {
        let state = self.socket().state();
        self.una(state).since(number) <= 0 && number.is_before(self.shim.nxt)
    }
}

/// Code of "host unreachable" (RFC 792).
const HOST: u8 = 1;
