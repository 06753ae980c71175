//! Protocol trackers: pure functions from a packet and what is remembered of its flow to what becomes of both.
//!
//! They know no table, no NAT and no clock. Behaviour is the running kernel's, measured packet by packet.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

mod generic;
mod gre;
pub(crate) mod icmp;
mod sctp;
mod tcp;
mod udp;
mod udp_lite;

use hibernet_snapshot::Instant;

use crate::checksum;
use crate::headers::Parsed;
use crate::invalid::{IgnoreReason, InvalidReason};
use crate::protocol::ProtocolState;
use crate::status::Status;
use crate::sysctl::Sysctls;
use crate::tuple::{Direction, Tuple, proto};

/// A packet as a tracker sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packet<'a> {
    /// The whole datagram.
    pub(crate) datagram: &'a [u8],
    /// What its IP header says.
    pub(crate) parsed: &'a Parsed,
    /// Whether the transport checksum counts: for packets from a link while `nf_conntrack_checksum` is set, not for local ones.
    pub(crate) verify_checksum: bool,
}

impl<'a> Packet<'a> {
    /// Header and payload of layer 4.
    pub(crate) fn l4(&self) -> &'a [u8] {
        self.parsed.l4(self.datagram)
    }

    /// Fails where the checksum counts and does not hold.
    fn verify(&self) -> Result<(), InvalidReason> {
        if self.verify_checksum && !checksum::transport_holds(self.parsed, self.datagram) {
            return Err(InvalidReason::BadChecksum { proto: self.parsed.proto });
        }
        Ok(())
    }
}

/// A flow that its first packet has opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Opened {
    /// What the flow starts with.
    pub(crate) state: ProtocolState,
    /// Seconds until it goes, if nothing follows.
    pub(crate) timeout: u32,
}

/// What a packet does to its flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// Part of the flow: counted, and the timeout set.
    Accept {
        /// Seconds until the flow goes, if nothing follows.
        timeout: u32,
        /// The flow is ASSURED from now on (it may have been before).
        assure: bool,
        /// The protocol's state is another: an UPDATE event.
        changed: bool,
    },
    /// Passes as part of the flow, marks it as answered if it is the first reply; refreshes and counts nothing.
    Ignore {
        /// Why; `None` where nothing is wrong with it.
        why: Option<IgnoreReason>,
        /// The protocol's state is another all the same: an UPDATE event.
        changed: bool,
    },
    /// INVALID.
    Invalid(InvalidReason),
    /// INVALID, and both sides seem to be through: a flow that has `least` seconds or more left shall have `most` at most.
    InvalidEnding {
        /// Why.
        why: InvalidReason,
        /// A flow with less left keeps it.
        least: u32,
        /// Seconds it shall have left.
        most: u32,
    },
    /// The flow is over: it is destroyed and the packet opens a new one.
    Reopen,
    /// Passes and is counted; the flow goes at once.
    Remove,
}

impl Outcome {
    /// Accepted, with nothing to tell but the timeout.
    const fn refreshed(timeout: u32) -> Self {
        Self::Accept { timeout, assure: false, changed: false }
    }

    /// Ignored for a reason.
    const fn ignored(why: IgnoreReason) -> Self {
        Self::Ignore { why: Some(why), changed: false }
    }
}

/// Opens a flow with its first packet. An error is INVALID, and no flow.
pub(crate) fn open(
    packet: &Packet<'_>,
    tuple: &Tuple,
    sysctls: &Sysctls,
    now: Instant,
) -> Result<Opened, InvalidReason> {
    match tuple.proto {
        proto::TCP => tcp::open(packet, sysctls),
        proto::UDP => udp::open(packet, sysctls, now),
        proto::UDP_LITE => udp_lite::open(packet, sysctls),
        proto::SCTP => sctp::open(packet, sysctls),
        proto::ICMP | proto::ICMPV6 => icmp::open(packet, sysctls),
        proto::GRE => Ok(gre::open(sysctls)),
        _ => Ok(generic::open(sysctls)),
    }
}

/// Follows a flow with its next packet.
///
/// `status` is the flow's before this packet. On [`Outcome::Ignore`] and [`Outcome::Invalid`] the state may still have
/// learned something, as the kernel's does: the caller stores it in any case.
pub(crate) fn update(
    state: &mut ProtocolState,
    packet: &Packet<'_>,
    direction: Direction,
    status: Status,
    sysctls: &Sysctls,
    now: Instant,
) -> Outcome {
    match state {
        ProtocolState::Tcp(track) => tcp::update(track, packet, direction, status, sysctls),
        ProtocolState::Udp(track) => udp::update(track, packet, status, sysctls, now),
        ProtocolState::Sctp(track) => sctp::update(track, packet, direction, sysctls),
        ProtocolState::Other => match packet.parsed.proto {
            proto::ICMP | proto::ICMPV6 => icmp::update(packet, sysctls),
            proto::GRE => gre::update(status, sysctls),
            proto::UDP_LITE => udp_lite::update(packet, status, sysctls),
            _ => generic::update(sysctls),
        },
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
