//! Reassembly as a station: fragments become datagrams.

#[cfg(test)]
mod tests;

use core::net::IpAddr;
use core::time::Duration;

use hibernet_snapshot::Instant;

use crate::drop_reason::DropReason;
use crate::event::{DropEvent, StackEvent};
use crate::fragments::{Bounds, Expired, Ingest, Ingested, Site};
use crate::hook::Hook;
use crate::icmp::IcmpError;
use crate::link::LinkId;
use crate::packet::{Keeper, Packet, Verdict};
use crate::route::is_own;
use crate::stack::Stack;

impl Stack {
    /// Holds a fragment, or puts the datagram it completes in its place.
    pub(super) fn defragment(&mut self, hook: Hook, packet: &mut Packet, now: Instant) -> Verdict {
        if packet.parsed().fragment.is_none() {
            return Verdict::Accept;
        }
        let site = Site {
            hook,
            zone: packet.zone.map_or(0, |zone| zone.id),
            link: packet.iif.and_then(|link| u16::try_from(link.index()).ok()).unwrap_or(0),
        };
        let sysctls = self.conntrack.sysctls();
        let v6 = Bounds {
            timeout: Duration::from_secs(sysctls.frag6_timeout.into()),
            high_thresh: usize::try_from(sysctls.frag6_high_thresh).unwrap_or(usize::MAX),
        };
        let Ingest { outcome, lost } = self.fragments.ingest(packet.bytes(), packet.parsed(), site, v6, now);
        let reason = match outcome {
            Ingested::Dropped(reason) => reason,
            _ => DropReason::FragmentInvalid,
        };
        self.note_lost(reason, hook, packet.iif, lost);
        match outcome {
            Ingested::Whole => Verdict::Accept,
            Ingested::Reassembled { datagram, cuts } => match packet.replace(datagram, cuts) {
                Ok(()) => Verdict::Accept,
                Err(reason) => Verdict::Drop(reason),
            },
            Ingested::Queued => Verdict::Stolen(Keeper::Fragments),
            Ingested::Dropped(reason) => Verdict::Drop(reason),
        }
    }

    /// Throws away fragments that have waited too long, and tells the senders that are to be told (RFC 792, RFC 8200
    /// section 4.5): of IPv4 those whose datagram was for this host.
    pub(crate) fn expire_fragments(&mut self, now: Instant) {
        let reason = DropReason::FragmentTimeout;
        for Expired { first, lost, site } in self.fragments.expire(now) {
            let iif = self.links.iter().map(|(link, _)| link).find(|link| link.index() == usize::from(site.link));
            self.note_lost(reason, site.hook, iif, lost);
            let (Some(first), Some(iif)) = (first, iif) else { continue };
            let Ok(packet) = Packet::received(iif, first) else { continue };
            let told = match packet.dst() {
                IpAddr::V4(_) => is_own(&self.links, packet.dst()),
                IpAddr::V6(_) => true,
            };
            if told && site.hook == Hook::Prerouting && iif != LinkId::LOOPBACK {
                self.answer_icmp(IcmpError::Reassembly, &packet);
            }
        }
    }

    /// Counts and tells of fragments that go with a datagram. How long they were is not known any more.
    fn note_lost(&mut self, reason: DropReason, hook: Hook, iif: Option<LinkId>, lost: usize) {
        for _ in 0..lost {
            self.stats.count_drop(reason);
            let (hook, chain, rule, oif, ends, len) = (Some(hook), None, None, None, None, 0);
            self.events.push(StackEvent::Drop(DropEvent { reason, hook, chain, rule, iif, oif, ends, len }));
        }
    }
}
