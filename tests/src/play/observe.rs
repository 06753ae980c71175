//! What the stack let out and told, as the oracle sees it from outside.

use hibernet_netstack::{DropReason, Hook, LinkId, LogEvent, Stack, StackEvent};

use super::table;
use crate::notation::{decode, hex_of, text};
use crate::record::{Event, Hop, Left, sort_destroyed};

/// What was seen since the last look.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) out: Vec<Left>,
    pub(super) packets: Vec<Vec<u8>>,
    pub(super) trace: Vec<Hop>,
    pub(super) events: Vec<Event>,
    pub(super) why: Vec<String>,
    pub(super) drops: Vec<DropReason>,
}

impl Seen {
    /// Empties the stack's queues. `raw`: a raw socket sent, and what it sends is complete when the observers see it.
    pub(super) fn take(stack: &mut Stack, names: &Names, raw: bool) -> Self {
        let mut seen = Self::default();
        let mut recognised: Vec<Vec<u8>> = Vec::new();
        let mut last_side = None;
        while let Some(event) = stack.next_event() {
            match event {
                StackEvent::Log(log) if !decode(&log.datagram).is_housekeeping() => {
                    if matches!(log.hook, Hook::Forward | Hook::Output) {
                        last_side = Some(log.hook);
                    }
                    let local = (log.hook == Hook::Postrouting).then_some(last_side == Some(Hook::Output));
                    let hop = names.hop(&log, local);
                    seen.trace.push(hop);
                    if local == Some(true) && (raw || seen.is_complete(&log.datagram)) {
                        recognised.push(log.datagram);
                    }
                }
                StackEvent::Conntrack(event) => seen.events.push(table::event(&event)),
                StackEvent::Invalid { reason } => seen.why.push(reason),
                StackEvent::Drop(drop) => seen.drops.push(drop.reason),
                _ => {}
            }
        }
        sort_destroyed(&mut seen.events);
        while let Some(egress) = stack.egress() {
            let packet = egress.datagram;
            if decode(&packet).is_housekeeping() {
                continue;
            }
            let (dev, hex, text) = (names.name(egress.link), hex_of(&packet), text(&packet));
            seen.out.push(Left { dev, hex, text, local: recognised.contains(&packet) });
            seen.packets.push(packet);
        }
        seen
    }

    /// Adds what was seen later.
    pub(super) fn extend(&mut self, later: Self) {
        let Self { out, packets, trace, events, why, drops } = later;
        self.out.extend(out);
        self.packets.extend(packets);
        self.trace.extend(trace);
        self.events.extend(events);
        self.why.extend(why);
        self.drops.extend(drops);
    }

    /// Whether a packet of the router's own has its checksum when the observers see it.
    ///
    /// A kernel fills in TCP checksums behind the last hook, so the bytes that leave are not those that were logged, and
    /// the oracle does not mark them `local`. Complete from the start are, as measured: the IPv4 reset that answers a
    /// packet for no socket, and the IPv6 reset of a `reject` rule.
    fn is_complete(&self, packet: &[u8]) -> bool {
        let decoded = decode(packet);
        let Some(flags) = decoded.field("flags") else { return true };
        let is_reset = flags.as_str().is_some_and(|flags| flags.contains('R'));
        let reached_socket = self.trace.iter().any(|hop| hop.hook == "input_end");
        let is_ipv4 = decoded.field("v").is_some_and(|version| version == 4);
        is_reset && is_ipv4 == reached_socket
    }
}

/// Names of the links.
#[derive(Debug)]
pub(super) struct Names(Vec<(LinkId, String)>);

impl Names {
    /// Looks the links of the topology up.
    pub(super) fn of(stack: &Stack) -> Self {
        let id = |name: &str| Some((stack.link(name)?, name.to_owned()));
        Self(["lo", "in", "out"].into_iter().filter_map(id).collect())
    }

    fn name(&self, link: LinkId) -> String {
        self.0.iter().find(|(id, _)| *id == link).map_or_else(|| format!("{link:?}"), |(_, name)| name.clone())
    }

    fn hop(&self, log: &LogEvent, local: Option<bool>) -> Hop {
        Hop {
            hook: log.prefix.clone(),
            state: log.state.map_or_else(|| "invalid".to_owned(), |state| state.to_string()),
            dir: log.direction.map(|direction| direction.to_string()),
            iif: log.iif.map(|link| self.name(link)),
            oif: log.oif.map(|link| self.name(link)),
            local,
        }
    }
}
