//! The last events of a stack, for who asks.

use std::collections::VecDeque;

use hibernet_conntrack::proto;
use hibernet_netstack::DropEvent;
use hibernet_netstack::LinkId;
use hibernet_netstack::PacketEnds;
use hibernet_netstack::Stack;
use hibernet_netstack::StackEvent;

use crate::control::EventReply;
use crate::control::EventsReply;

/// Drops and logged packets, the newest kept, each with a number.
#[derive(Debug, Default)]
pub(super) struct EventLog {
    kept: VecDeque<StackEvent>,
    /// The number of the next.
    next: u64,
}

impl EventLog {
    /// Keeps an event, if it is one that tells what became of a packet.
    pub(super) fn note(&mut self, event: StackEvent) {
        if matches!(event, StackEvent::Conntrack(_)) {
            return;
        }
        if self.kept.len() >= MOST {
            self.kept.pop_front();
        }
        self.kept.push_back(event);
        self.next = self.next.saturating_add(1);
    }

    /// What has come after the event of that number.
    pub(super) fn reply(&self, after: Option<u64>, stack: &Stack) -> EventsReply {
        let first = self.next.saturating_sub(self.kept.len() as u64);
        let from = after.map_or(first, |after| after.saturating_add(1));
        let numbered = (first..).zip(&self.kept).filter(|(number, _)| *number >= from);
        EventsReply {
            events: numbered.map(|(number, event)| reply(number, event, stack)).collect(),
            lost: first.saturating_sub(from),
        }
    }
}

fn reply(number: u64, event: &StackEvent, stack: &Stack) -> EventReply {
    let name = |link: Option<LinkId>| link.and_then(|link| stack.link_name(link)).map(str::to_owned);
    match event {
        StackEvent::Drop(DropEvent { reason, hook, chain, rule, iif, oif: _, ends, len }) => {
            let place = match (chain, rule) {
                (Some(chain), Some(rule)) => format!(" by {chain} rule {rule}"),
                (Some(chain), None) => format!(" by the policy of {chain}"),
                _ => hook.map(|hook| format!(" at {hook}")).unwrap_or_default(),
            };
            let between = ends.as_ref().map(ends_text).unwrap_or_default();
            let text = format!("drop {reason}{place}: {between} ({len} bytes)");
            let (reason, iif) = (Some(reason.name().to_owned()), name(*iif));
            let (src, dst) = ends.map(|ends| end_texts(&ends)).unzip();
            EventReply {
                number,
                kind: "drop".to_owned(),
                reason,
                chain: chain.clone(),
                rule: *rule,
                iif,
                src,
                dst,
                text,
            }
        }
        StackEvent::Log(log) => {
            let text = format!("log {} at {}: {} bytes", log.prefix, log.hook, log.datagram.len());
            EventReply { number, kind: "log".to_owned(), iif: name(log.iif), text, ..EventReply::default() }
        }
        StackEvent::Invalid { reason } => {
            EventReply { number, kind: "invalid".to_owned(), text: reason.clone(), ..EventReply::default() }
        }
        other => EventReply { number, kind: "other".to_owned(), text: format!("{other:?}"), ..EventReply::default() },
    }
}

fn ends_text(ends: &PacketEnds) -> String {
    let (src, dst) = end_texts(ends);
    let protocol = match ends.proto {
        proto::TCP => "tcp".to_owned(),
        proto::UDP => "udp".to_owned(),
        proto::ICMP => "icmp".to_owned(),
        proto::ICMPV6 => "icmp6".to_owned(),
        number => format!("protocol {number}"),
    };
    format!("{protocol} {src} > {dst}")
}

fn end_texts(ends: &PacketEnds) -> (String, String) {
    let PacketEnds { src, dst, proto: _, ports } = *ends;
    match ports {
        Some((sport, dport)) => {
            (std::net::SocketAddr::new(src, sport).to_string(), std::net::SocketAddr::new(dst, dport).to_string())
        }
        None => (src.to_string(), dst.to_string()),
    }
}

/// Events kept.
const MOST: usize = 4096;
