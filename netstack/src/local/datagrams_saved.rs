//! UDP and ping sockets in an image: with what waits in them, and checked on the way back.

use core::net::IpAddr;
use std::collections::{BTreeMap, VecDeque};

use hibernet_snapshot::{Invalid, Snapshot};

use super::sockets::{
    Arrival, DatagramSocket, MOST_BYTES, MOST_DATAGRAMS, MOST_IDS, MOST_QUEUED, MOST_SOCKETS, Notice, ReceiveLimits,
    SocketTable,
};
use super::{Datagrams, LocalServices};

/// UDP and ping sockets as they are saved.
#[derive(Clone, PartialEq, Eq, Debug, Snapshot)]
pub(crate) struct DatagramsSection {
    #[snapshot(saved)]
    udp: TableSection,
    #[snapshot(saved)]
    ping: TableSection,
}

/// The sockets of one kind by id.
#[derive(Clone, PartialEq, Eq, Debug, Snapshot)]
struct TableSection {
    /// The id of the next socket.
    #[snapshot(saved)]
    next: u64,
    #[snapshot(saved)]
    sockets: BTreeMap<u64, SocketSection>,
}

/// A socket. Its waker is the embedder's.
#[derive(Clone, PartialEq, Eq, Debug, Snapshot)]
struct SocketSection {
    #[snapshot(saved)]
    addr: IpAddr,
    /// Port or identifier.
    #[snapshot(saved)]
    number: u16,
    #[snapshot(saved)]
    peer: Option<(IpAddr, u16)>,
    #[snapshot(saved)]
    limits: ReceiveLimits,
    #[snapshot(saved)]
    waiting: Vec<Arrival>,
    #[snapshot(saved)]
    notice: Option<Notice>,
}

/// What a kind of socket can have.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Udp,
    Ping,
}

impl Datagrams {
    /// What is to be saved.
    pub(crate) fn section(&self) -> DatagramsSection {
        let Self { udp, ping } = self;
        DatagramsSection { udp: TableSection::of(udp), ping: TableSection::of(ping) }
    }
}

impl DatagramsSection {
    /// The sockets as they were saved, checked against all that the running stack relies on.
    pub(crate) fn into_datagrams(self, services: LocalServices) -> Result<Datagrams, Invalid> {
        let Self { udp, ping } = self;
        Ok(Datagrams {
            udp: udp.into_table(Kind::Udp, services.udp_echo).map_err(|invalid| invalid.within("udp"))?,
            ping: ping.into_table(Kind::Ping, None).map_err(|invalid| invalid.within("ping"))?,
        })
    }
}

impl TableSection {
    fn of(table: &SocketTable) -> Self {
        let sockets = table.sockets.iter().map(|(id, socket)| (*id, SocketSection::of(socket))).collect();
        Self { next: table.next, sockets }
    }

    fn into_table(self, kind: Kind, reserved: Option<u16>) -> Result<SocketTable, Invalid> {
        let Self { next, sockets } = self;
        if next > MOST_IDS {
            return Err(Invalid::new("next", next.to_string(), format!("at most {MOST_IDS}")));
        }
        if sockets.len() > MOST_SOCKETS {
            let found = format!("{} sockets", sockets.len());
            return Err(Invalid::new("sockets", found, format!("at most {MOST_SOCKETS}")));
        }
        let mut table = SocketTable::new(reserved);
        for (position, (id, section)) in sockets.into_iter().enumerate() {
            let place = |invalid: Invalid| invalid.at(position).within("sockets");
            if id >= next {
                return Err(place(Invalid::new("id", id.to_string(), format!("below the next, {next}"))));
            }
            let socket = section.into_socket(kind).map_err(place)?;
            let found = format!("{} at {}", socket.number, socket.addr);
            let taken = |_| place(Invalid::new("number", found, "a port or identifier that no other socket has"));
            table.insert(id, socket).map_err(taken)?;
        }
        if table.queued() > MOST_QUEUED {
            let found = format!("{} waiting bytes", table.queued());
            return Err(Invalid::new("sockets", found, format!("at most {MOST_QUEUED}")));
        }
        table.next = next;
        Ok(table)
    }
}

impl SocketSection {
    fn of(socket: &DatagramSocket) -> Self {
        let DatagramSocket { addr, number, peer, limits, waiting, bytes: _, notice, waker: _ } = socket;
        let waiting = waiting.iter().cloned().collect();
        Self { addr: *addr, number: *number, peer: *peer, limits: *limits, waiting, notice: *notice }
    }

    fn into_socket(self, kind: Kind) -> Result<DatagramSocket, Invalid> {
        let Self { addr, number, peer, limits, waiting, notice } = self;
        if addr.is_multicast() || addr == IpAddr::V4(core::net::Ipv4Addr::BROADCAST) {
            return Err(Invalid::new("addr", addr.to_string(), "an address of one host, or the unspecified one"));
        }
        if let Some((to, port)) = peer {
            let fits = kind == Kind::Udp && to.is_ipv4() == addr.is_ipv4() && !addr.is_unspecified();
            if !fits || to.is_unspecified() || port == 0 {
                let found = format!("{to} port {port} for a socket at {addr}");
                return Err(Invalid::new("peer", found, "a UDP peer of a socket at an address of its family"));
            }
        }
        if let Some(notice) = notice
            && !can_have(kind, peer.is_some(), notice)
        {
            let found = format!("{notice:?}");
            return Err(Invalid::new("notice", found, "what a connected UDP socket or a ping is told of"));
        }
        let bytes = checked(&waiting)?;
        let mut socket = DatagramSocket::new(addr, number, limits);
        socket.peer = peer;
        socket.notice = notice;
        socket.bytes = bytes;
        socket.waiting = VecDeque::from(waiting);
        Ok(socket)
    }
}

/// Whether a socket of the kind is ever told so.
fn can_have(kind: Kind, connected: bool, notice: Notice) -> bool {
    match notice {
        _ if kind == Kind::Udp => connected && notice.is_fatal(),
        Notice::Refused(_) => false,
        Notice::Unreachable(..) | Notice::TimeExceeded(_) | Notice::TooBig(_) | Notice::Parameter(..) => true,
    }
}

/// Checks what waits in a socket; gives the bytes of payload. It may be to other addresses than the one a connected socket
/// has been narrowed to since.
fn checked(waiting: &[Arrival]) -> Result<usize, Invalid> {
    let most = |limit: u32| usize::try_from(limit).unwrap_or(usize::MAX);
    if waiting.len() > most(MOST_DATAGRAMS) {
        let found = format!("{} datagrams", waiting.len());
        return Err(Invalid::new("waiting", found, format!("at most {MOST_DATAGRAMS}")));
    }
    let mut bytes = 0_usize;
    for (position, arrival) in waiting.iter().enumerate() {
        let Arrival { from, number: _, to, hop_limit: _, payload } = arrival;
        if from.is_ipv4() != to.is_ipv4() || payload.len() > LONGEST {
            let found = format!("{} bytes from {from} to {to}", payload.len());
            let invalid = Invalid::new("", found, format!("at most {LONGEST} bytes between addresses of one family"));
            return Err(invalid.at(position).within("waiting"));
        }
        bytes = bytes.saturating_add(payload.len());
    }
    if bytes > most(MOST_BYTES) {
        return Err(Invalid::new("waiting", format!("{bytes} bytes"), format!("at most {MOST_BYTES}")));
    }
    Ok(bytes)
}

/// Most payload of a datagram.
const LONGEST: usize = 65_535;

#[cfg(test)]
mod tests;
