//! Why a packet goes no further: numbered, named, counted.

use core::fmt;

use hibernet_conntrack::{ParseError, Refusal};
use serde::{Deserialize, Serialize};

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $number:literal, $name:literal;)+) => {
        /// Why a packet was dropped. Every drop in the stack has one of these, a counter and an event.
        ///
        /// Numbers are part of the interface and of the saved form: they are never reused for something else.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        #[repr(u16)]
        #[non_exhaustive]
        pub enum DropReason {
            $($(#[doc = $doc])+ $variant = $number,)+
        }

        impl DropReason {
            /// All reasons, by ascending number.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The name: short, in snake case, stable.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// What it means, in a line or two.
            pub const fn description(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc,)+).trim_ascii(),)+ }
            }
        }
    };
}

drop_reasons! {
    /// No IPv4 or IPv6 header: too short, or of another version.
    NotIp = 1, "not_ip";
    /// The header's own length field is too small or runs past the packet.
    HeaderLength = 2, "header_length";
    /// The packet is shorter than its header says.
    Truncated = 3, "truncated";
    /// The IPv4 header checksum is wrong.
    HeaderChecksum = 4, "header_checksum";
    /// A chain of IPv6 extension headers that does not end, or runs past the packet.
    ExtensionHeader = 5, "extension_header";
    /// An address that may not be on the wire: loopback, multicast source, unspecified.
    Martian = 6, "martian";
    /// The frame came in on a link that does not exist, or on the loopback link from outside.
    NoSuchLink = 7, "no_such_link";
    /// Longer than an IP datagram can be.
    TooLong = 8, "too_long";
    /// What the link says of a missing checksum or of segmentation does not fit the packet.
    OffloadInvalid = 9, "offload_invalid";

    /// A fragment that overlaps another of its datagram (RFC 5722; the kernel throws the whole datagram away).
    FragmentOverlap = 16, "fragment_overlap";
    /// A fragment of impossible place or size.
    FragmentInvalid = 17, "fragment_invalid";
    /// The rest of a datagram did not come in time.
    FragmentTimeout = 18, "fragment_timeout";
    /// The memory for unfinished datagrams is used up.
    FragmentMemory = 19, "fragment_memory";
    /// A fragment whose bytes are all there already.
    FragmentDuplicate = 20, "fragment_duplicate";

    /// The flow table is full (`nf_conntrack_max`).
    TableFull = 32, "table_full";
    /// Another packet's flow with the same tuples entered the table first.
    ConfirmClash = 33, "confirm_clash";
    /// No free port or id for the translation that a rule asks for.
    NatNoPort = 34, "nat_no_port";
    /// The translation cannot be written into this packet.
    NatUntranslatable = 35, "nat_untranslatable";
    /// Refused by connection tracking for a cause without a number of its own.
    TrackRefused = 36, "track_refused";
    /// The link a masquerade would take its address from has none of that family.
    NatNoAddress = 37, "nat_no_address";
    /// The source has as many half-open TCP connections as it may have.
    HalfOpenLimit = 38, "half_open_limit";
    /// A late packet of a flow that this fork has reset. If its sender has the inside end it was told so again; outside nobody
    /// is told.
    ForkReset = 39, "fork_reset";
    /// A late packet of a flow that this fork has ended, from who is not told so: anybody outside, or anybody at all where
    /// the fork's rule said drop.
    ForkSevered = 40, "fork_severed";

    /// A rule said drop.
    Rule = 48, "rule";
    /// No rule matched and the chain's policy is drop.
    Policy = 49, "policy";
    /// A rule said reject; the sender was told, if it may be told.
    Reject = 50, "reject";

    /// No route to the destination.
    NoRoute = 64, "no_route";
    /// The time to live or hop limit ran out here.
    TimeToLive = 65, "time_to_live";
    /// Larger than the next link takes, and not to be fragmented.
    PacketTooBig = 66, "packet_too_big";
    /// A multicast or broadcast packet that is not for this host; nothing of the kind is forwarded.
    NotForwardable = 67, "not_forwardable";
    /// A link-local source or destination that would have to leave its link.
    Scope = 68, "scope";

    /// No socket is bound to the port; the sender was told.
    PortUnreachable = 80, "port_unreachable";
    /// Nothing here speaks the protocol; the sender was told.
    ProtocolUnreachable = 81, "protocol_unreachable";
    /// The transport header or its checksum is wrong.
    LocalMalformed = 82, "local_malformed";
    /// The socket's buffer is full.
    SocketBufferFull = 83, "socket_buffer_full";
    /// All places for local TCP connections are taken.
    LocalBacklogFull = 84, "local_backlog_full";
    /// An echo request to a broadcast address: never answered (RFC 1122, section 3.2.2.6).
    EchoBroadcast = 85, "echo_broadcast";
    /// Nothing here listens to this multicast or broadcast.
    NoListener = 86, "no_listener";
    /// A TCP segment of no connection and to no listener; the sender was sent a reset.
    NoConnection = 87, "no_connection";
    /// A TCP segment that cannot be of the connection as it stands (RFC 9293, section 3.10.7.4; RFC 5961): its sender was told
    /// where the connection is, unless it had been told often enough.
    TcpUnacceptable = 88, "tcp_unacceptable";
    /// A TCP segment whose timestamp is older than the last one (RFC 7323, section 5): a wanderer of earlier numbers.
    TcpOldTimestamp = 89, "tcp_old_timestamp";
    /// The embedder has no place for another flow of those that `tproxy` rules hand to it; the sender was told.
    ProxyFull = 93, "proxy_full";
    /// A SYN that came again while its first waits for the embedder's word: the later one waits in its place.
    OpeningRepeated = 94, "opening_repeated";
    /// The destination of what a `tproxy` rule has handed to the embedder was not reached; the sender was told, unless the
    /// destination kept silent.
    ProxyUnreached = 95, "proxy_unreached";

    /// The queue of packets on their way out is full.
    EgressFull = 96, "egress_full";
    /// Too much work from one packet: answers to answers.
    WorkLimit = 97, "work_limit";

    /// The frame is shorter than an Ethernet header, or says that it comes from a group.
    FrameMalformed = 112, "frame_malformed";
    /// The frame is for another station.
    FrameOtherHost = 113, "frame_other_host";
    /// The frame has a VLAN tag; links carry frames without.
    FrameVlan = 114, "frame_vlan";
    /// The frame carries neither IPv4 nor IPv6 nor ARP.
    FrameEthertype = 115, "frame_ethertype";
    /// No ARP request or reply between Ethernet and IPv4, or with addresses that no host can have.
    ArpInvalid = 116, "arp_invalid";
    /// A message of neighbour discovery that a receiver must discard (RFC 4861, section 7.1).
    NdpInvalid = 117, "ndp_invalid";
    /// The next hop did not tell its hardware address; the sender was told, if it may be told.
    NeighbourUnreachable = 118, "neighbour_unreachable";
    /// Too much waits for hardware addresses; the packet that had waited longest makes room.
    NeighbourQueueFull = 119, "neighbour_queue_full";
    /// The packet waited for a neighbour that had to make room for another.
    NeighbourTableFull = 120, "neighbour_table_full";
}

impl DropReason {
    /// The number; stable.
    pub const fn number(self) -> u16 {
        self as u16
    }

    /// The reason of that number.
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.number() == number)
    }
}

impl From<ParseError> for DropReason {
    fn from(error: ParseError) -> Self {
        match error {
            ParseError::Short { .. } | ParseError::Version { .. } => Self::NotIp,
            ParseError::HeaderLength { .. } => Self::HeaderLength,
            ParseError::Length { .. } => Self::Truncated,
            ParseError::HeaderChecksum => Self::HeaderChecksum,
            ParseError::Source { .. } | ParseError::Destination { .. } => Self::Martian,
            ParseError::HopByHop { .. } => Self::ExtensionHeader,
        }
    }
}

impl From<Refusal> for DropReason {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::TableFull => Self::TableFull,
            Refusal::HalfOpenLimit => Self::HalfOpenLimit,
            Refusal::Reset => Self::ForkReset,
            Refusal::Severed => Self::ForkSevered,
            Refusal::Clash => Self::ConfirmClash,
            Refusal::NatExhausted => Self::NatNoPort,
            Refusal::Untranslatable => Self::NatUntranslatable,
            _ => Self::TrackRefused,
        }
    }
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_ascend_and_names_are_unique() {
        assert!(DropReason::ALL.windows(2).all(|pair| pair[0].number() < pair[1].number()));
        let mut names: Vec<_> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), DropReason::ALL.len());
    }

    #[test]
    fn the_numbered_list_changes_only_on_purpose() {
        let list: String =
            DropReason::ALL.iter().map(|r| format!("{:>3} {}: {}\n", r.number(), r.name(), r.description())).collect();
        insta::assert_snapshot!(list);
    }

    #[test]
    fn the_document_has_the_table_of_the_code() {
        let row = |r: &DropReason| format!("| {} | `{}` | {} |\n", r.number(), r.name(), r.description());
        let table: String = DropReason::ALL.iter().map(row).collect();
        let document = include_str!("../../DROP-REASONS.md");
        let written = document.split_once("| ---: | --- | --- |\n").map(|(_, table)| table);
        assert_eq!(written, Some(table.as_str()), "DROP-REASONS.md must end with the table on the right");
    }

    #[test]
    fn every_number_leads_back_to_its_reason() {
        for reason in DropReason::ALL {
            assert_eq!(DropReason::from_number(reason.number()), Some(*reason));
        }
        assert_eq!(DropReason::from_number(0), None);
    }
}
