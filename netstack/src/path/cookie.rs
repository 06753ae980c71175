//! SYN cookies on a packet's way: a SYN that is to leave nothing behind, and the acknowledgement that proves a handshake.
//!
//! Such a SYN passes the rules as the first packet of a flow, which it owns; it is answered where the flow would enter the
//! table. So a flood takes no place in table or backlog, not even where the table is full, and a rule that would have
//! dropped the SYN still does. With the acknowledgement the flow begins: connection tracking is shown the handshake as it
//! was, so that neither `nf_conntrack_tcp_loose` nor windows are guessed at.

use core::net::SocketAddr;

use hibernet_conntrack::{Attachment, Origin, Refusal, Zone, proto};
use hibernet_snapshot::Instant;

use crate::hook::Hook;
use crate::local::Ends;
use crate::packet::Packet;
use crate::reject::transport_checksum_holds;
use crate::route::is_own;
use crate::stack::{Stack, Work};
use crate::stats::count;

impl Stack {
    /// What `track` attaches to a packet that has to do with cookies; `None` to all others.
    pub(super) fn track_cookie(
        &mut self,
        hook: Hook,
        packet: &Packet,
        zone: Zone,
        origin: Origin,
        now: Instant,
    ) -> Option<Result<Attachment, Refusal>> {
        if hook != Hook::Prerouting || packet.link_group || !self.local.deals_in_cookies(now) {
            return None;
        }
        let (ends, flags) = ends_and_flags(packet)?;
        if !is_own(&self.links, ends.local.ip()) {
            return None;
        }
        match flags & (SYN | ACK | RST) {
            SYN if self.local.wants_cookie(&ends) => {
                Some(self.conntrack.track_without_room(packet.bytes(), packet.parsed(), zone, origin, now))
            }
            ACK => {
                let datagram = super::deliver::plain(packet);
                let handshake = self.local.handshake(&ends, &datagram, now)?;
                let opening = [handshake.syn.as_slice(), handshake.syn_ack.as_slice()];
                Some(self.conntrack.track_handshake(opening, packet.bytes(), packet.parsed(), zone, origin, now))
            }
            _ => None,
        }
    }

    /// Answers the SYN of a flow that is about to enter the table with a cookie, if its listener has no place for it.
    pub(super) fn answer_with_cookie(&mut self, packet: &Packet, now: Instant) -> bool {
        if packet.link_group || !self.local.deals_in_cookies(now) || packet.attachment().is_translated() {
            return false;
        }
        let Some((ends, SYN)) = ends_and_flags(packet).map(|(ends, flags)| (ends, flags & (SYN | ACK | RST))) else {
            return false;
        };
        if !packet.offload().vouches() && !transport_checksum_holds(packet.bytes(), packet.parsed()) {
            return false;
        }
        let datagram = super::deliver::plain(packet);
        let Some(answer) = self.local.cookie_for(&ends, &datagram, now) else { return false };
        let Ok(mut answer) = Packet::originated(answer) else { return false };
        answer.attachment = packet.attachment().reply();
        count(&mut self.stats.cookies_sent);
        count(&mut self.stats.originated);
        self.work.push_back(Work::Output(answer));
        true
    }
}

fn ends_and_flags(packet: &Packet) -> Option<(Ends, u8)> {
    if packet.parsed().proto != proto::TCP || packet.parsed().fragment.is_some() {
        return None;
    }
    let l4 = packet.parsed().l4(packet.bytes());
    let [s1, s0, d1, d0] = *l4.first_chunk()?;
    let local = SocketAddr::new(packet.dst(), u16::from_be_bytes([d1, d0]));
    let remote = SocketAddr::new(packet.src(), u16::from_be_bytes([s1, s0]));
    Some((Ends { local, remote }, *l4.get(FLAGS)?))
}

const FLAGS: usize = 13;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;
