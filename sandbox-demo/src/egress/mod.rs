//! Rootless egress: a guest's connections, datagrams and pings go on from the host's own sockets, as slirp and passt do it.
//!
//! The stack's rules hand over what the policy allows (`rules`), everything else they have refused already. A TCP opening
//! waits in the stack until the host's socket is connected (`tcp`), so that the guest's `connect` ends as the host's does.
//! UDP has a connected socket per flow (`udp`), pings have ping sockets (`echo`). None of it needs a privilege, and none of it
//! is saved: the host's sockets end with the process, and `restore` tells the guest.

mod echo;
mod host;
mod policy;
mod restore;
mod rules;
mod run;
mod tcp;
#[cfg(test)]
mod tests;
mod udp;

use std::cell::RefCell;
use std::future::poll_fn;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use anyhow::Context;
use hibernet_conntrack::proto;
use hibernet_netstack::LinkConfig;
use hibernet_netstack::Opening;
use hibernet_netstack::Proxied;

use self::echo::EchoFlows;
pub(crate) use self::policy::Policy;
pub(crate) use self::policy::PolicyRule;
pub(crate) use self::restore::RestoredStream;
pub(crate) use self::restore::end_lost_streams;
pub(crate) use self::rules::by_routes;
pub(crate) use self::rules::has_policy;
pub(crate) use self::rules::with_policy;
pub(crate) use self::run::EgressOptions;
pub(crate) use self::run::report;
pub(crate) use self::run::run;
use self::tcp::TcpFlows;
use self::udp::UdpFlows;
use crate::control::PolicyReply;
use crate::gateway::Engine;
use crate::runtime::Net;
use crate::runtime::TcpStream;

/// How many host sockets there may be, and how long one may connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EgressLimits {
    pub(crate) tcp: usize,
    pub(crate) udp: usize,
    pub(crate) echo: usize,
    pub(crate) connect: Duration,
}

/// The egress of a running stack. Cheap to clone; lives in a tokio `LocalSet`.
#[derive(Clone)]
pub(crate) struct Egress {
    net: Net,
    tcp: TcpFlows,
    udp: UdpFlows,
    echo: EchoFlows,
    /// What the last policy file said, for the flows there are; none as long as only the image's rules are known.
    policy: Rc<RefCell<Option<Policy>>>,
}

impl EgressLimits {
    /// How many descriptors all of them take.
    pub(crate) fn descriptors(&self) -> u64 {
        let Self { tcp, udp, echo, connect: _ } = *self;
        (tcp.saturating_add(udp).saturating_add(echo)) as u64
    }
}

impl Egress {
    /// The egress of a stack whose rules hold a policy already.
    pub(crate) fn new(net: &Net, limits: EgressLimits, policy: Option<Policy>) -> Self {
        let EgressLimits { tcp, udp, echo, connect } = limits;
        Self {
            net: net.clone(),
            tcp: TcpFlows::new(net, tcp, connect),
            udp: UdpFlows::new(net, udp),
            echo: EchoFlows::new(net, echo),
            policy: Rc::new(RefCell::new(policy)),
        }
    }

    /// Serves for ever.
    pub(crate) async fn serve(self) -> anyhow::Result<()> {
        loop {
            let next = poll_fn(|cx| {
                self.net.with_stack(|stack, _| match stack.tproxy_next() {
                    Some(next) => Poll::Ready(next),
                    None => {
                        stack.tproxy_wake(cx.waker());
                        Poll::Pending
                    }
                })
            });
            match next.await {
                Proxied::Opening(opening) => self.tcp.open(opening, self.is_own(opening.to.ip())),
                Proxied::Datagram(datagram) => self.udp.send(&datagram, self.is_own(datagram.to.ip())),
                Proxied::Echo(echo) => self.echo.send(&echo, self.is_own(echo.to)),
                _ => {}
            }
        }
    }

    /// Goes on with streams of an image whose host sockets were brought back.
    pub(crate) fn adopt(&self, kept: Vec<(RestoredStream, std::net::TcpStream)>) -> anyhow::Result<()> {
        for (RestoredStream { id, guest, server }, host) in kept {
            host.set_nonblocking(true).context("a host socket that was brought back")?;
            let host = tokio::net::TcpStream::from_std(host).context("a host socket that was brought back")?;
            let opening = Opening { from: guest, to: server };
            self.tcp.adopt(TcpStream::of(&self.net, id), opening, host);
        }
        Ok(())
    }

    /// Puts another policy in force: for new flows by the rules, and the flows there are that it does not allow end at once.
    pub(crate) fn load(&self, policy: Policy) -> anyhow::Result<PolicyReply> {
        self.net.with_engine(|engine| load_policy(engine, &policy))?;
        let allows = |protocol: u8, to: SocketAddr| {
            if self.is_own(to.ip()) {
                policy.maps(protocol, to.port())
            } else {
                policy.allows(protocol, to.ip(), Some(to.port()))
            }
        };
        let pings = |to: IpAddr| {
            let protocol = if to.is_ipv4() { proto::ICMP } else { proto::ICMPV6 };
            !self.is_own(to) && policy.allows(protocol, to, None)
        };
        let ended = self.tcp.retain(|to| allows(proto::TCP, to))
            + self.udp.retain(|to| allows(proto::UDP, to))
            + self.echo.retain(pings);
        let rules = policy.rules.len();
        *self.policy.borrow_mut() = Some(policy);
        Ok(PolicyReply { rules, ended })
    }

    /// The policy in force as people read it; none if it came with an image.
    pub(crate) fn policy_text(&self) -> Option<String> {
        self.policy.borrow().as_ref().map(Policy::text)
    }

    /// How many flows of TCP, UDP and pings have a host socket.
    pub(crate) fn flows(&self) -> [usize; 3] {
        [self.tcp.len(), self.udp.len(), self.echo.len()]
    }

    /// Whether an address is the gateway's: then a rule has handed over a port of the host's loopback address.
    fn is_own(&self, addr: IpAddr) -> bool {
        self.net
            .with_stack(|stack, _| stack.links().iter().flat_map(|link| &link.addrs).any(|cidr| cidr.addr() == addr))
    }
}

/// Puts a policy in force on every link of the stack, as its rules. What comes later meets it.
pub(crate) fn load_policy(engine: &mut Engine, policy: &Policy) -> anyhow::Result<()> {
    let (stack, _) = engine.stack();
    let guests: Vec<LinkConfig> = stack.links().to_vec();
    let rules = with_policy(stack.rules(), policy, &guests);
    stack.load_rules(rules).context("the egress policy as rules of the stack")
}
