//! A flow as people, saves and tests see it.

use core::fmt;
use core::time::Duration;

use crate::protocol::ProtocolState;
use crate::status::Status;
use crate::tuple::{Direction, Tuple, Zone, proto};

/// Packets and bytes of a flow (`nf_conntrack_acct`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Packets in the original, in the reply direction.
    pub packets: [u64; 2],
    /// Bytes, from the IP header on.
    pub bytes: [u64; 2],
}

impl Counters {
    /// Whether the flow is counted: the first packet is, or none.
    pub fn are_kept(&self) -> bool {
        self.packets != [0; 2]
    }

    /// Counts one packet.
    pub(crate) fn count(&mut self, direction: Direction, length: usize) {
        let at = direction.index();
        if let (Some(packets), Some(bytes)) = (self.packets.get_mut(at), self.bytes.get_mut(at)) {
            *packets = packets.saturating_add(1);
            *bytes = bytes.saturating_add(length as u64);
        }
    }
}

/// One flow, unpacked: what a save writes, what `list` prints.
///
/// `Display` is the line `conntrack -L` prints.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FlowRecord {
    /// The initiator's direction, as its packets arrive.
    pub orig: Tuple,
    /// The answers' direction, as they arrive. Differs from the inverse of `orig` where NAT is at work.
    pub reply: Tuple,
    /// Zone.
    pub zone: Zone,
    /// Status bits.
    pub status: Status,
    /// Time until the flow is forgotten.
    pub remaining: Duration,
    /// State of the protocol.
    pub protocol: ProtocolState,
    /// Mark (`ct mark`).
    pub mark: u32,
    /// Accounting.
    pub counters: Counters,
}

impl FlowRecord {
    /// The tuple of one direction.
    pub const fn tuple(&self, direction: Direction) -> &Tuple {
        match direction {
            Direction::Original => &self.orig,
            Direction::Reply => &self.reply,
        }
    }
}

impl fmt::Display for FlowRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { orig, reply, zone, status, remaining, protocol, mark, counters } = self;
        write!(f, "{:<8} {} {} ", protocol_name(orig.proto), orig.proto, remaining.as_secs())?;
        match protocol {
            ProtocolState::Tcp(track) => write!(f, "{} ", track.state.name())?,
            ProtocolState::Sctp(track) => write!(f, "{} ", track.state.name())?,
            ProtocolState::Udp(_) | ProtocolState::Other => {}
        }
        let [packets, reply_packets] = counters.packets;
        let [bytes, reply_bytes] = counters.bytes;
        let kept = counters.are_kept();
        let counted = |packets: u64, bytes: u64| match kept {
            true => format!("packets={packets} bytes={bytes} "),
            false => String::new(),
        };
        write!(f, "{}{}", Ends(orig), counted(packets, bytes))?;
        if !status.contains(Status::SEEN_REPLY) {
            f.write_str("[UNREPLIED] ")?;
        }
        write!(f, "{}{}", Ends(reply), counted(reply_packets, reply_bytes))?;
        if status.contains(Status::ASSURED) {
            f.write_str("[ASSURED] ")?;
        }
        if status.contains(Status::SEVERED) {
            f.write_str("[SEVERED] ")?;
        }
        write!(f, "mark={mark}")?;
        match zone {
            Zone { id: 0, .. } => {}
            Zone { id, orig_only: true } => write!(f, " zone-orig={id}")?,
            Zone { id, orig_only: false } => write!(f, " zone={id}")?,
        }
        f.write_str(" use=1")
    }
}

struct Ends<'a>(&'a Tuple);

impl fmt::Display for Ends<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tuple = self.0;
        write!(f, "src={} dst={} ", tuple.src, tuple.dst)?;
        match tuple.proto {
            proto::TCP | proto::UDP | proto::SCTP | proto::UDP_LITE => {
                write!(f, "sport={} dport={} ", tuple.sport, tuple.dport)
            }
            proto::ICMP | proto::ICMPV6 => {
                write!(f, "type={} code={} id={} ", tuple.icmp_type(), tuple.icmp_code(), tuple.sport)
            }
            proto::GRE => write!(f, "srckey={:#x} dstkey={:#x} ", tuple.sport, tuple.dport),
            _ => Ok(()),
        }
    }
}

fn protocol_name(number: u8) -> &'static str {
    match number {
        proto::ICMP => "icmp",
        proto::TCP => "tcp",
        proto::UDP => "udp",
        proto::GRE => "gre",
        proto::ICMPV6 => "icmpv6",
        proto::SCTP => "sctp",
        proto::UDP_LITE => "udplite",
        _ => "unknown",
    }
}
