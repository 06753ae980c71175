//! The control: what happens to the same connections when the gateway comes back with an empty table.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;

use super::gateway_process::GatewayProcess;
use super::network::Network;
use super::scenario;
use super::scenario::Rules;
use super::scenario::StreamPlans;
use super::watch::Watch;
use crate::peers::PeerRequest;

/// How many of how many streams did not live through it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Broken {
    pub(super) broken: usize,
    pub(super) streams: usize,
}

/// Lets the streams run, kills the gateway, starts it anew from its configuration, and counts the streams that receive
/// nothing more in at least one direction.
pub(super) fn count_broken(network: &mut Network, dir: &Path, rules: Rules, watch: &Watch) -> anyhow::Result<Broken> {
    let (name, round) = match rules {
        Rules::Strict => ("control", 1),
        Rules::Permissive => ("permissive", 2),
    };
    let config = dir.join(format!("{name}.json"));
    fs::write(&config, scenario::gateway_config(rules).to_string()).context("writing the configuration")?;
    let gateway = GatewayProcess::fresh(&config, network.links(), dir.join(format!("{name}-0")), watch)?;
    network.open_streams(StreamPlans::new(round, scenario::STREAMS), watch)?;
    watch.pause(TRAFFIC_TIME)?;

    gateway.kill()?;
    let gateway = GatewayProcess::fresh(&config, network.links(), dir.join(format!("{name}-1")), watch)?;
    // Nothing passes between the end of the one and the start of the other; what arrives behind this mark has passed
    // the new one, but for what it let through since.
    network.progress(&PeerRequest::Mark)?;
    watch.wait(BREAK_TIME, || Ok(network.progress(&PeerRequest::Progress)?.advanced() == scenario::STREAMS))?;
    let alive = network.progress(&PeerRequest::Progress)?.advanced();
    network.tell(&PeerRequest::Clear)?;
    gateway.kill()?;
    Ok(Broken { broken: scenario::STREAMS - alive.min(scenario::STREAMS), streams: scenario::STREAMS })
}

/// Traffic before the kill.
const TRAFFIC_TIME: Duration = Duration::from_millis(300);
/// A connection that lives retransmits several times within this time (200 ms, doubling).
const BREAK_TIME: Duration = Duration::from_secs(3);
