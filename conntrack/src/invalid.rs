//! Why conntrack calls a packet INVALID, or lets it pass without learning from it.

use core::fmt;

use serde::Serialize;

use crate::protocol::{SctpState, TcpSegmentKind, TcpState};
use crate::tuple::Direction;

/// Why a packet is INVALID: it fits no flow and may open none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub enum InvalidReason {
    /// No layer 4: a later fragment, "no next header", or extension headers that lead out of the datagram.
    NoTransportHeader,
    /// The header of this protocol is cut short.
    ShortPacket {
        /// The protocol.
        proto: u8,
    },
    /// A length or offset inside the header does not fit the datagram.
    Malformed {
        /// The protocol.
        proto: u8,
    },
    /// No checksum, where this protocol must have one.
    NoChecksum {
        /// The protocol.
        proto: u8,
    },
    /// The checksum of this protocol does not hold.
    BadChecksum {
        /// The protocol.
        proto: u8,
    },
    /// A protocol of the other IP family.
    WrongFamily {
        /// The protocol.
        proto: u8,
    },
    /// A set of TCP flags no segment has.
    TcpFlags {
        /// The flags as sent.
        flags: u8,
    },
    /// A segment that may not open a flow.
    TcpNotOpening {
        /// What kind of segment.
        kind: TcpSegmentKind,
    },
    /// A segment that does not fit the flow's state.
    TcpState {
        /// What kind of segment.
        kind: TcpSegmentKind,
        /// Which way it went.
        direction: Direction,
        /// The flow's state.
        state: TcpState,
    },
    /// Sequence number beyond the receiver's window.
    TcpSeqOverUpper {
        /// First number that is too high.
        bound: u32,
    },
    /// Acknowledges data that was never sent.
    TcpAckOverUpper {
        /// First number that is too high.
        bound: u32,
    },
    /// A RST below what its receiver has acknowledged already.
    TcpOldReset {
        /// The lowest that would do.
        bound: u32,
    },
    /// An ICMP type that is neither query nor error.
    IcmpType {
        /// ICMP or ICMPv6.
        proto: u8,
        /// The type.
        kind: u8,
    },
    /// An ICMP message that answers no flow.
    IcmpNotOpening {
        /// ICMP or ICMPv6.
        proto: u8,
        /// The type.
        kind: u8,
    },
    /// An ICMP error whose quoted packet cannot be read.
    IcmpInner {
        /// ICMP or ICMPv6.
        proto: u8,
    },
    /// An ICMP error about a packet of no flow.
    IcmpUnrelated {
        /// ICMP or ICMPv6.
        proto: u8,
    },
    /// An ICMP error that is not addressed to the sender of what it quotes.
    IcmpMisdirected {
        /// ICMP or ICMPv6.
        proto: u8,
    },
    /// A redirect from other than a link-local address, or from more than a hop away (RFC 4861, section 8.1).
    RedirectFromAfar {
        /// Its hop limit.
        ttl: u8,
    },
    /// SCTP chunks that do not belong together or are cut.
    SctpChunks,
    /// An SCTP packet that may not open an association.
    SctpNotOpening {
        /// Type of the chunk at fault.
        chunk: u8,
    },
    /// A verification tag that is not the association's.
    SctpTag {
        /// Found.
        tag: u32,
    },
    /// A chunk that does not fit the association's state.
    SctpState {
        /// Type of the chunk.
        chunk: u8,
        /// Which way it went.
        direction: Direction,
        /// The association's state.
        state: SctpState,
    },
}

impl fmt::Display for InvalidReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NoTransportHeader => f.write_str("no transport header"),
            Self::ShortPacket { proto } => write!(f, "proto {proto}: header is cut short"),
            Self::Malformed { proto } => write!(f, "proto {proto}: lengths do not fit the packet"),
            Self::NoChecksum { proto } => write!(f, "proto {proto}: checksum is missing"),
            Self::BadChecksum { proto } => write!(f, "proto {proto}: checksum does not hold"),
            Self::WrongFamily { proto } => write!(f, "proto {proto}: belongs to the other IP version"),
            Self::TcpFlags { flags } => write!(f, "proto 6: no segment has the flags {flags:#04x}"),
            Self::TcpNotOpening { kind } => write!(f, "proto 6: {kind} opens no flow"),
            Self::TcpState { kind, direction, state } => {
                write!(f, "proto 6: {kind} in {direction} direction does not fit state {}", state.name())
            }
            Self::TcpSeqOverUpper { bound } => {
                write!(f, "proto 6: SEQ reaches {bound} or above, over the window of the receiver")
            }
            Self::TcpAckOverUpper { bound } => write!(f, "proto 6: ACK is {bound} or above, of data not seen yet"),
            Self::TcpOldReset { bound } => write!(f, "proto 6: RST is below {bound}, which is acknowledged"),
            Self::IcmpType { proto, kind } => write!(f, "proto {proto}: no such type as {kind}"),
            Self::IcmpNotOpening { proto, kind } => write!(f, "proto {proto}: type {kind} opens no flow"),
            Self::IcmpInner { proto } => write!(f, "proto {proto}: the quoted packet cannot be read"),
            Self::IcmpUnrelated { proto } => write!(f, "proto {proto}: error about no known flow"),
            Self::IcmpMisdirected { proto } => {
                write!(f, "proto {proto}: error is not sent to the source of the packet it quotes")
            }
            Self::RedirectFromAfar { ttl } => write!(f, "proto 58: redirect is not from a neighbour, hop limit {ttl}"),
            Self::SctpChunks => f.write_str("proto 132: chunks are cut or do not belong together"),
            Self::SctpNotOpening { chunk } => write!(f, "proto 132: chunk {chunk} opens no association"),
            Self::SctpTag { tag } => write!(f, "proto 132: verification tag {tag:#010x} is not the association's"),
            Self::SctpState { chunk, direction, state } => {
                write!(f, "proto 132: chunk {chunk} in {direction} direction does not fit state {}", state.name())
            }
        }
    }
}

/// Why a packet passes as part of its flow, yet refreshes and counts nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub enum IgnoreReason {
    /// The other end may know better than we do what to make of it.
    TcpState {
        /// What kind of segment.
        kind: TcpSegmentKind,
        /// Which way it went.
        direction: Direction,
        /// The flow's state.
        state: TcpState,
    },
    /// Sends a little more than the receiver's window allows.
    TcpOvershoot {
        /// By how much.
        bytes: u32,
    },
    /// Repeats data that was acknowledged a window ago.
    TcpSeqUnderLower {
        /// Where the window began.
        bound: u32,
    },
    /// An acknowledgement that is long overdue.
    TcpAckUnderLower {
        /// Lowest number that would do, less one.
        bound: u32,
    },
    /// Answers a SYN that the tracker let through without believing it (RFC 5961, section 4).
    TcpChallengeAck,
    /// An SCTP chunk that changes nothing.
    SctpState {
        /// Type of the chunk.
        chunk: u8,
        /// Which way it went.
        direction: Direction,
        /// The association's state.
        state: SctpState,
    },
}

impl fmt::Display for IgnoreReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::TcpState { kind, direction, state } => {
                write!(f, "proto 6: {kind} in {direction} direction ignored in state {}", state.name())
            }
            Self::TcpOvershoot { bytes } => {
                write!(f, "proto 6: {bytes} bytes over the window of the receiver, ignored")
            }
            Self::TcpSeqUnderLower { bound } => {
                write!(f, "proto 6: SEQ is at or under {bound}, long acknowledged, ignored")
            }
            Self::TcpAckUnderLower { bound } => write!(f, "proto 6: ACK is at or under {bound}, long overdue, ignored"),
            Self::TcpChallengeAck => f.write_str("proto 6: challenge ACK ignored"),
            Self::SctpState { chunk, direction, state } => {
                write!(f, "proto 132: chunk {chunk} in {direction} direction ignored in state {}", state.name())
            }
        }
    }
}
