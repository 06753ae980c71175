//! A stack as hooks alone: behind INPUT and in front of OUTPUT stands a host with sockets of its own.

use core::net::IpAddr;
use std::collections::VecDeque;

use hibernet_snapshot::Instant;

use super::HookedError;
use crate::hook::Hook;
use crate::link::LinkId;
use crate::packet::Packet;
use crate::route::NextHop;
use crate::stack::Stack;
use crate::stats::count;

/// The host behind the hooks.
#[derive(Debug, Default)]
pub(crate) struct Sink {
    /// What INPUT has accepted.
    accepted: VecDeque<Vec<u8>>,
    /// The address the host speaks from, while it speaks: what is sent there is for the host itself.
    speaker: Option<IpAddr>,
}

impl Stack {
    /// PREROUTING and INPUT for a datagram of the one link.
    pub(super) fn hooks_in(&mut self, datagram: Vec<u8>, now: Instant) {
        self.tell(now);
        self.expire_fragments(now);
        count(&mut self.stats.received);
        let len = datagram.len();
        match self.only_link().ok_or(crate::DropReason::NoSuchLink).and_then(|link| Packet::received(link, datagram)) {
            Ok(packet) => self.receive(packet, now),
            Err(reason) => self.drop_unread(reason, self.only_link(), len),
        }
        self.settle(now);
    }

    /// OUTPUT and POSTROUTING for a datagram of the host.
    pub(super) fn hooks_out(&mut self, datagram: Vec<u8>, now: Instant) {
        self.tell(now);
        self.expire_fragments(now);
        let speaker = hibernet_conntrack::parse(&datagram).ok().map(|parsed| parsed.src);
        if let Some(sink) = &mut self.sink {
            sink.speaker = speaker;
        }
        // smoltcp has no place for errors of a device: a drop is counted and told of.
        let _outcome = self.originate(datagram, now);
        self.settle(now);
        if let Some(sink) = &mut self.sink {
            sink.speaker = None;
        }
    }

    /// What INPUT has accepted since this was last asked.
    pub(super) fn take_accepted(&mut self) -> VecDeque<Vec<u8>> {
        self.sink.as_mut().map(|sink| core::mem::take(&mut sink.accepted)).unwrap_or_default()
    }

    /// INPUT, then out to the host. Whether it has the address is for the host to say.
    pub(crate) fn hand_out(&mut self, packet: Packet, now: Instant) {
        let Ok(packet) = self.run_hook(Hook::Input, packet, now) else { return };
        count(&mut self.stats.delivered);
        if let Some(sink) = &mut self.sink {
            sink.accepted.push_back(packet.into_bytes());
        }
    }

    /// The way out of what the host, or a hook in its name, sends: to the link, or back to the host.
    pub(crate) fn way_out_of(&self, sink: &Sink, dst: IpAddr) -> Option<NextHop> {
        let link = if sink.speaker == Some(dst) { LinkId::LOOPBACK } else { self.only_link()? };
        Some(NextHop { link, via: None })
    }

    fn only_link(&self) -> Option<LinkId> {
        self.links.iter().map(|(link, _)| link).find(|link| *link != LinkId::LOOPBACK)
    }
}

/// Refuses a stack that is more than hooks.
pub(super) fn checked(stack: &Stack) -> Result<(), HookedError> {
    let (sockets, _) = stack.local.datagrams().count();
    let one_link = matches!(stack.links(), [_]);
    let found = match () {
        () if !one_link => "another number of links",
        () if stack.links().iter().any(|link| !link.addrs.is_empty()) => "addresses",
        () if !stack.routes().is_empty() => "routes",
        () if stack.local.services() != crate::LocalServices::default() => "services",
        () if sockets > 0 => "sockets",
        () => return Ok(()),
    };
    Err(HookedError::AnotherKind { found })
}
