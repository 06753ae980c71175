//! `gateway`: the network of one guest, without privileges. The guest's network card is a link (a unix socket, or a TAP
//! device); the gateway gives it an address by DHCP, forwards its DNS questions, answers ARP, neighbour discovery and pings,
//! takes connections of the host in to it, and with an uplink lets it out behind the gateway's address.

mod restored;
mod way_out;

use std::cell::RefCell;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::path::Path;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context;
use hibernet_conntrack::EarlyDrop;
use hibernet_netstack::Cidr;
use hibernet_netstack::ListenOptions;
use hibernet_netstack::LocalLimits;
use hibernet_netstack::MacAddr;
use hibernet_netstack::Route;
use hibernet_netstack::StreamOptions;
use hibernet_snapshot::Instant;
use hibernet_snapshot::codec;
use serde::Deserialize;
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::task::LocalSet;

use self::restored::Lost;
pub(crate) use self::way_out::EgressChoice;
use self::way_out::WayOut;
use super::Engine;
use super::GatewayConfig;
use super::GatewayLink;
use super::MediumName;
use super::dhcp;
use super::dhcp::DhcpConfig;
use super::dhcp::DhcpServer;
use super::dhcp::SavedLease;
use super::dns;
use super::dns::DnsForwarder;
use super::forward::Forward;
use super::guest_rules::RulePlan;
use super::guest_rules::rules;
use crate::commands::print;
use crate::control::Answer;
use crate::control::ControlTasks;
use crate::control::Refused;
use crate::control::Request;
use crate::control::RestoreSummary;
use crate::fault::Fault;
use crate::gateway::RestoreRequest;
use crate::link::Link;
use crate::link::LinkSpec;
use crate::runtime;
use crate::runtime::Net;
use crate::runtime::TcpListener;
use crate::runtime::UdpSocket;

/// What `gateway` is told.
pub(crate) struct GuestOptions {
    pub(crate) start: GuestStart,
    pub(crate) link: LinkSpec,
    pub(crate) uplink: Option<LinkSpec>,
    /// Who is asked for names; not said on a restore means as before.
    pub(crate) dns: Option<Resolvers>,
    /// Likewise.
    pub(crate) forwards: Option<Vec<Forward>>,
    pub(crate) egress: EgressChoice,
    pub(crate) control: PathBuf,
    /// The file with the key that images are opened and sealed with.
    pub(crate) seal_key: Option<PathBuf>,
    pub(crate) hold: bool,
    pub(crate) json: bool,
}

/// Where the gateway's stack comes from.
pub(crate) enum GuestStart {
    Fresh(GuestPlace),
    /// From an image that `gateway` was saved to; all of [`GuestPlace`] comes with it.
    Restored(Box<RestoreRequest>),
}

/// What a new gateway is.
pub(crate) struct GuestPlace {
    /// Its addresses on the guest's link.
    pub(crate) addrs: Vec<Cidr>,
    pub(crate) mac: Option<MacAddr>,
    pub(crate) mtu: u16,
    /// The first address that DHCP gives out; none means no DHCP.
    pub(crate) dhcp: Option<Option<Ipv4Addr>>,
    pub(crate) lease: Duration,
    pub(crate) echo: Option<u16>,
    pub(crate) uplink_addrs: Vec<Cidr>,
    pub(crate) via: Vec<IpAddr>,
}

/// Who is asked for names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Resolvers {
    /// Those of the host that the gateway runs on.
    OfHost,
    These(Vec<SocketAddr>),
    Nobody,
}

/// What the gateway has saved beside the stack.
#[derive(Serialize, Deserialize)]
struct Saved {
    /// Tells an image of a gateway from others.
    kind: String,
    guest: String,
    uplink: Option<String>,
    dhcp: Option<DhcpConfig>,
    leases: Vec<SavedLease>,
    resolvers: Resolvers,
    forwards: Vec<Forward>,
    /// Questions without an answer: the guest asks again.
    dns_pending: u32,
}

/// What the gateway says once it is ready.
#[derive(Serialize)]
struct Ready<'a> {
    state: &'static str,
    pid: u32,
    guest: &'a LinkSpec,
    mac: Option<String>,
    addrs: Vec<String>,
    dns: Vec<SocketAddr>,
    forwards: Vec<String>,
    /// Who has which address, and for how many seconds more.
    leases: Vec<String>,
    control: &'a Path,
    restored: Option<&'a RestoreSummary>,
    /// What did not survive, and what the guest is told.
    lost: Option<&'a Lost>,
}

/// Runs a gateway until SIGINT or SIGTERM.
pub(crate) fn serve_guest(options: GuestOptions) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    let tasks = LocalSet::new();
    let net = runtime.block_on(tasks.run_until(run(options)))?;
    // Streams are closed with their tasks; the last turn tells the guest.
    drop(tasks);
    net.with_engine(Engine::turn);
    Ok(())
}

async fn run(options: GuestOptions) -> anyhow::Result<Net> {
    let GuestOptions { start, link, uplink, dns, forwards, egress, control, seal_key, hold, json } = options;
    let is_restored = matches!(start, GuestStart::Restored(_));
    let (mut engine, mut saved) = match start {
        GuestStart::Fresh(place) => fresh(&place, &link, uplink.as_ref(), forwards.as_deref().unwrap_or_default())?,
        GuestStart::Restored(image) => restored::restored(&image)?,
    };
    engine.seal_with(seal_key)?;
    check_links(&saved, &link, uplink.as_ref())?;
    if let Some(dns) = dns {
        saved.resolvers = dns;
    }
    if let Some(forwards) = forwards {
        anyhow::ensure!(
            !is_restored || saved.uplink.is_none() || forwards == saved.forwards,
            "the forwards of a gateway with an uplink are rules, which come with the image: leave --forward out"
        );
        saved.forwards = forwards;
    }
    let policy = egress.read()?;
    if let Some(policy) = &policy {
        way_out::enforce(&mut engine, link.name(), uplink.is_some(), policy)?;
    }
    for spec in std::iter::once(&link).chain(&uplink) {
        let medium = engine.medium_of(spec.name())?;
        engine.attach(Link::open(spec, medium)?)?;
    }
    engine.check_links()?;
    let own = addresses(&mut engine, link.name());
    let lost = if is_restored { Some(restored::sort(&mut engine, saved.dns_pending)) } else { None };

    // Leases are promises to the network, where time may have gone on.
    let gone = engine.summary().map_or(0.0, |summary| summary.counted_seconds);
    saved.leases.iter_mut().for_each(|lease| lease.age(Duration::try_from_secs_f64(gone).unwrap_or(Duration::MAX)));
    let now = engine.stack().1;
    let server = saved.dhcp.clone().map(|config| DhcpServer::restored(config, &saved.leases, now));
    let leases = server.iter().flat_map(|server| server.leases(now));
    let leases: Vec<String> = leases.map(|(addr, mac, left)| format!("{addr} {mac} {left} s")).collect();
    let server = Rc::new(RefCell::new(server));
    let resolvers = saved.resolvers.ends()?;
    let forwarder = DnsForwarder::new(&resolvers);
    let first_guest = saved.dhcp.as_ref().map(|config| IpAddr::V4(config.first));
    let forwards = saved.forwards.clone();
    engine.save_with(Box::new({
        let (server, forwarder) = (Rc::clone(&server), forwarder.clone());
        move |now| saved.now(&server.borrow(), &forwarder, now)
    }));
    let control_tasks = ControlTasks::bind(&control)?;
    let net = Net::new(engine);
    let way_out = egress.open(&net, link.name(), uplink.is_some(), policy)?;

    let mut services = JoinSet::new();
    start_services(&net, &own, &server, (!resolvers.is_empty()).then_some(&forwarder), &mut services)?;
    let mut open = Vec::new();
    if uplink.is_none() {
        for forward in &forwards {
            let guest = first_guest.or(own.first().copied()).context("the gateway has an address")?;
            open.push(forward.open(guest).await?);
        }
    }
    for forward in open {
        services.spawn_local(forward.run(net.clone(), own.clone()));
    }
    if let Some(lost) = &lost {
        tokio::task::spawn_local(restored::reset_when_up(net.clone(), link.name().to_owned(), lost.streams()));
    }
    if let WayOut::Sockets(egress) = &way_out {
        services.spawn_local(egress.clone().serve());
    }
    let asked = net.clone();
    services.spawn_local(control_tasks.serve(move |request| match request {
        Request::Policy { text } => Answer::Now(way_out.load(&text).map_err(|error| Refused::new(422, error))),
        Request::Egress => Answer::Now(way_out.report().map_err(Refused::from)),
        request => asked.with_engine(|engine| engine.answer(request)),
    }));
    services.spawn_local(runtime::drive(net.clone()));

    let stop = runtime::Stop::watch()?;
    net.with_engine(|engine| {
        let mac = engine.mac_of(link.name());
        if !hold {
            engine.resume();
        }
        let ready = Ready {
            state: if hold { "held" } else { "running" },
            pid: std::process::id(),
            guest: &link,
            mac: mac.map(|mac| mac.to_string()),
            addrs: own.iter().map(ToString::to_string).collect(),
            dns: resolvers.clone(),
            forwards: forwards.iter().map(ToString::to_string).collect(),
            leases: leases.clone(),
            control: &control,
            restored: engine.summary(),
            lost: lost.as_ref(),
        };
        print(json, &ready, || ready.text())
    })?;
    stop.wait(&mut services).await?;
    Ok(net)
}

/// The gateway's own services, on sockets that came with the image or are opened now.
fn start_services(
    net: &Net,
    own: &[IpAddr],
    server: &Rc<RefCell<Option<DhcpServer>>>,
    forwarder: Option<&DnsForwarder>,
    services: &mut JoinSet<anyhow::Result<()>>,
) -> anyhow::Result<()> {
    if server.borrow().is_some() {
        let socket = udp_socket(net, Ipv4Addr::UNSPECIFIED.into(), dhcp::SERVER_PORT)?;
        services.spawn_local(give_addresses(net.clone(), socket, Rc::clone(server)));
    }
    let Some(forwarder) = forwarder else { return Ok(()) };
    for addr in own {
        let socket = udp_socket(net, *addr, dns::PORT)?;
        services.spawn_local(forwarder.clone().answer_datagrams(socket));
        let listener = net.with_engine(|engine| {
            let (stack, _) = engine.stack();
            let at = SocketAddr::new(*addr, dns::PORT);
            let known = stack.tcp_listeners().into_iter().find(|id| stack.tcp_listener_addr(*id) == Some(at));
            let options = ListenOptions {
                stream: StreamOptions { keepalive: Some(KEEPALIVE), ..StreamOptions::default() },
                ..ListenOptions::default()
            };
            known.map_or_else(|| stack.tcp_listen(*addr, dns::PORT, options), Ok)
        });
        let listener = TcpListener::of(net, listener.with_context(|| format!("listening at {addr} port 53"))?);
        services.spawn_local(forwarder.clone().answer_streams(listener));
    }
    Ok(())
}

fn udp_socket(net: &Net, addr: IpAddr, port: u16) -> anyhow::Result<UdpSocket> {
    let id = net.with_engine(|engine| {
        let (stack, _) = engine.stack();
        let at = SocketAddr::new(addr, port);
        let known = stack.udp_sockets().find(|id| stack.udp_local_addr(*id) == Some(at));
        known.map_or_else(|| stack.udp_bind(addr, port), Ok)
    });
    Ok(UdpSocket::of(net, id.with_context(|| format!("a socket at {addr} port {port}"))?))
}

/// Answers DHCP, for ever.
async fn give_addresses(net: Net, socket: UdpSocket, server: Rc<RefCell<Option<DhcpServer>>>) -> anyhow::Result<()> {
    loop {
        // What an ICMP error says of an answer is nobody's to hear.
        let Ok(asked) = socket.receive().await else { continue };
        let now = net.with_engine(|engine| engine.stack().1);
        let answer = server.borrow_mut().as_mut().and_then(|server| server.handle(&asked.payload, now));
        if let Some(answer) = answer {
            // If it is lost, the client asks again.
            drop(socket.send((answer.to, dhcp::CLIENT_PORT).into(), &answer.message));
        }
    }
}

/// A new stack.
fn fresh(
    place: &GuestPlace,
    link: &LinkSpec,
    uplink: Option<&LinkSpec>,
    forwards: &[Forward],
) -> anyhow::Result<(Engine, Saved)> {
    let GuestPlace { addrs, mac, mtu, dhcp, lease, echo, uplink_addrs, via } = place;
    let v4 = addrs
        .iter()
        .find_map(|cidr| if let IpAddr::V4(addr) = cidr.addr() { Some((addr, cidr.prefix())) } else { None });
    let dhcp = match (dhcp, v4) {
        (Some(first), Some((server, prefix))) => Some(dhcp_config(server, prefix, *first, *mtu, *lease)?),
        _ => None,
    };
    let mac = mac.unwrap_or_else(|| default_mac(v4.map(|(addr, _)| addr)));
    let guest = link.name().to_owned();
    let mut links = vec![GatewayLink {
        name: guest.clone(),
        mtu: u32::from(*mtu),
        addrs: addrs.clone(),
        medium: MediumName::Ethernet,
        mac: Some(mac),
    }];
    let to_all = Cidr::host(Ipv4Addr::BROADCAST.into());
    let mut routes = vec![Route { destination: to_all, via: None, link: guest.clone() }];
    if let Some(uplink) = uplink {
        let (name, medium) = (uplink.name().to_owned(), uplink.usual_medium());
        for router in via {
            let destination = if router.is_ipv4() { Cidr::all_v4() } else { Cidr::all_v6() };
            routes.push(Route { destination, via: Some(*router), link: name.clone() });
        }
        links.push(GatewayLink { name, mtu: 1500, addrs: uplink_addrs.clone(), medium, mac: None });
    }
    let first_guest = dhcp.as_ref().map(|config| IpAddr::V4(config.first));
    let uplink_name = uplink.map(|uplink| uplink.name().to_owned());
    let plan = RulePlan { guest: &guest, uplink: uplink_name.as_deref(), forwards, first_guest, echo: *echo };
    let mut config = GatewayConfig {
        links,
        routes,
        sysctls: std::collections::BTreeMap::new(),
        capacity: TRACKED,
        early_drop: EarlyDrop::default(),
        half_open_limit: 0,
        rules: rules(&plan)?,
        connections: LocalLimits::default().connections,
        udp_echo: *echo,
        tcp_echo: *echo,
    };
    config.settle_macs(uplink.map(core::slice::from_ref).unwrap_or_default())?;
    let saved = Saved {
        kind: KIND.to_owned(),
        guest,
        uplink: uplink_name,
        dhcp,
        leases: Vec::new(),
        resolvers: Resolvers::OfHost,
        forwards: Vec::new(),
        dns_pending: 0,
    };
    Ok((Engine::fresh(&config)?, saved))
}

fn dhcp_config(
    server: Ipv4Addr,
    prefix: u8,
    first: Option<Ipv4Addr>,
    mtu: u16,
    lease: Duration,
) -> anyhow::Result<DhcpConfig> {
    let network = server.to_bits() & u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
    let config = DhcpConfig { server, prefix, first: server, dns: vec![server], mtu, lease };
    let usual = [15, 2, 1].map(|host| Ipv4Addr::from_bits(network | host));
    let fits = |first: &Ipv4Addr| DhcpConfig { first: *first, ..config.clone() }.gives_out(*first);
    let first = match first {
        Some(first) if fits(&first) => first,
        Some(first) => anyhow::bail!(
            "DHCP cannot give out {first} on {server}/{prefix}: name another host's address of that network with --dhcp-first"
        ),
        None => usual.into_iter().find(fits).with_context(|| {
            format!("{server}/{prefix} has no room for a guest: give --addr a larger network, or --no-dhcp")
        })?,
    };
    Ok(DhcpConfig { first, ..config })
}

/// A hardware address that is the same for a gateway of the same address: a guest finds its router unchanged.
fn default_mac(addr: Option<Ipv4Addr>) -> MacAddr {
    let [a, b, c, d] = addr.map_or([10, 0, 2, 2], |addr| addr.octets());
    MacAddr::locally_administered([0x52, 0x55, a, b, c, d])
}

fn addresses(engine: &mut Engine, link: &str) -> Vec<IpAddr> {
    let links = engine.stack().0.links();
    links.iter().filter(|known| known.name == link).flat_map(|link| link.addrs.iter().map(Cidr::addr)).collect()
}

fn check_links(saved: &Saved, link: &LinkSpec, uplink: Option<&LinkSpec>) -> anyhow::Result<()> {
    let (guest, wanted) = (link.name(), saved.uplink.as_deref());
    anyhow::ensure!(
        guest == saved.guest,
        "the image's guest is on the link {0}, found {guest}: name it so in --link (`{0}`)",
        saved.guest
    );
    match (uplink.map(LinkSpec::name), wanted) {
        (found, wanted) if found == wanted => Ok(()),
        (None, Some(wanted)) => anyhow::bail!("the image's gateway has an uplink: add `--uplink {wanted}`"),
        (Some(found), Some(wanted)) => anyhow::bail!("the image's uplink is named {wanted}, found {found}"),
        (Some(found), None) => anyhow::bail!("the image's gateway has no uplink: leave out --uplink ({found})"),
        (None, None) => Ok(()),
    }
}

impl Resolvers {
    fn ends(&self) -> anyhow::Result<Vec<SocketAddr>> {
        match self {
            Self::Nobody => Ok(Vec::new()),
            Self::These(ends) => Ok(ends.clone()),
            Self::OfHost => {
                let text = std::fs::read_to_string(RESOLV_CONF).map_err(|error| {
                    let remedy = "name a resolver with --dns, or say --no-dns";
                    Fault::new(format!("cannot read the host's resolvers from {RESOLV_CONF}: {error}"), remedy)
                })?;
                Ok(dns::resolvers_of(&text))
            }
        }
    }
}

impl Saved {
    /// As it is to be saved now.
    fn now(&self, server: &Option<DhcpServer>, forwarder: &DnsForwarder, now: Instant) -> anyhow::Result<Vec<u8>> {
        let Self { kind, guest, uplink, dhcp, leases: _, resolvers, forwards, dns_pending: _ } = self;
        let saved = Self {
            kind: kind.clone(),
            guest: guest.clone(),
            uplink: uplink.clone(),
            dhcp: dhcp.clone(),
            leases: server.as_ref().map(|server| server.saved(now)).unwrap_or_default(),
            resolvers: resolvers.clone(),
            forwards: forwards.clone(),
            dns_pending: forwarder.pending(),
        };
        codec::encode(&saved).context("saving the gateway's leases")
    }
}

impl Ready<'_> {
    fn text(&self) -> String {
        let Self { state, pid, guest, mac, addrs, dns, forwards, leases, control, restored, lost } = self;
        let mut text = restored.map(|summary| format!("{}\n", summary.text())).unwrap_or_default();
        if let Some(lost) = lost {
            text.push_str(&lost.text());
        }
        let dns: Vec<String> = dns.iter().map(ToString::to_string).collect();
        let mac = mac.as_deref().unwrap_or("no hardware address");
        text.push_str(&format!("{state}: guest at {guest}, gateway {} ({mac})", addrs.join(" ")));
        if !dns.is_empty() {
            text.push_str(&format!("; names from {}", dns.join(" ")));
        }
        for forward in forwards {
            text.push_str(&format!("; forward {forward}"));
        }
        for lease in leases {
            text.push_str(&format!("; leased {lease}"));
        }
        text.push_str(&format!("; control socket {}; process {pid}", control.display()));
        text
    }
}

const KIND: &str = "gateway";
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Flows that are tracked.
const TRACKED: u32 = 65_536;
/// A silent guest is asked whether it is there.
const KEEPALIVE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests;
