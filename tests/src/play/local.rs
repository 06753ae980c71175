//! Local sockets of the router.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result, bail};
use hibernet_netstack::{ListenOptions, LocalError, Stack, StreamOptions};
use hibernet_snapshot::Instant;

use crate::notation::{build, pattern};
use crate::scenario::{Listen, Local, LocalOp};
use crate::variables::Variables;

/// Opens the listening sockets.
pub(super) fn listen(stack: &mut Stack, sockets: &[Listen]) -> Result<()> {
    for Listen { proto, addr, port } in sockets {
        let addr: IpAddr = addr.parse().with_context(|| format!("listening address {addr:?}"))?;
        match proto.as_str() {
            "udp" => _ = stack.udp_bind(addr, *port)?,
            "tcp" => _ = stack.tcp_listen(addr, *port, ListenOptions::default())?,
            other => bail!("cannot listen for {other:?}"),
        }
    }
    Ok(())
}

/// Lets a local socket send; gives the name of the error that it gets. Its socket stays open.
pub(super) fn send(
    stack: &mut Stack,
    sender: &Local,
    variables: &Variables,
    now: Instant,
) -> Result<Option<&'static str>> {
    let to = || Ok::<_, anyhow::Error>(SocketAddr::new(sender.dst, sender.dport.context("dport is missing")?));
    Ok(match sender.op {
        LocalOp::UdpSend => {
            let payload = pattern(sender.len.unwrap_or(4));
            let bound = sender.src.map(|addr| (addr, sender.sport.unwrap_or(0)));
            let (addr, port) = bound.unwrap_or((unspecified(sender.dst), 0));
            let socket = match stack.udp_bind(addr, port) {
                Ok(socket) => socket,
                Err(error) => return Ok(Some(errno_of(&error))),
            };
            stack.udp_send(socket, to()?, &payload, now).err().map(|error| error.errno().name())
        }
        LocalOp::TcpConnect => match connect(stack, sender, to()?, now) {
            Ok(()) => (sender.raise == Some(true)).then_some("EINPROGRESS"),
            Err(error @ (LocalError::PortTaken { .. } | LocalError::PortZero)) => Some(errno_of(&error)),
            Err(error) => (sender.raise == Some(true)).then(|| errno_of(&error)),
        },
        LocalOp::RawSend => {
            let packet = sender.pkt.as_deref().context("pkt is missing")?;
            let packet = build(&variables.substitute(packet)?, None)?;
            stack.local_output(packet, now).err().map(|error| error.errno().name())
        }
    })
}

fn connect(stack: &mut Stack, sender: &Local, to: SocketAddr, now: Instant) -> Result<(), LocalError> {
    let port = sender.sport.filter(|port| *port != 0);
    let from = sender.src.zip(port).map(|(addr, port)| SocketAddr::new(addr, port));
    stack.tcp_connect(from, to, StreamOptions::default(), now).map(|_| ())
}

/// What a socket of the kernel would report.
fn errno_of(error: &LocalError) -> &'static str {
    match error {
        LocalError::PortTaken { .. } => "EADDRINUSE",
        LocalError::NoRoute { .. } => "ENETUNREACH",
        LocalError::TooMany { .. } | LocalError::AddressNotOwn { .. } => "EADDRNOTAVAIL",
        _ => "EINVAL",
    }
}

/// The address that stands for all of them.
fn unspecified(dst: IpAddr) -> IpAddr {
    match dst {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}
