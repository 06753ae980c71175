//! Port forwards: what is sent to a port of the host is taken to a port of the guest.
//!
//! The host's sockets are the kernel's, so no rights are needed (above port 1023). The guest sees the gateway as the other end.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::rc::Rc;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use hibernet_netstack::StreamOptions;
use serde::Deserialize;
use serde::Serialize;
use tokio::net::TcpListener as HostListener;
use tokio::net::UdpSocket as HostSocket;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio::time::sleep;
use tokio::time::sleep_until;

use super::splice::splice;
use crate::fault::Fault;
use crate::runtime::Net;
use crate::runtime::TcpStream;
use crate::runtime::UdpSocket;

/// A forward as it is written: `[tcp:|udp:][ADDRESS:]PORT:[GUEST:]PORT`. Without an address it is the host's loopback, without
/// a guest the first that DHCP gives an address to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Forward {
    pub(crate) transport: Transport,
    /// Where the host listens; not said means that only the host itself can reach it.
    pub(crate) host: Option<IpAddr>,
    pub(crate) host_port: u16,
    pub(crate) guest: Option<IpAddr>,
    pub(crate) guest_port: u16,
}

/// What a forward carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Transport {
    Tcp,
    Udp,
}

/// A forward whose host socket is open.
pub(crate) enum OpenForward {
    Tcp(HostListener, SocketAddr),
    Udp(Rc<HostSocket>, SocketAddr),
}

/// Who talks through a UDP forward.
type Flows = BTreeMap<SocketAddr, (Rc<UdpSocket>, Rc<Cell<Instant>>)>;

impl Forward {
    /// Opens the host's socket. `guest` is who it is for if the forward does not say.
    pub(crate) async fn open(&self, guest: IpAddr) -> anyhow::Result<OpenForward> {
        let host = SocketAddr::new(self.host.unwrap_or(Ipv4Addr::LOCALHOST.into()), self.host_port);
        let to = SocketAddr::new(self.guest.unwrap_or(guest), self.guest_port);
        let fault = |error: std::io::Error| {
            let remedy = "choose a free port above 1023, or another address of the host";
            Fault::new(format!("cannot listen at {host} for the forward {self}: {error}"), remedy)
        };
        Ok(match self.transport {
            Transport::Tcp => OpenForward::Tcp(HostListener::bind(host).await.map_err(fault)?, to),
            Transport::Udp => OpenForward::Udp(Rc::new(HostSocket::bind(host).await.map_err(fault)?), to),
        })
    }
}

impl OpenForward {
    /// Forwards, for ever.
    pub(crate) async fn run(self, net: Net, own: Vec<IpAddr>) -> anyhow::Result<()> {
        match self {
            Self::Tcp(listener, to) => streams(net, listener, to).await,
            Self::Udp(socket, to) => {
                let from = own.into_iter().find(|own| own.is_ipv4() == to.is_ipv4());
                datagrams(net, socket, from.context("the gateway has an address of the guest's family")?, to).await
            }
        }
    }
}

async fn streams(net: Net, listener: HostListener, to: SocketAddr) -> anyhow::Result<()> {
    let places = Arc::new(Semaphore::new(MOST_STREAMS));
    loop {
        let place = Arc::clone(&places).acquire_owned().await?;
        let client = match listener.accept().await {
            Ok((client, _)) => client,
            // It went away again, or there are no descriptors left: others may have better luck.
            Err(_) => {
                sleep(PAUSE).await;
                continue;
            }
        };
        let options =
            StreamOptions { keepalive: Some(KEEPALIVE), user_timeout: Some(GIVE_UP), ..StreamOptions::default() };
        let Ok(guest) = TcpStream::connect(&net, to, options) else {
            // Reset, as by a port nobody listens at.
            drop(client.set_zero_linger());
            continue;
        };
        tokio::task::spawn_local(async move {
            splice(guest, client).await;
            drop(place);
        });
    }
}

async fn datagrams(net: Net, socket: Rc<HostSocket>, own: IpAddr, to: SocketAddr) -> anyhow::Result<()> {
    let flows: Rc<std::cell::RefCell<Flows>> = Rc::default();
    let mut room = vec![0; MOST_DATAGRAM];
    loop {
        // An ICMP error about an answer that was sent is its receiver's business.
        let Ok((read, client)) = socket.recv_from(&mut room).await else { continue };
        let known = flows.borrow().get(&client).cloned();
        let (guest, used) = match known {
            Some(known) => known,
            None if flows.borrow().len() >= MOST_FLOWS => continue,
            None => {
                let Ok(guest) = UdpSocket::connected(&net, own, to) else { continue };
                let flow = (Rc::new(guest), Rc::new(Cell::new(Instant::now())));
                flows.borrow_mut().insert(client, flow.clone());
                let (flows, socket, (guest, used)) = (Rc::clone(&flows), Rc::clone(&socket), flow.clone());
                tokio::task::spawn_local(async move {
                    carry_back(&socket, client, &guest, &used).await;
                    flows.borrow_mut().remove(&client);
                    guest.close();
                });
                flow
            }
        };
        used.set(Instant::now());
        // What the guest does not take is lost, as datagrams are.
        drop(guest.send(to, room.get(..read).unwrap_or_default()));
    }
}

/// Carries a guest's datagrams back to a client, until neither has said anything for a while.
async fn carry_back(socket: &HostSocket, client: SocketAddr, guest: &UdpSocket, used: &Cell<Instant>) {
    let mut answered = false;
    loop {
        let idle = if answered { IDLE_ANSWERED } else { IDLE };
        let until = used.get() + idle;
        tokio::select! {
            received = guest.receive() => match received {
                Ok(datagram) => {
                    answered = true;
                    used.set(Instant::now());
                    drop(socket.send_to(&datagram.payload, client).await);
                }
                // Nobody has the port, or cannot be reached: said once, and the flow may go on.
                Err(_) => sleep(PAUSE).await,
            },
            () = sleep_until(until) => if used.get() + idle <= Instant::now() { return },
        }
    }
}

impl FromStr for Forward {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (transport, rest) = match text.split_once(':') {
            Some(("tcp", rest)) => (Transport::Tcp, rest),
            Some(("udp", rest)) => (Transport::Udp, rest),
            _ => (Transport::Tcp, text),
        };
        let wrong = |found: &str, expected: &str| format!("found `{found}` in `{text}`, expected {expected}: {FORM}");
        let port = |text: &str| match text.parse::<u16>() {
            Ok(port) if port > 0 => Ok(port),
            _ => Err(wrong(text, "a port from 1 to 65535")),
        };
        let addr = |text: &str| match text.trim_matches(['[', ']']).parse::<IpAddr>() {
            Ok(addr) => Ok(addr),
            Err(_) => Err(wrong(text, "an IP address, one of IPv6 in brackets")),
        };
        match pieces(rest).as_slice() {
            [host, guest] => {
                Ok(Self { transport, host: None, host_port: port(host)?, guest: None, guest_port: port(guest)? })
            }
            // Ports have no dots and no colons, so an address in the second place is the guest's.
            [host, second, guest] if second.parse::<u16>().is_err() => {
                let guest_addr = Some(addr(second)?);
                Ok(Self { transport, host: None, host_port: port(host)?, guest: guest_addr, guest_port: port(guest)? })
            }
            [at, host, guest] => {
                let host_addr = Some(addr(at)?);
                Ok(Self { transport, host: host_addr, host_port: port(host)?, guest: None, guest_port: port(guest)? })
            }
            [at, host, to, guest] => Ok(Self {
                transport,
                host: Some(addr(at)?),
                host_port: port(host)?,
                guest: Some(addr(to)?),
                guest_port: port(guest)?,
            }),
            _ => Err(wrong(rest, "two ports at least")),
        }
    }
}

/// The pieces between colons, but those in brackets.
fn pieces(text: &str) -> Vec<&str> {
    let mut depth = 0_usize;
    text.split(|letter| {
        match letter {
            '[' => depth += 1,
            ']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        letter == ':' && depth == 0
    })
    .collect()
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addr = |addr: Option<IpAddr>| match addr {
            None => String::new(),
            Some(IpAddr::V4(addr)) => format!("{addr}:"),
            Some(IpAddr::V6(addr)) => format!("[{addr}]:"),
        };
        let transport = if self.transport == Transport::Tcp { "tcp" } else { "udp" };
        let (host, guest) = (addr(self.host), addr(self.guest));
        write!(f, "{transport}:{host}{}:{guest}{}", self.host_port, self.guest_port)
    }
}

const FORM: &str = "[tcp:|udp:][ADDRESS:]PORT:[GUEST:]PORT";
/// Streams of one forward at once; more wait in the host's backlog.
const MOST_STREAMS: usize = 512;
/// Clients of one UDP forward at once; the datagrams of more are lost.
const MOST_FLOWS: usize = 512;
/// Longest payload.
const MOST_DATAGRAM: usize = 65_535;
/// A flow without an answer, and one with: nf_conntrack_udp_timeout and nf_conntrack_udp_timeout_stream.
const IDLE: Duration = Duration::from_secs(30);
const IDLE_ANSWERED: Duration = Duration::from_secs(120);
/// Behind an error that may come at once again.
const PAUSE: Duration = Duration::from_millis(20);
/// A silent guest is asked whether it is there.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// A guest that acknowledges nothing for so long is given up.
const GIVE_UP: Duration = Duration::from_secs(120);

#[cfg(test)]
mod tests;
