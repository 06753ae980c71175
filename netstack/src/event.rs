//! What the stack tells its embedder, in a queue that is bounded and counts what it lost.

use core::net::IpAddr;
use std::collections::VecDeque;

use hibernet_conntrack::{ConntrackEvent, CtState, Direction};

use crate::drop_reason::DropReason;
use crate::hook::Hook;
use crate::link::LinkId;

/// Something worth telling. Taken with [`Stack::next_event`](crate::Stack::next_event).
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum StackEvent {
    /// A flow was made, changed or ended.
    Conntrack(ConntrackEvent),
    /// A packet was dropped.
    Drop(DropEvent),
    /// A rule with the action `log` matched.
    Log(LogEvent),
    /// Connection tracking finds fault with a packet: the line the kernel would log (`nf_conntrack_log_invalid`).
    Invalid {
        /// What is wrong.
        reason: String,
    },
}

/// A packet that went no further.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DropEvent {
    /// Why.
    pub reason: DropReason,
    /// The hook it was dropped at; `None` between hooks.
    pub hook: Option<Hook>,
    /// The chain whose rule or policy said so.
    pub chain: Option<String>,
    /// The rule's number in its chain, from 0.
    pub rule: Option<usize>,
    /// Link it came in on.
    pub iif: Option<LinkId>,
    /// Link it would have left on.
    pub oif: Option<LinkId>,
    /// Between whom; `None` for what never became a packet, or is not known any more.
    pub ends: Option<PacketEnds>,
    /// Length of the datagram; 0 for a fragment that had waited and goes with its datagram.
    pub len: usize,
}

/// Between whom a packet travels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PacketEnds {
    /// Its source.
    pub src: IpAddr,
    /// Its destination.
    pub dst: IpAddr,
    /// Layer 4 protocol (IANA).
    pub proto: u8,
    /// Source and destination port, where the protocol has them and they are in this packet.
    pub ports: Option<(u16, u16)>,
}

/// A packet as a `log` rule saw it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogEvent {
    /// The rule's text.
    pub prefix: String,
    /// Where the rule stands.
    pub hook: Hook,
    /// What connection tracking says of the packet; `None` before it was asked.
    pub state: Option<CtState>,
    /// Which way of its flow the packet travels.
    pub direction: Option<Direction>,
    /// Link it came in on.
    pub iif: Option<LinkId>,
    /// Link it leaves on, once known.
    pub oif: Option<LinkId>,
    /// Whether this host made it.
    pub local: bool,
    /// The bytes at this point.
    pub datagram: Vec<u8>,
}

/// First in, first out; at the limit the newest is lost and counted. Rules that log may hold no more than so many bytes of
/// datagrams in it: a rule set decides how often a packet is logged.
#[derive(Debug)]
pub(crate) struct EventQueue {
    queue: VecDeque<StackEvent>,
    capacity: usize,
    /// Bytes of datagrams in the queue.
    logged: usize,
    lost: u64,
}

impl EventQueue {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { queue: VecDeque::new(), capacity, logged: 0, lost: 0 }
    }

    pub(crate) fn push(&mut self, event: StackEvent) {
        let logged = self.logged.saturating_add(logged_bytes(&event));
        if self.queue.len() < self.capacity && (logged == self.logged || logged <= MOST_LOGGED) {
            self.logged = logged;
            self.queue.push_back(event);
        } else {
            self.lost = self.lost.saturating_add(1);
        }
    }

    pub(crate) fn pop(&mut self) -> Option<StackEvent> {
        let event = self.queue.pop_front();
        self.logged = self.logged.saturating_sub(event.as_ref().map_or(0, logged_bytes));
        event
    }

    /// How many events found no room since the stack was made.
    pub(crate) const fn lost(&self) -> u64 {
        self.lost
    }
}

fn logged_bytes(event: &StackEvent) -> usize {
    match event {
        StackEvent::Log(log) => log.datagram.len(),
        _ => 0,
    }
}

/// Bytes of logged datagrams that wait for the embedder at most.
const MOST_LOGGED: usize = 16 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logged_datagrams_have_a_bound_of_their_own_and_other_events_do_not_mind() {
        let log = |len| {
            StackEvent::Log(LogEvent {
                prefix: String::new(),
                hook: Hook::Input,
                state: None,
                direction: None,
                iif: None,
                oif: None,
                local: false,
                datagram: vec![0; len],
            })
        };
        let mut queue = EventQueue::new(100);
        queue.push(log(MOST_LOGGED));
        queue.push(log(1));
        queue.push(StackEvent::Invalid { reason: String::new() });
        assert_eq!((queue.queue.len(), queue.lost()), (2, 1));
        queue.pop();
        queue.push(log(1));
        assert_eq!((queue.queue.len(), queue.lost()), (2, 1));
    }

    #[test]
    fn a_full_queue_keeps_the_oldest_and_counts_the_rest() {
        let mut queue = EventQueue::new(2);
        for number in 0..5 {
            queue.push(StackEvent::Invalid { reason: number.to_string() });
        }
        assert_eq!(queue.pop(), Some(StackEvent::Invalid { reason: "0".into() }));
        assert_eq!(queue.pop(), Some(StackEvent::Invalid { reason: "1".into() }));
        assert_eq!(queue.pop(), None);
        assert_eq!(queue.lost(), 3);
    }
}
