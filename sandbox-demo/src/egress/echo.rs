//! Echo requests: an unprivileged ping socket of the host for each guest's identifier, where the host allows them
//! (`net.ipv4.ping_group_range`).

use std::cell::Cell;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use hibernet_netstack::ProxyEcho;
use hibernet_netstack::Unreached;
use rustix::io::Errno;
use rustix::net::AddressFamily;
use rustix::net::RecvFlags;
use rustix::net::SendFlags;
use rustix::net::SocketFlags;
use rustix::net::SocketType;
use rustix::net::ipproto;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio::time::timeout_at;

use super::host;
use crate::runtime::Net;
use crate::sys;

/// All series of echo requests.
#[derive(Clone)]
pub(super) struct EchoFlows {
    net: Net,
    most: usize,
    live: Rc<RefCell<BTreeMap<Series, Rc<Flow>>>>,
}

/// The guest, where it sends, and its identifier.
type Series = (IpAddr, IpAddr, u16);

struct Flow {
    socket: AsyncFd<OwnedFd>,
    last: Cell<Instant>,
    /// The request last sent, which an ICMP error quotes.
    sent: RefCell<ProxyEcho>,
    cut: Notify,
}

impl EchoFlows {
    pub(super) fn new(net: &Net, most: usize) -> Self {
        Self { net: net.clone(), most, live: Rc::default() }
    }

    pub(super) fn len(&self) -> usize {
        self.live.borrow().len()
    }

    /// Sends a guest's request from its series' socket.
    pub(super) fn send(&self, echo: &ProxyEcho, own: bool) {
        let flow = match self.flow(echo, own) {
            Ok(flow) => flow,
            Err(why) => return self.tell(echo, why),
        };
        flow.last.set(Instant::now());
        *flow.sent.borrow_mut() = echo.clone();
        let kind = if echo.to.is_ipv4() { ECHO } else { ECHO_V6 };
        // The kernel writes checksum and identifier.
        let [high, low] = echo.sequence.to_be_bytes();
        let request = [&[kind, 0, 0, 0, 0, 0, high, low], echo.payload.as_slice()].concat();
        if let Err(errno) = rustix::net::send(flow.socket.get_ref(), &request, SendFlags::DONTWAIT) {
            self.tell(echo, host::unreached(&errno.into()));
        }
    }

    /// Ends the series that may not be any more.
    pub(super) fn retain(&self, may: impl Fn(IpAddr) -> bool) -> usize {
        let live = self.live.borrow();
        live.iter().filter(|((_, to, _), _)| !may(*to)).map(|(_, flow)| flow.cut.notify_one()).count()
    }

    fn flow(&self, echo: &ProxyEcho, own: bool) -> Result<Rc<Flow>, Unreached> {
        let series = (echo.from, echo.to, echo.identifier);
        if let Some(flow) = self.live.borrow().get(&series) {
            return Ok(Rc::clone(flow));
        }
        let to = host::destination(SocketAddr::new(echo.to, 0), own)?;
        if self.len() >= self.most {
            return Err(Unreached::NoPlace);
        }
        let socket = open(to).map_err(|error| host::unreached(&error))?;
        let flow = Rc::new(Flow {
            socket,
            last: Cell::new(Instant::now()),
            sent: RefCell::new(echo.clone()),
            cut: Notify::new(),
        });
        self.live.borrow_mut().insert(series, Rc::clone(&flow));
        let (flows, heard) = (self.clone(), Rc::clone(&flow));
        tokio::task::spawn_local(async move {
            tokio::select! {
                () = heard.cut.notified() => {}
                () = flows.hear(series, &heard) => {}
            }
            flows.live.borrow_mut().remove(&series);
        });
        Ok(flow)
    }

    /// Passes on what comes back, until nothing has passed for as long as connection tracking waits.
    async fn hear(&self, (from, to, identifier): Series, flow: &Flow) {
        let mut buffer = vec![0; LONGEST];
        loop {
            let idle = self.net.with_stack(|stack, _| stack.conntrack().sysctls().icmp_timeout);
            let until = flow.last.get() + Duration::from_secs(idle.into());
            let mut ready = match timeout_at(until, flow.socket.ready(HEARD)).await {
                Err(_) if flow.last.get() + Duration::from_secs(idle.into()) > Instant::now() => continue,
                Err(_) | Ok(Err(_)) => return,
                Ok(Ok(ready)) => ready,
            };
            match rustix::net::recv(flow.socket.get_ref(), &mut *buffer, RecvFlags::DONTWAIT) {
                Ok((read, _)) => {
                    let [kind, _, _, _, _, _, high, low, payload @ ..] = buffer.get(..read).unwrap_or_default() else {
                        continue;
                    };
                    if !matches!((*kind, to), (ECHO_REPLY, IpAddr::V4(_)) | (ECHO_REPLY_V6, IpAddr::V6(_))) {
                        continue;
                    }
                    flow.last.set(Instant::now());
                    let sequence = u16::from_be_bytes([*high, *low]);
                    let link = flow.sent.borrow().link;
                    let asked = ProxyEcho { from, to, identifier, sequence, link, payload: Vec::new() };
                    self.net.with_engine(|engine| {
                        let (stack, now) = engine.stack();
                        // A drop on the way to the guest is counted there.
                        drop(stack.tproxy_echo_reply(&asked, payload, now));
                    });
                }
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(errno) => self.tell(&flow.sent.borrow(), host::unreached(&errno.into())),
            }
        }
    }

    fn tell(&self, asked: &ProxyEcho, why: Unreached) {
        self.net.with_engine(|engine| {
            let (stack, now) = engine.stack();
            stack.tproxy_echo_unreached(asked, why, now);
        });
    }
}

/// A ping socket (the kernel's `SOCK_DGRAM` of `IPPROTO_ICMP`), which needs no privilege but the system's leave.
fn open(to: SocketAddr) -> io::Result<AsyncFd<OwnedFd>> {
    let (family, protocol) = match to {
        SocketAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP),
        SocketAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6),
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::DGRAM, flags, Some(protocol))?;
    rustix::net::connect(&socket, &to)?;
    sys::wait_readable(socket)
}

/// An answer, or what an ICMP error has said, which is not readable but an error.
const HEARD: Interest = Interest::READABLE.add(Interest::ERROR);
const LONGEST: usize = 65_536;
const ECHO: u8 = 8;
const ECHO_REPLY: u8 = 0;
const ECHO_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;
