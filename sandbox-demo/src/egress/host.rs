//! The host's side: which destinations a socket may be given, and what its errors mean to the guest.

use std::io;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use hibernet_netstack::Unreached;
use rustix::io::Errno;

/// Where a host socket connects to for a guest's destination; `own` says whether that is an address of the gateway, which a
/// rule hands over for nothing but the host's loopback address.
///
/// An address that would lead a socket elsewhere than the rules have judged is no destination: an IPv4-mapped address of
/// IPv6, and what means this host or a group.
pub(super) fn destination(to: SocketAddr, own: bool) -> Result<SocketAddr, Unreached> {
    if own {
        let loopback: IpAddr = if to.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
        return Ok(SocketAddr::new(loopback, to.port()));
    }
    let is_plain = match to.ip() {
        IpAddr::V4(addr) => {
            !(addr.is_loopback() || addr.octets()[0] == 0 || addr.is_multicast() || addr.is_broadcast())
        }
        IpAddr::V6(addr) => {
            let mapped_or_compatible = addr.to_ipv4().is_some();
            !(mapped_or_compatible || addr.is_loopback() || addr.is_multicast() || addr.is_unicast_link_local())
        }
    };
    if is_plain { Ok(to) } else { Err(Unreached::Network) }
}

/// What a socket's error says of its destination.
pub(super) fn unreached(error: &io::Error) -> Unreached {
    match Errno::from_io_error(error) {
        Some(Errno::CONNREFUSED | Errno::CONNRESET) => Unreached::Refused,
        Some(Errno::HOSTUNREACH | Errno::HOSTDOWN) => Unreached::Host,
        Some(Errno::ACCESS | Errno::PERM) => Unreached::Prohibited,
        // Lost as on the wire: the kernel had no room for a datagram, or it is longer than a datagram may be.
        Some(Errno::TIMEDOUT | Errno::AGAIN | Errno::MSGSIZE) => Unreached::TimedOut,
        Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM | Errno::ADDRNOTAVAIL) => Unreached::NoPlace,
        _ => Unreached::Network,
    }
}

/// Makes the end of a TCP socket a reset, which its peer is sent when it is closed.
pub(super) fn reset_at_close(socket: &impl AsFd) {
    // A socket that is past this has no peer to tell.
    let _ = rustix::net::sockopt::set_socket_linger(socket, Some(Duration::ZERO));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(text: &str) -> SocketAddr {
        text.parse().expect("an end")
    }

    #[test]
    fn no_address_leads_to_the_host_itself_but_the_gateways_own() {
        for hostile in [
            "127.0.0.1:80",
            "0.0.0.0:80",
            "0.1.2.3:80",
            "224.0.0.1:80",
            "255.255.255.255:80",
            "[::]:80",
            "[::1]:80",
            "[::ffff:127.0.0.1]:80",
            "[::ffff:192.0.2.1]:80",
            "[::127.0.0.1]:80",
            "[ff02::1]:80",
            "[fe80::1]:80",
        ] {
            assert_eq!(destination(end(hostile), false), Err(Unreached::Network), "{hostile}");
        }
        for plain in ["192.0.2.1:80", "10.0.0.1:80", "[2001:db8::1]:80", "[fd00::1]:80"] {
            assert_eq!(destination(end(plain), false), Ok(end(plain)));
        }
        assert_eq!(destination(end("10.0.0.1:80"), true), Ok(end("127.0.0.1:80")));
        assert_eq!(destination(end("[fd00::1]:80"), true), Ok(end("[::1]:80")));
    }

    #[test]
    fn errors_mean_to_the_guest_what_they_mean_here() {
        for (errno, why) in [
            (Errno::CONNREFUSED, Unreached::Refused),
            (Errno::HOSTUNREACH, Unreached::Host),
            (Errno::NETUNREACH, Unreached::Network),
            (Errno::ACCESS, Unreached::Prohibited),
            (Errno::TIMEDOUT, Unreached::TimedOut),
            (Errno::MFILE, Unreached::NoPlace),
        ] {
            assert_eq!(unreached(&errno.into()), why);
        }
    }
}
