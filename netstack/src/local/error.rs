//! Why a call on a UDP or ping socket failed.

use core::net::{IpAddr, SocketAddr};

use hibernet_snapshot::Invalid;
use thiserror::Error;

use super::sockets::Notice;
use crate::stack::{Errno, LocalSendError};

/// Why a call on a UDP or ping socket failed.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum SocketError {
    /// The socket is closed.
    #[error("EBADF: the socket is closed")]
    Closed,
    /// The socket has no peer.
    #[error("EDESTADDRREQ: the socket is not connected")]
    NotConnected,
    /// Nothing can be sent there.
    #[error("EINVAL: found the destination {to}, expected an address and a port other than 0")]
    BadDestination {
        /// The destination.
        to: SocketAddr,
    },
    /// The socket is bound to an address of the other family.
    #[error("EAFNOSUPPORT: bound to {bound}, which cannot speak to {to}")]
    Family {
        /// What the socket is bound to.
        bound: IpAddr,
        /// The destination.
        to: IpAddr,
    },
    /// The host has lost the address that the socket is bound to.
    #[error("EINVAL: bound to {bound}, which is not an address of this host any more")]
    AddressNotOwn {
        /// What the socket is bound to.
        bound: IpAddr,
    },
    /// There is no route, so no address to speak from.
    #[error("ENETUNREACH: no route to {to}")]
    NoRoute {
        /// The destination.
        to: IpAddr,
    },
    /// A bound of the receive queue is out of range.
    #[error("EINVAL: {0}")]
    Limits(Invalid),
    /// An ICMP error says of an earlier datagram that nobody has its port.
    #[error("ECONNREFUSED: {by} says that nobody has the port")]
    Refused {
        /// Who sent the error.
        by: IpAddr,
    },
    /// An ICMP error says of an earlier datagram that its destination cannot be reached.
    #[error("{}: {by} says that the destination is unreachable, code {code}", self.errno().name())]
    Unreachable {
        /// Who sent the error.
        by: IpAddr,
        /// Code of the error (RFC 792; RFC 4443, section 3.1).
        code: u8,
    },
    /// An ICMP error says of an earlier echo request that it ran out of hops.
    #[error("EHOSTUNREACH: {by} says that the time to live ran out there")]
    TimeExceeded {
        /// Who sent the error.
        by: IpAddr,
    },
    /// An ICMP error says of an earlier datagram that it is larger than a link on the way takes.
    #[error("EMSGSIZE: {by} says that the datagram was too big")]
    TooBig {
        /// Who sent the error.
        by: IpAddr,
    },
    /// An ICMP error says of an earlier datagram that its header cannot be read.
    #[error("EPROTO: {by} says that there is a problem with the header, code {code}")]
    Parameter {
        /// Who sent the error.
        by: IpAddr,
        /// Code of the error (RFC 792; RFC 4443, section 3.4).
        code: u8,
    },
    /// The datagram was dropped on its way out.
    #[error(transparent)]
    Dropped(#[from] LocalSendError),
}

impl SocketError {
    /// What a socket of the kernel would report.
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Closed => Errno::BadDescriptor,
            Self::NotConnected => Errno::DestinationRequired,
            Self::BadDestination { .. } | Self::AddressNotOwn { .. } | Self::Limits(_) => Errno::Invalid,
            Self::Family { .. } => Errno::FamilyNotSupported,
            Self::NoRoute { .. } => Errno::NetworkUnreachable,
            Self::Refused { .. } => Errno::ConnectionRefused,
            Self::Unreachable { by, code } => unreachable(*by, *code),
            Self::TimeExceeded { .. } => Errno::HostUnreachable,
            Self::TooBig { .. } => Errno::MessageSize,
            Self::Parameter { .. } => Errno::Protocol,
            Self::Dropped(error) => error.errno(),
        }
    }
}

/// What the codes of destination unreachable are for a socket.
pub(super) const fn unreachable(by: IpAddr, code: u8) -> Errno {
    match (by, code) {
        (IpAddr::V4(_), 0 | 6 | 9) | (IpAddr::V6(_), 0) => Errno::NetworkUnreachable,
        (IpAddr::V4(_), 2) => Errno::ProtocolNotAvailable,
        (IpAddr::V4(_), 3) | (IpAddr::V6(_), 4) => Errno::ConnectionRefused,
        (IpAddr::V4(_), 7) => Errno::HostDown,
        (IpAddr::V4(_), 8) => Errno::NotOnNetwork,
        (IpAddr::V6(_), 1 | 5 | 6) => Errno::Access,
        (IpAddr::V6(_), 7 | 8) => Errno::Protocol,
        _ => Errno::HostUnreachable,
    }
}

impl From<Notice> for SocketError {
    fn from(notice: Notice) -> Self {
        match notice {
            Notice::Refused(by) => Self::Refused { by },
            Notice::Unreachable(by, code) => Self::Unreachable { by, code },
            Notice::TimeExceeded(by) => Self::TimeExceeded { by },
            Notice::TooBig(by) => Self::TooBig { by },
            Notice::Parameter(by, code) => Self::Parameter { by, code },
        }
    }
}
