//! UDP: a connected host socket for each pair of ends, as long as something passes.

use std::cell::Cell;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use hibernet_netstack::ProxyDatagram;
use hibernet_netstack::Unreached;
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::net::SendFlags;
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio::time::timeout_at;

use super::host;
use crate::runtime::Net;

/// All UDP flows: each is a socket, and a task that hears it.
#[derive(Clone)]
pub(super) struct UdpFlows {
    net: Net,
    most: usize,
    live: Rc<RefCell<BTreeMap<Ends, Rc<Flow>>>>,
    scratch: Rc<RefCell<Vec<u8>>>,
}

/// The guest's end, and where it sends.
type Ends = (SocketAddr, SocketAddr);

struct Flow {
    socket: UdpSocket,
    begun: Instant,
    last: Cell<Instant>,
    /// Something has come back.
    replied: Cell<bool>,
    /// The beginning of the datagram last sent, which an ICMP error quotes.
    sent: RefCell<ProxyDatagram>,
    cut: Notify,
}

impl UdpFlows {
    pub(super) fn new(net: &Net, most: usize) -> Self {
        Self { net: net.clone(), most, live: Rc::default(), scratch: Rc::new(RefCell::new(vec![0; LONGEST])) }
    }

    pub(super) fn len(&self) -> usize {
        self.live.borrow().len()
    }

    /// Sends a guest's datagram from its flow's socket.
    pub(super) fn send(&self, datagram: &ProxyDatagram, own: bool) {
        let flow = match self.flow(datagram, own) {
            Ok(flow) => flow,
            Err(why) => return self.tell(datagram, why),
        };
        flow.last.set(Instant::now());
        *flow.sent.borrow_mut() = beginning(datagram);
        for _ in 0..2 {
            match rustix::net::send(&flow.socket, &datagram.payload, SendFlags::DONTWAIT) {
                Ok(_) => return,
                // What an ICMP error said of an earlier datagram; this one has not been sent yet.
                Err(Errno::CONNREFUSED) => self.tell(datagram, Unreached::Refused),
                // The kernel has no room: as lost as on the wire.
                Err(errno) => return self.tell(datagram, host::unreached(&errno.into())),
            }
        }
    }

    /// Ends the flows that may not be any more.
    pub(super) fn retain(&self, may: impl Fn(SocketAddr) -> bool) -> usize {
        let live = self.live.borrow();
        live.iter().filter(|((_, to), _)| !may(*to)).map(|(_, flow)| flow.cut.notify_one()).count()
    }

    fn flow(&self, datagram: &ProxyDatagram, own: bool) -> Result<Rc<Flow>, Unreached> {
        let ends = (datagram.from, datagram.to);
        if let Some(flow) = self.live.borrow().get(&ends) {
            return Ok(Rc::clone(flow));
        }
        let to = host::destination(datagram.to, own)?;
        if self.len() >= self.most {
            return Err(Unreached::NoPlace);
        }
        let socket = open(to).map_err(|error| host::unreached(&error))?;
        let now = Instant::now();
        let flow = Rc::new(Flow {
            socket,
            begun: now,
            last: Cell::new(now),
            replied: Cell::new(false),
            sent: RefCell::new(beginning(datagram)),
            cut: Notify::new(),
        });
        self.live.borrow_mut().insert(ends, Rc::clone(&flow));
        let (flows, heard) = (self.clone(), Rc::clone(&flow));
        tokio::task::spawn_local(async move {
            tokio::select! {
                () = heard.cut.notified() => {}
                () = flows.hear(ends, &heard) => {}
            }
            flows.live.borrow_mut().remove(&ends);
        });
        Ok(flow)
    }

    /// Passes on what comes back, until nothing has passed for too long.
    async fn hear(&self, (guest, to): Ends, flow: &Flow) {
        loop {
            let until = flow.last.get() + self.idle(flow);
            let ready = match timeout_at(until, flow.socket.ready(HEARD)).await {
                Err(_) if flow.last.get() + self.idle(flow) <= Instant::now() => return,
                Err(_) => continue,
                Ok(Err(_)) => return,
                Ok(Ok(ready)) => ready,
            };
            // tokio tries, and forgets, one interest at a time.
            let interest = if ready.is_error() { Interest::ERROR } else { Interest::READABLE };
            let mut scratch = self.scratch.borrow_mut();
            let received = flow
                .socket
                .try_io(interest, || Ok(rustix::net::recv(&flow.socket, scratch.as_mut_slice(), RecvFlags::DONTWAIT)?));
            match received {
                Ok((read, _)) => {
                    flow.last.set(Instant::now());
                    flow.replied.set(true);
                    let payload = scratch.get(..read).unwrap_or_default();
                    self.net.with_engine(|engine| {
                        let (stack, now) = engine.stack();
                        // A drop on the way to the guest is counted there; a datagram is sent once.
                        drop(stack.tproxy_send(to, guest, payload, now));
                    });
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => self.tell(&flow.sent.borrow(), host::unreached(&error)),
            }
        }
    }

    /// As connection tracking waits: short, and longer once the flow has proved to be more than a question and an answer.
    fn idle(&self, flow: &Flow) -> Duration {
        let (short, long) = self.net.with_stack(|stack, _| {
            let sysctls = stack.conntrack().sysctls();
            (sysctls.udp_timeout, sysctls.udp_timeout_stream)
        });
        let is_stream = flow.replied.get() && flow.last.get() - flow.begun > STREAM_AFTER;
        Duration::from_secs(if is_stream { long } else { short }.into())
    }

    fn tell(&self, sent: &ProxyDatagram, why: Unreached) {
        self.net.with_engine(|engine| {
            let (stack, now) = engine.stack();
            stack.tproxy_unreached(sent, why, now);
        });
    }
}

fn open(to: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = std::net::UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

fn beginning(datagram: &ProxyDatagram) -> ProxyDatagram {
    let ProxyDatagram { from, to, link, payload } = datagram;
    let payload = payload.get(..payload.len().min(QUOTED)).unwrap_or_default().to_vec();
    ProxyDatagram { from: *from, to: *to, link: *link, payload }
}

/// A datagram, or what an ICMP error has said, which is not readable but an error.
const HEARD: Interest = Interest::READABLE.add(Interest::ERROR);
/// The longest datagram.
const LONGEST: usize = 65_536;
/// As much as an ICMP error quotes of a payload, and a little less.
const QUOTED: usize = 512;
/// The kernel takes a flow of UDP for a stream once it has gone on for so long (nf_conntrack_proto_udp.c).
const STREAM_AFTER: Duration = Duration::from_secs(2);
