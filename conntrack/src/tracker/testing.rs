//! Packets for the trackers' tests, built so that every checksum holds.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hibernet_snapshot::Instant;

use super::{Outcome, Packet, open, update};
use crate::checksum;
use crate::headers::{parse, tuple_of};
use crate::invalid::InvalidReason;
use crate::protocol::ProtocolState;
use crate::status::Status;
use crate::sysctl::Sysctls;
use crate::tuple::{Direction, proto};

/// IP version a test runs in. Most run in both.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// Who opens the flow.
    pub(crate) fn client(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(10, 0, 0, 2).into(),
            Self::V6 => Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, 2).into(),
        }
    }

    /// Who answers.
    pub(crate) fn server(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(198, 51, 100, 10).into(),
            Self::V6 => Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x10).into(),
        }
    }

    /// Source and destination of a packet of a direction.
    pub(crate) fn ends(self, direction: Direction) -> (IpAddr, IpAddr) {
        match direction {
            Direction::Original => (self.client(), self.server()),
            Direction::Reply => (self.server(), self.client()),
        }
    }
}

/// A datagram around some layer 4 bytes, whose checksum field is filled in.
pub(crate) fn datagram(src: IpAddr, dst: IpAddr, protocol: u8, mut l4: Vec<u8>) -> Vec<u8> {
    fill_checksum(src, dst, protocol, &mut l4);
    wrap(src, dst, protocol, &l4)
}

/// A datagram around layer 4 bytes as they are.
pub(crate) fn wrap(src: IpAddr, dst: IpAddr, protocol: u8, l4: &[u8]) -> Vec<u8> {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let mut header = vec![0x45, 0, 0, 0, 0x42, 0x42, 0x40, 0, 64, protocol, 0, 0];
            header.extend(src.octets());
            header.extend(dst.octets());
            let length = u16::try_from(20 + l4.len()).unwrap();
            header[2..4].copy_from_slice(&length.to_be_bytes());
            let sum = !checksum::ones_complement_sum(0, &header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            [&header, l4].concat()
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let length = u16::try_from(l4.len()).unwrap().to_be_bytes();
            let header = [0x60, 0, 0, 0, length[0], length[1], protocol, 64];
            [&header[..], &src.octets(), &dst.octets(), l4].concat()
        }
        _ => panic!("{src} and {dst} are of two families"),
    }
}

fn fill_checksum(src: IpAddr, dst: IpAddr, protocol: u8, l4: &mut [u8]) {
    let at = match protocol {
        proto::TCP => 16,
        proto::UDP => 6,
        proto::ICMP | proto::ICMPV6 => 2,
        proto::SCTP if l4.len() >= 12 => {
            l4[8..12].fill(0);
            let sum = !checksum::crc32c(!0, l4);
            l4[8..12].copy_from_slice(&sum.to_le_bytes());
            return;
        }
        _ => return,
    };
    if l4.len() < at + 2 {
        return;
    }
    l4[at..at + 2].fill(0);
    let start = match protocol {
        proto::ICMP => 0,
        _ => checksum::pseudo_header_sum(src, dst, protocol, l4.len()),
    };
    let sum = !checksum::ones_complement_sum(start, l4);
    l4[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// One flow, followed as the table would: what it remembers and what its caller sets.
#[derive(Clone, Debug)]
pub(crate) struct Flow {
    pub(crate) state: ProtocolState,
    pub(crate) status: Status,
    pub(crate) timeout: u32,
}

impl Flow {
    /// Opens a flow with a datagram.
    pub(crate) fn open(datagram: &[u8], sysctls: &Sysctls, now: Instant) -> Result<Self, InvalidReason> {
        let parsed = parse(datagram).unwrap();
        let packet = Packet { datagram, parsed: &parsed, verify_checksum: sysctls.checksum };
        let opened = open(&packet, &tuple_of(&parsed, datagram)?, sysctls, now)?;
        Ok(Self { state: opened.state, status: Status::CONFIRMED, timeout: opened.timeout })
    }

    /// Follows it with another.
    pub(crate) fn follow(&mut self, datagram: &[u8], direction: Direction, sysctls: &Sysctls, now: Instant) -> Outcome {
        let parsed = parse(datagram).unwrap();
        let packet = Packet { datagram, parsed: &parsed, verify_checksum: sysctls.checksum };
        let outcome = update(&mut self.state, &packet, direction, self.status, sysctls, now);
        if let Outcome::Accept { timeout, assure, .. } = outcome {
            self.timeout = timeout;
            self.status.set(Status::ASSURED, assure || self.status.contains(Status::ASSURED));
        }
        if direction == Direction::Reply && matches!(outcome, Outcome::Accept { .. } | Outcome::Ignore { .. }) {
            self.status |= Status::SEEN_REPLY;
        }
        outcome
    }
}
