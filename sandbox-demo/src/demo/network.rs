//! The demonstration's network: a guest and a world with kernels of their own, and the router's namespace between them.

use std::time::Duration;

use super::scenario;
use super::scenario::StreamPlans;
use super::watch::Watch;
use crate::netlink::Netlink;
use crate::netns;
use crate::netns::Rights;
use crate::offload::switch_off_offloads;
use crate::peers::Peer;
use crate::peers::PeerRequest;
use crate::peers::Progress;

/// Both peers, linked to this process's namespace. The links live as long as this value, whatever becomes of a gateway.
pub(super) struct Network {
    pub(super) guest: Peer,
    pub(super) world: Peer,
    rights: Rights,
}

/// How the streams of both peers stand.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct BothProgress {
    pub(super) guest: Progress,
    pub(super) world: Progress,
}

impl Network {
    /// Makes namespaces, peers and links. Moves this process into the router's namespace.
    pub(super) fn build() -> anyhow::Result<Self> {
        let rights = netns::enter_router()?;
        netns::silence_kernel();
        let mut network = Self { guest: Peer::start("guest")?, world: Peer::start("world")?, rights };
        let mut netlink = Netlink::open()?;
        for (link, peer, mac) in
            [(scenario::GUEST_LINK, &network.guest, GUEST_MAC), (scenario::WORLD_LINK, &network.world, WORLD_MAC)]
        {
            netlink.add_veth(link, PEER_DEVICE, peer.pid(), mac, scenario::MTU)?;
            switch_off_offloads(link)?;
            netlink.set_up(link)?;
        }
        network.guest.run(&PeerRequest::Network {
            device: PEER_DEVICE.to_owned(),
            addresses: scenario::guest_addresses(),
            gateways: scenario::GUEST_GATEWAYS.to_vec(),
        })?;
        network.world.run(&PeerRequest::Network {
            device: PEER_DEVICE.to_owned(),
            addresses: scenario::world_addresses(),
            gateways: scenario::WORLD_GATEWAYS.to_vec(),
        })?;
        Ok(network)
    }

    /// What it is made of, for the story.
    pub(super) fn description(&self) -> &'static str {
        match self.rights {
            Rights::OwnUserNamespace => {
                "A user namespace of our own, a guest and a world with kernel TCP in network namespaces, joined to the \
                 gateway by veth pairs that it reads through packet sockets."
            }
            Rights::Root => {
                "As root, without a user namespace: a guest and a world with kernel TCP in network namespaces, joined to \
                 the gateway by veth pairs that it reads through packet sockets."
            }
        }
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

impl BothProgress {
    /// Streams open at both ends.
    pub(super) fn open(&self) -> usize {
        self.guest.open.min(self.world.open)
    }

    /// Streams of which data arrived at the guest, and at the world, since the last mark: the fewer.
    pub(super) fn advanced(&self) -> usize {
        self.guest.advanced.min(self.world.advanced)
    }

    /// Every byte that was sent has arrived.
    pub(super) fn all_arrived(&self) -> bool {
        self.guest.sent == self.world.received && self.world.sent == self.guest.received
    }

    /// Streams that have ended in order at both ends.
    pub(super) fn closed(&self) -> usize {
        self.guest.closed.min(self.world.closed)
    }
}

/// For the connections to come up; half a second on an idle machine.
const OPEN_TIME: Duration = Duration::from_secs(20);
/// A peer's only device besides `lo`.
const PEER_DEVICE: &str = "eth0";
/// Locally administered hardware addresses, the same at both ends of a pair.
const GUEST_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
const WORLD_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x02];
