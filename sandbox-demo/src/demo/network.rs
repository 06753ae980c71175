//! The demonstration's network: a guest and a world with kernels of their own, and the router's namespace between them.

use std::time::Duration;

use hibernet_netstack::Medium;

use super::scenario;
use super::scenario::StreamPlans;
use super::watch::Watch;
use crate::link::Link;
use crate::link::LinkSpec;
use crate::netlink::Netlink;
use crate::peers::Peer;
use crate::peers::PeerRequest;
use crate::peers::Progress;
use crate::peers::StreamCounts;

/// Both peers with their links to the gateway. The links live as long as this value, whatever becomes of a gateway.
pub(super) struct Network {
    pub(super) guest: Peer,
    pub(super) world: Peer,
    links: Vec<LinkSpec>,
    wiring: Wiring,
}

/// What joins kernel peers to the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wiring {
    /// A veth pair each, of which the gateway reads the near end through a packet socket. Needs no device node.
    Veth,
    /// A TUN device each in the peer's namespace, which outlives the gateways that attach to it.
    Tun,
}

impl Wiring {
    /// As `--links` and the figures name it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Veth => "veth",
            Self::Tun => "tun",
        }
    }

    /// What it is made of, for the story.
    pub(super) fn description(self) -> &'static str {
        match self {
            Self::Veth => "joined to the gateway by veth pairs that it reads through packet sockets",
            Self::Tun => "joined to the gateway by a TUN device in each, which stays when the gateway dies",
        }
    }
}

/// How the streams of both peers stand.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct BothProgress {
    pub(super) guest: Progress,
    pub(super) world: Progress,
}

impl Network {
    /// Makes peers in namespaces of their own, and their links. This process is in the router's namespace already.
    pub(super) fn build(wiring: Wiring) -> anyhow::Result<Self> {
        let (mut guest, mut world) = (Peer::start("guest")?, Peer::start("world")?);
        let (guest_link, guest_device) = join(&mut guest, scenario::GUEST_LINK, GUEST_MAC, wiring)?;
        let (world_link, world_device) = join(&mut world, scenario::WORLD_LINK, WORLD_MAC, wiring)?;
        guest.run(&PeerRequest::Network {
            device: guest_device.to_owned(),
            addresses: scenario::guest_addresses(),
            gateways: scenario::GUEST_GATEWAYS.to_vec(),
        })?;
        world.run(&PeerRequest::Network {
            device: world_device.to_owned(),
            addresses: scenario::world_addresses(),
            gateways: scenario::WORLD_GATEWAYS.to_vec(),
        })?;
        let links = vec![guest_link, world_link];
        // What a gateway will do first: here a failure can still lead to other links.
        links.iter().try_for_each(|link| Link::open(link, Medium::Ip).map(drop))?;
        Ok(Self { guest, world, links, wiring })
    }

    /// The devices a gateway is to open.
    pub(super) fn links(&self) -> &[LinkSpec] {
        &self.links
    }

    /// What joins the peers to a gateway.
    pub(super) fn wiring(&self) -> Wiring {
        self.wiring
    }

    /// Tells both peers the same.
    pub(super) fn tell(&mut self, request: &PeerRequest) -> anyhow::Result<()> {
        self.guest.run(request)?;
        self.world.run(request)
    }

    /// How far both peers are; `Mark` or `Progress`.
    pub(super) fn progress(&mut self, request: &PeerRequest) -> anyhow::Result<BothProgress> {
        Ok(BothProgress { guest: self.guest.call(request)?, world: self.world.call(request)? })
    }

    /// Opens the streams of one job, and lets them send once all are open.
    pub(super) fn open_streams(&mut self, plans: StreamPlans, watch: &Watch) -> anyhow::Result<()> {
        self.guest.run(&PeerRequest::Listen { at: scenario::guest_listens() })?;
        self.world.run(&PeerRequest::Listen { at: scenario::world_listens() })?;
        let wanted = plans.by_guest.len() + plans.by_world.len();
        self.guest.run(&PeerRequest::Connect { streams: plans.by_guest })?;
        self.world.run(&PeerRequest::Connect { streams: plans.by_world })?;
        let mut progress = BothProgress::default();
        watch.wait(OPEN_TIME, || {
            progress = self.progress(&PeerRequest::Progress)?;
            Ok(progress.open() == wanted)
        })?;
        anyhow::ensure!(
            progress.open() == wanted,
            "{} of {wanted} connections came up within {} s",
            progress.open(),
            OPEN_TIME.as_secs()
        );
        self.tell(&PeerRequest::StartStreams)
    }
}

/// Makes a peer's link: the device as the gateway opens it, and its name in the peer's namespace.
fn join(peer: &mut Peer, link: &'static str, mac: [u8; 6], wiring: Wiring) -> anyhow::Result<(LinkSpec, &'static str)> {
    match wiring {
        Wiring::Veth => {
            let mut netlink = Netlink::open()?;
            netlink.add_veth(link, PEER_DEVICE, peer.pid(), mac, scenario::MTU)?;
            netlink.set_up(link)?;
            Ok((LinkSpec::packet(link), PEER_DEVICE))
        }
        Wiring::Tun => {
            peer.run(&PeerRequest::MakeTun { device: link.to_owned(), mtu: scenario::MTU })?;
            Ok((LinkSpec::tun_of(link, peer.pid()), link))
        }
    }
}

impl BothProgress {
    /// Streams open at both ends.
    pub(super) fn open(&self) -> usize {
        self.count(|streams| streams.open)
    }

    /// Streams of which data arrived at the guest, and at the world, since the last mark: the fewer. Of those that end in the
    /// gateway, what came back.
    pub(super) fn advanced(&self) -> usize {
        self.count(|streams| streams.advanced)
    }

    /// Every byte that was sent has arrived, or come back.
    pub(super) fn all_arrived(&self) -> bool {
        let Self { guest, world } = self;
        let through =
            guest.forwarded.sent == world.forwarded.received && world.forwarded.sent == guest.forwarded.received;
        through && [guest.terminated, world.terminated].iter().all(|streams| streams.sent == streams.received)
    }

    /// Streams that have ended in order at both ends.
    pub(super) fn closed(&self) -> usize {
        self.count(|streams| streams.closed)
    }

    /// Forwarded streams count if both peers say so; of a terminated one there is only one peer to ask.
    fn count(&self, counted: fn(&StreamCounts) -> usize) -> usize {
        let Self { guest, world } = self;
        let forwarded = counted(&guest.forwarded).min(counted(&world.forwarded));
        forwarded + counted(&guest.terminated) + counted(&world.terminated)
    }
}

/// For the connections to come up; half a second on an idle machine.
const OPEN_TIME: Duration = Duration::from_secs(20);
/// A peer's only device besides `lo`, at the far end of a veth pair.
const PEER_DEVICE: &str = "eth0";
/// Locally administered hardware addresses, the same at both ends of a pair.
const GUEST_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
const WORLD_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x02];
