//! What a flow remembers of its protocol: plain values, no behaviour.
//!
//! The trackers (module [`crate::tracker`]) change them; the table packs them into its entries; a save writes them.

use core::fmt;

use bitflags::bitflags;
use hibernet_snapshot::Instant;
use serde::{Deserialize, Serialize};

use crate::tuple::Direction;

/// Per-protocol state of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProtocolState {
    /// TCP, with the sequence window of both sides.
    Tcp(TcpTrack),
    /// UDP.
    Udp(UdpTrack),
    /// SCTP.
    Sctp(SctpTrack),
    /// ICMP queries, GRE and all that is tracked by address alone.
    Other,
}

/// A TCP flow as the tracker sees it.
///
/// Window fields carry the names of Guido van Rooij, "Real Stateful TCP Packet Filtering in IP Filter" (2000).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TcpTrack {
    /// State of the pair.
    pub state: TcpState,
    /// Original side, reply side.
    pub sides: [TcpSide; 2],
    /// How often the last segment has been repeated.
    pub retrans: u8,
    /// Direction of the last segment.
    pub last_dir: Direction,
    /// Kind of the last segment.
    pub last_index: TcpSegmentKind,
    /// Sequence number of the last segment.
    pub last_seq: u32,
    /// Acknowledgement number of the last segment.
    pub last_ack: u32,
    /// Sequence space the last segment took (data, SYN and FIN).
    pub last_len: u16,
    /// Window of the last segment, unscaled.
    pub last_win: u16,
    /// Window scale of an ignored SYN, for a resynchronisation.
    pub last_wscale: u8,
    /// Flags of an ignored SYN: `TcpSideFlags` bits, of which the low four are kept.
    pub last_flags: u8,
}

/// One side of a TCP flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TcpSide {
    /// Highest sequence number sent, plus length.
    pub td_end: u32,
    /// Highest sequence number this side may send: peer's ack plus window.
    pub td_maxend: u32,
    /// Largest window this side has offered, scaled.
    pub td_maxwin: u32,
    /// Highest acknowledgement sent.
    pub td_maxack: u32,
    /// Window scale, 0 to 14 (RFC 7323).
    pub scale: u8,
    /// What was seen of this side.
    pub flags: TcpSideFlags,
}

bitflags! {
    /// Per-side flags with the values ctnetlink shows (uapi `nf_conntrack_tcp.h`).
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct TcpSideFlags: u8 {
        /// Offered window scaling.
        const WINDOW_SCALE = 0x01;
        /// Offered selective acknowledgement.
        const SACK_PERM = 0x02;
        /// Has sent the first FIN.
        const CLOSE_INIT = 0x04;
        /// Window checks are off for this side.
        const BE_LIBERAL = 0x08;
        /// Has sent data that is not acknowledged.
        const DATA_UNACKNOWLEDGED = 0x10;
        /// `td_maxack` holds a number that was seen.
        const MAXACK_SET = 0x20;
        /// A challenge ACK is expected in answer to an ignored SYN.
        const EXP_CHALLENGE_ACK = 0x40;
        /// Both sides have sent a SYN.
        const SIMULTANEOUS_OPEN = 0x80;
    }
}

/// TCP states of conntrack, with the numbers ctnetlink shows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[repr(u8)]
#[expect(missing_docs, reason = "the kernel's names say it")]
pub enum TcpState {
    None = 0,
    SynSent = 1,
    SynRecv = 2,
    Established = 3,
    FinWait = 4,
    CloseWait = 5,
    LastAck = 6,
    TimeWait = 7,
    Close = 8,
    SynSent2 = 9,
}

impl TcpState {
    /// All states, by number.
    pub const ALL: [Self; 10] = [
        Self::None,
        Self::SynSent,
        Self::SynRecv,
        Self::Established,
        Self::FinWait,
        Self::CloseWait,
        Self::LastAck,
        Self::TimeWait,
        Self::Close,
        Self::SynSent2,
    ];

    /// The state of that number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// The kernel's name, as `conntrack -L` prints it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "NONE",
            Self::SynSent => "SYN_SENT",
            Self::SynRecv => "SYN_RECV",
            Self::Established => "ESTABLISHED",
            Self::FinWait => "FIN_WAIT",
            Self::CloseWait => "CLOSE_WAIT",
            Self::LastAck => "LAST_ACK",
            Self::TimeWait => "TIME_WAIT",
            Self::Close => "CLOSE",
            Self::SynSent2 => "SYN_SENT2",
        }
    }
}

/// The kinds of segment the TCP state table tells apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[repr(u8)]
#[expect(missing_docs, reason = "named after their flags")]
pub enum TcpSegmentKind {
    Syn = 0,
    SynAck = 1,
    Fin = 2,
    Ack = 3,
    Rst = 4,
    None = 5,
}

impl TcpSegmentKind {
    /// All kinds, by number.
    pub const ALL: [Self; 6] = [Self::Syn, Self::SynAck, Self::Fin, Self::Ack, Self::Rst, Self::None];

    /// The kind of that number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }
}

impl fmt::Display for TcpSegmentKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Syn => "SYN",
            Self::SynAck => "SYN-ACK",
            Self::Fin => "FIN",
            Self::Ack => "ACK",
            Self::Rst => "RST",
            Self::None => "segment without flags",
        })
    }
}

/// A UDP flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UdpTrack {
    /// From then on an answered flow counts as a stream: two seconds after its first packet.
    pub stream_at: Instant,
}

/// An SCTP association.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SctpTrack {
    /// State of the association.
    pub state: SctpState,
    /// Verification tag expected in packets of the original, of the reply direction (RFC 9260, section 8.5); 0 if unknown.
    pub vtag: [u32; 2],
    /// Direction of the last HEARTBEAT that came under another tag.
    pub last_dir: Direction,
    /// Bits of the tracker, the low three: such a HEARTBEAT has come, an INIT has come each way.
    pub flags: u8,
}

/// SCTP states of conntrack, with the numbers ctnetlink shows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[repr(u8)]
#[expect(missing_docs, reason = "the kernel's names say it")]
pub enum SctpState {
    None = 0,
    Closed = 1,
    CookieWait = 2,
    CookieEchoed = 3,
    Established = 4,
    ShutdownSent = 5,
    ShutdownRecd = 6,
    ShutdownAckSent = 7,
    HeartbeatSent = 8,
}

impl SctpState {
    /// All states, by number.
    pub const ALL: [Self; 9] = [
        Self::None,
        Self::Closed,
        Self::CookieWait,
        Self::CookieEchoed,
        Self::Established,
        Self::ShutdownSent,
        Self::ShutdownRecd,
        Self::ShutdownAckSent,
        Self::HeartbeatSent,
    ];

    /// The state of that number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// The kernel's name, as `conntrack -L` prints it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "NONE",
            Self::Closed => "CLOSED",
            Self::CookieWait => "COOKIE_WAIT",
            Self::CookieEchoed => "COOKIE_ECHOED",
            Self::Established => "ESTABLISHED",
            Self::ShutdownSent => "SHUTDOWN_SENT",
            Self::ShutdownRecd => "SHUTDOWN_RECD",
            Self::ShutdownAckSent => "SHUTDOWN_ACK_SENT",
            Self::HeartbeatSent => "HEARTBEAT_SENT",
        }
    }
}
