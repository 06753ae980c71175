//! `serve`: an HTTP and an echo server inside the sandbox's own stack, whose connections go on after save, kill and restore.

mod files;
mod http;
mod sessions;

use std::net::IpAddr;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use hibernet_conntrack::EarlyDrop;
use hibernet_netstack::Cidr;
use hibernet_netstack::ListenOptions;
use hibernet_netstack::LocalLimits;
use hibernet_netstack::Route;
use hibernet_netstack::StreamOptions;
use hibernet_netstack::StreamState;
use hibernet_netstack::Supplied;
use hibernet_netstack::TcpStream as StreamId;
use hibernet_snapshot::codec;
use hibernet_snapshot::image::Limits;
use serde::Deserialize;
use serde::Serialize;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::task::LocalSet;

use self::files::Root;
use self::sessions::Service;
use self::sessions::Session;
use self::sessions::Sessions;
use crate::commands::print;
use crate::control::ControlTasks;
use crate::control::RestoreSummary;
use crate::fault::Fault;
use crate::gateway::Engine;
use crate::gateway::GatewayConfig;
use crate::gateway::GatewayLink;
use crate::gateway::MediumName;
use crate::gateway::RestoreRequest;
use crate::link::Link;
use crate::link::LinkSpec;
use crate::runtime;
use crate::runtime::Net;
use crate::runtime::TcpListener;
use crate::runtime::TcpStream;
use crate::runtime::UdpSocket;

/// What `serve` is told.
pub(crate) struct ServeOptions {
    pub(crate) start: ServeStart,
    pub(crate) link: LinkSpec,
    pub(crate) root: PathBuf,
    /// Connections at once, for each service.
    pub(crate) most: u16,
    pub(crate) control: PathBuf,
    pub(crate) hold: bool,
    /// The file with the key that images are opened and sealed with.
    pub(crate) seal_key: Option<PathBuf>,
    pub(crate) json: bool,
}

/// Where the server's stack comes from.
pub(crate) enum ServeStart {
    Fresh(Place),
    /// From an image that `serve` was saved to; all of [`Place`] comes with it.
    Restored(Box<RestoreRequest>),
}

/// Where in its network a new server is.
pub(crate) struct Place {
    pub(crate) addrs: Vec<Cidr>,
    pub(crate) via: Vec<IpAddr>,
    pub(crate) mtu: u32,
    pub(crate) http: u16,
    pub(crate) echo: u16,
    pub(crate) discard: Option<u16>,
    pub(crate) chargen: Option<u16>,
    /// Bytes of each buffer of a stream.
    pub(crate) buffer: u32,
}

/// Where the services are.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Ports {
    http: u16,
    echo: u16,
    discard: Option<u16>,
    chargen: Option<u16>,
}

/// What the services have saved beside the stack.
#[derive(Serialize, Deserialize)]
struct Saved {
    ports: Ports,
    sessions: Vec<(StreamId, Session)>,
}

/// [`Saved`], to be written.
#[derive(Serialize)]
struct Saving<'a> {
    ports: Ports,
    sessions: Vec<(&'a StreamId, &'a Session)>,
}

/// What the server says once it is ready.
#[derive(Serialize)]
struct Ready<'a> {
    state: &'static str,
    pid: u32,
    http: Vec<String>,
    echo: Vec<SocketAddr>,
    control: &'a std::path::Path,
    restored: Option<&'a RestoreSummary>,
    /// Connections that go on.
    resumed: usize,
}

/// Serves until SIGINT or SIGTERM.
pub(crate) fn serve(options: ServeOptions) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    let tasks = LocalSet::new();
    let net = runtime.block_on(tasks.run_until(run(options)))?;
    // The tasks' streams are closed with them; the last turn tells the peers.
    drop(tasks);
    net.with_engine(Engine::turn);
    Ok(())
}

async fn run(options: ServeOptions) -> anyhow::Result<Net> {
    let ServeOptions { start, link, root, most, control, hold, seal_key, json } = options;
    let root = Root::open(&root)?;
    let limits = LocalLimits { connections: u32::from(most).saturating_mul(2).saturating_add(SPARE) };
    let (mut engine, saved) = match start {
        ServeStart::Fresh(place) => fresh(&place, &link, limits)?,
        ServeStart::Restored(image) => restored(&image, limits)?,
    };
    engine.seal_with(seal_key)?;
    let medium = engine.medium_of(link.name())?;
    engine.attach(Link::open(&link, medium)?)?;
    let (stack, _) = engine.stack();
    if let Some(id) = stack.link(link.name()) {
        // Nothing is routed on here, and no rule counts packets.
        stack.set_link_coalescing(id, true);
    }
    engine.check_links()?;
    let Saved { ports, sessions: to_resume } = saved;
    let Ports { http, echo, .. } = ports;
    let sessions = Sessions::new(root, usize::from(most));
    engine.save_with(Box::new({
        let sessions = sessions.clone();
        move |_| {
            sessions.look(|by_stream| {
                let saving = Saving { ports, sessions: by_stream.iter().collect() };
                codec::encode(&saving).context("saving what is served")
            })
        }
    }));
    let control_tasks = ControlTasks::bind(&control)?;
    let net = Net::new(engine);

    let mut services = JoinSet::new();
    let goes_on =
        |id| net.with_engine(|engine| engine.stack().0.tcp_state(id)).is_some_and(|state| state != StreamState::Closed);
    let resumed = to_resume.iter().filter(|(id, _)| goes_on(*id)).count();
    for (id, session) in to_resume {
        sessions.resume(TcpStream::of(&net, id), session);
    }
    for id in net.with_engine(|engine| engine.stack().0.tcp_listeners()) {
        let addr =
            net.with_engine(|engine| engine.stack().0.tcp_listener_addr(id)).context("a listener without address")?;
        services.spawn_local(sessions.clone().accept(TcpListener::of(&net, id), ports.service(addr.port())));
    }
    for id in net.with_engine(|engine| engine.stack().0.udp_sockets().collect::<Vec<_>>()) {
        services.spawn_local(sessions::echo_datagrams(UdpSocket::of(&net, id), echo));
    }
    let asked = net.clone();
    services.spawn_local(control_tasks.serve(move |request| asked.with_engine(|engine| engine.answer(request))));
    services.spawn_local(runtime::drive(net.clone()));

    let stop = runtime::Stop::watch()?;
    net.with_engine(|engine| {
        if !hold {
            engine.resume();
        }
        let addresses: Vec<IpAddr> =
            engine.stack().0.links().iter().flat_map(|link| link.addrs.iter().map(Cidr::addr)).collect();
        let ends = |port| addresses.iter().map(move |addr| SocketAddr::new(*addr, port));
        let ready = Ready {
            state: if hold { "held" } else { "serving" },
            pid: std::process::id(),
            http: ends(http).map(|end| format!("http://{end}/")).collect(),
            echo: ends(echo).collect(),
            control: &control,
            restored: engine.summary(),
            resumed,
        };
        print(json, &ready, || ready.text())
    })?;
    stop.wait(&mut services).await?;
    Ok(net)
}

/// A new stack on the link, closed but for its two services and pings.
fn fresh(place: &Place, link: &LinkSpec, limits: LocalLimits) -> anyhow::Result<(Engine, Saved)> {
    let Place { addrs, via, mtu, http, echo, discard, chargen, buffer } = place;
    let ports = Ports { http: *http, echo: *echo, discard: *discard, chargen: *chargen };
    ports.check()?;
    let name = link.name().to_owned();
    let medium = if link.is_tap() { MediumName::Ethernet } else { MediumName::Ip };
    let default_route = |via: &IpAddr| Route {
        destination: if via.is_ipv4() { Cidr::all_v4() } else { Cidr::all_v6() },
        via: Some(*via),
        link: name.clone(),
    };
    let service = |port| {
        json!({"chain": "input", "match": {"proto": "tcp", "dport": port, "ctstate": ["new"],
        "tcpflags_syn_only": true}, "action": "accept"})
    };
    let datagrams = json!({"chain": "input", "match": {"proto": "udp", "dport": echo, "ctstate": ["new"]},
        "action": "accept"});
    let ping = |proto| json!({"chain": "input", "match": {"proto": proto}, "action": "accept"});
    let mut rules = json!({"policy": {"input": "drop", "forward": "drop"}, "rules": [
        {"chain": "input", "match": {"ctstate": ["established", "related"]}, "action": "accept"},
        datagrams, ping("icmp"), ping("icmp6"),
    ]});
    if let Some(rules) = rules.get_mut("rules").and_then(serde_json::Value::as_array_mut) {
        rules.extend(ports.all().map(|(_, port)| service(port)));
    }
    let mut config = GatewayConfig {
        links: vec![GatewayLink { name: name.clone(), mtu: *mtu, addrs: addrs.clone(), medium, mac: None }],
        routes: via.iter().map(default_route).collect(),
        sysctls: [("nf_conntrack_tcp_loose".to_owned(), json!(0))].into(),
        capacity: TRACKED,
        early_drop: EarlyDrop::default(),
        half_open_limit: 0,
        rules: serde_json::from_value(rules).context("the rules")?,
        connections: limits.connections,
        udp_echo: None,
        tcp_echo: None,
    };
    config.settle_macs(core::slice::from_ref(link))?;
    let mut engine = Engine::fresh(&config)?;
    let stream = StreamOptions { receive_buffer: *buffer, send_buffer: *buffer, ..StreamOptions::default() };
    let listen = ListenOptions {
        stream: StreamOptions { keepalive: Some(KEEPALIVE), user_timeout: Some(GIVE_UP), ..stream },
        ..ListenOptions::default()
    };
    for (_, port) in ports.all() {
        let (stack, _) = engine.stack();
        stack.tcp_listen(IpAddr::from([0_u16; 8]), port, listen).with_context(|| format!("port {port}"))?;
    }
    engine.stack().0.udp_bind(IpAddr::from([0_u16; 8]), *echo).with_context(|| format!("port {echo}"))?;
    Ok((engine, Saved { ports, sessions: Vec::new() }))
}

fn restored(request: &RestoreRequest, limits: LocalLimits) -> anyhow::Result<(Engine, Saved)> {
    let mut engine = Engine::restored(request, Supplied { local: limits, ..Supplied::default() })?;
    let foreign = || {
        let what = format!("the image {} holds no server", request.path.display());
        Fault::new(what, "give one that was saved from `sandbox-demo serve`; a gateway's is for `restore`")
    };
    let state = engine.application_state().ok_or_else(foreign)?;
    let saved = codec::decode(&state, &Limits::default()).context("reading what was served")?;
    Ok((engine, saved))
}

impl Ports {
    /// The services that are offered, with their ports.
    fn all(self) -> impl Iterator<Item = (Service, u16)> {
        let Self { http, echo, discard, chargen } = self;
        let always = [(Service::Http, http), (Service::Echo, echo)];
        let asked_for = [(Service::Discard, discard), (Service::Chargen, chargen)];
        always.into_iter().chain(asked_for.into_iter().filter_map(|(service, port)| Some((service, port?))))
    }

    fn service(self, port: u16) -> Service {
        self.all().find(|(_, own)| *own == port).map_or(Service::Echo, |(service, _)| service)
    }

    /// Two services cannot share a port.
    fn check(self) -> anyhow::Result<()> {
        for (at, (service, port)) in self.all().enumerate() {
            if let Some((other, _)) = self.all().skip(at + 1).find(|(_, other)| *other == port) {
                let (one, other) = (service.option(), other.option());
                anyhow::bail!("{one} and {other} are both {port}: give one of them another port");
            }
        }
        Ok(())
    }
}

impl Service {
    fn option(self) -> &'static str {
        match self {
            Self::Http => "--http",
            Self::Echo => "--echo",
            Self::Discard => "--discard",
            Self::Chargen => "--chargen",
        }
    }
}

impl Ready<'_> {
    fn text(&self) -> String {
        let Self { state, pid, http, echo, control, restored, resumed } = self;
        let mut text = restored.map(|summary| format!("{}\n", summary.text())).unwrap_or_default();
        let echo: Vec<String> = echo.iter().map(ToString::to_string).collect();
        text.push_str(&format!(
            "{state} {}; echo at {}; control socket {}; process {pid}",
            http.join(" "),
            echo.join(" "),
            control.display()
        ));
        if restored.is_some() {
            text.push_str(&format!("; {resumed} connections go on"));
        }
        text
    }
}

/// Connections beside those that are served: in the backlogs, in handshakes, and closing.
const SPARE: u32 = 1024;
/// Flows that are tracked.
const TRACKED: u32 = 16_384;
/// A silent peer is asked whether it is there.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// A peer that acknowledges nothing for so long is given up.
const GIVE_UP: Duration = Duration::from_secs(60);
