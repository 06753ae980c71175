//! The main job: the gateway is saved, killed and restored under traffic, twice, and everything goes on.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use hibernet_snapshot::Instant;

use super::gateway_process::GatewayProcess;
use super::network::Network;
use super::scenario;
use super::scenario::Rules;
use super::scenario::StreamPlans;
use super::watch::Watch;
use crate::clock;
use crate::clock::millis;
use crate::control::After;
use crate::control::CanaryReply;
use crate::control::KeysReply;
use crate::control::ListReply;
use crate::control::Request;
use crate::control::RestoreSummary;
use crate::control::SaveForm;
use crate::control::SaveReply;
use crate::control::StatsReply;
use crate::control::StatusReply;
use crate::peers::KernelCounters;
use crate::peers::PeerReport;
use crate::peers::PeerRequest;

/// What the main job came to.
pub(super) struct Carried {
    pub(super) expected: Expected,
    pub(super) cycles: Vec<Cycle>,
    /// Fingerprints of the keys of every process, in order.
    pub(super) keys: Vec<Vec<String>>,
    pub(super) guest: PeerReport,
    pub(super) world: PeerReport,
    /// Counters of both kernels before the first connection.
    pub(super) before: [KernelCounters; 2],
    /// The same when every byte had arrived and no stream was closed yet. A kernel may well answer a late duplicate on a
    /// connection that both ends have closed with an RST; that one is nobody's loss and is not counted.
    pub(super) after: [KernelCounters; 2],
    /// Datagrams the gateways' links had no room for, and frames they could not read.
    pub(super) overruns: u64,
}

/// What must have been carried.
#[derive(Debug, Clone, Copy)]
pub(super) struct Expected {
    pub(super) mode: &'static str,
    pub(super) links: &'static str,
    pub(super) streams: usize,
    /// Those of the streams that end in the gateway.
    pub(super) terminated: usize,
    pub(super) datagram_flows: usize,
    pub(super) pings: usize,
}

/// One save, kill and restore.
pub(super) struct Cycle {
    pub(super) save: SaveReply,
    pub(super) canary: CanaryReply,
    pub(super) restored: RestoreSummary,
    pub(super) list_equal: bool,
    /// Streams that were open, and received something in both directions since the last cycle, when the save began.
    pub(super) under_traffic: usize,
    /// When the gateway stood still, and when its successor went on.
    pub(super) outage: (Instant, Instant),
}

impl Cycle {
    /// Tells the story of this cycle; `end` is how the old gateway ended, and who came after.
    pub(super) fn tell(&self, number: usize, end: &str, watch: &Watch) {
        let Cycle { save, canary, restored, list_equal, under_traffic: _, outage } = self;
        let outage = millis(outage.1.saturating_since(outage.0));
        watch.say(format_args!(
        "Save {number}: {} flows in {} bytes; the packet loop waited {} ms, the file was safe after {} ms. Keys of that \
         process in the image: {} (a planted one is {}).",
        save.flows,
        save.bytes,
        save.pause_ms,
        save.save_ms,
        canary.hits,
        if canary.planted_found { "found" } else { "NOT found" }
    ));
        watch.say(format_args!(
            "  {end} restored it in {} ms (rehash {} ms): {}; its list is {} before the first frame. No traffic for \
             {outage} ms.",
            restored.restore_ms,
            restored.rehash_ms,
            restored.outcome(),
            if *list_equal { "the same" } else { "NOT the same" }
        ));
    }
}

/// Runs the job.
pub(super) fn carry(network: &mut Network, dir: &Path, watch: &Watch) -> anyhow::Result<Carried> {
    let config = dir.join("strict.json");
    fs::write(&config, scenario::gateway_config(Rules::Strict).to_string()).context("writing the configuration")?;
    let mut gateway = GatewayProcess::fresh(&config, network.links(), dir.join("control-0"), watch)?;
    let before = [network.guest.counters()?, network.world.counters()?];

    start_traffic(network, watch)?;
    watch.say(format_args!(
        "{} TCP connections are open, data flows both ways: {} go through the gateway (a quarter each IPv4 masquerade, \
         IPv6 masquerade, inbound DNAT, plain routed), {} end in its own TCP stack, which sends everything back; {} UDP \
         flows and {} pings beside them.",
        scenario::STREAMS,
        scenario::STREAMS - scenario::terminated(scenario::STREAMS),
        scenario::terminated(scenario::STREAMS),
        scenario::DATAGRAM_FLOWS,
        scenario::PINGS.len()
    ));

    let mut cycles = Vec::new();
    let mut keys = vec![gateway.call::<KeysReply>(&Request::Keys)?.fingerprints];
    let mut overruns = 0;
    for number in 1..=CYCLES {
        let under_traffic = let_all_advance(network, watch)?;
        overruns += link_overruns(&mut gateway)?;
        let (successor, cycle) = take_over(gateway, network, dir, number, under_traffic, watch)?;
        cycle.tell(number, "SIGKILL; a new process", watch);
        gateway = successor;
        keys.push(gateway.call::<KeysReply>(&Request::Keys)?.fingerprints);
        cycles.push(cycle);
    }

    let_all_advance(network, watch)?;
    network.tell(&PeerRequest::QuietStreams)?;
    network.guest.run(&PeerRequest::FinishDatagrams)?;
    watch.wait(LONG, || Ok(network.progress(&PeerRequest::Progress)?.all_arrived()))?;
    watch.pause(LAST_REPLIES)?;
    let after = [network.guest.counters()?, network.world.counters()?];
    network.tell(&PeerRequest::CloseStreams)?;
    watch.wait(LONG, || Ok(network.progress(&PeerRequest::Progress)?.closed() == scenario::STREAMS))?;
    overruns += link_overruns(&mut gateway)?;
    let (guest, world) = (network.guest.call(&PeerRequest::Report)?, network.world.call(&PeerRequest::Report)?);
    network.tell(&PeerRequest::Clear)?;
    gateway.kill()?;
    let expected = Expected {
        mode: "kernel peers",
        links: network.wiring().name(),
        streams: scenario::STREAMS,
        terminated: scenario::terminated(scenario::STREAMS),
        datagram_flows: usize::from(scenario::DATAGRAM_FLOWS),
        pings: scenario::PINGS.len(),
    };
    Ok(Carried { expected, cycles, keys, guest, world, before, after, overruns })
}

fn start_traffic(network: &mut Network, watch: &Watch) -> anyhow::Result<()> {
    network.world.run(&PeerRequest::Answer { at: scenario::world_answers() })?;
    network.guest.run(&PeerRequest::Send { flows: scenario::datagram_plans() })?;
    network.guest.run(&PeerRequest::Ping { targets: scenario::PINGS.to_vec() })?;
    network.open_streams(StreamPlans::new(0, scenario::STREAMS), watch)
}

/// Waits until every stream has moved in both directions, and lets a little more pass; how many did move.
fn let_all_advance(network: &mut Network, watch: &Watch) -> anyhow::Result<usize> {
    network.progress(&PeerRequest::Mark)?;
    let mut advanced = 0;
    watch.wait(LONG, || {
        advanced = network.progress(&PeerRequest::Progress)?.advanced();
        Ok(advanced == scenario::STREAMS)
    })?;
    watch.pause(TRAFFIC_TIME)?;
    Ok(advanced)
}

/// Saves the gateway, kills it, and starts another from the image.
fn take_over(
    mut gateway: GatewayProcess,
    network: &Network,
    dir: &Path,
    number: usize,
    under_traffic: usize,
    watch: &Watch,
) -> anyhow::Result<(GatewayProcess, Cycle)> {
    let image = dir.join(format!("image-{number}"));
    let stood = clock::monotonic();
    // From here on the gateway reads nothing more: what the image does not know must not have passed.
    let save: SaveReply =
        gateway.call(&Request::Save { path: image.clone(), after: After::Hold, form: SaveForm::default() })?;
    let listed: ListReply = gateway.call(&Request::List)?;
    let canary: CanaryReply = gateway.call(&Request::Canary { path: image.clone() })?;
    gateway.kill()?;

    let control = dir.join(format!("control-{number}"));
    let mut successor = GatewayProcess::restored(&image, network.links(), control, watch)?;
    let list_equal = successor.call::<ListReply>(&Request::List)? == listed;
    let status: StatusReply = successor.call(&Request::Status)?;
    let restored = status.restored.context("the restored gateway does not say how it was restored")?;
    successor.resume()?;
    let outage = (stood, clock::monotonic());
    Ok((successor, Cycle { save, canary, restored, list_equal, under_traffic, outage }))
}

fn link_overruns(gateway: &mut GatewayProcess) -> anyhow::Result<u64> {
    let stats: StatsReply = gateway.call(&Request::Stats)?;
    Ok(stats.links.iter().map(|link| link.receive_overruns + link.send_drops).sum())
}

/// Saves, kills and restores in the run.
const CYCLES: usize = 2;
/// Traffic beyond every stream's first step, before the next save.
const TRAFFIC_TIME: Duration = Duration::from_millis(700);
/// The last numbered datagrams get so long to come back.
const LAST_REPLIES: Duration = Duration::from_millis(300);
/// For what takes a second on an idle machine.
const LONG: Duration = Duration::from_secs(15);
