//! The gateway with rootless egress, on the async runtime.

use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::task::LocalSet;

use super::Egress;
use super::EgressLimits;
use super::Policy;
use super::end_lost_streams;
use super::has_policy;
use super::load_policy;
use crate::commands::print;
use crate::control::Answer;
use crate::control::ControlTasks;
use crate::control::EgressReply;
use crate::control::Refused;
use crate::control::Request;
use crate::control::RestoreSummary;
use crate::fault::Fault;
use crate::fault::raise_file_limit;
use crate::gateway::Engine;
use crate::link::LinkSpec;
use crate::runtime;
use crate::runtime::Net;

/// What a gateway with egress is told.
#[derive(Debug, Clone)]
pub(crate) struct EgressOptions {
    /// The policy; without one a restored gateway keeps its image's.
    pub(crate) policy: Option<PathBuf>,
    pub(crate) limits: EgressLimits,
}

/// What the gateway says once it is ready.
#[derive(Serialize)]
struct Ready<'a> {
    state: &'static str,
    pid: u32,
    control: &'a Path,
    restored: Option<&'a RestoreSummary>,
    /// The policy in force; none if it came with the image.
    policy: Option<String>,
}

/// Runs a gateway whose guests go out by this process's own sockets, until SIGINT or SIGTERM.
pub(crate) fn run(
    engine: Engine,
    links: &[LinkSpec],
    control: &Path,
    hold: bool,
    json: bool,
    options: &EgressOptions,
) -> anyhow::Result<()> {
    raise_file_limit(options.limits.descriptors().saturating_add(SPARE))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    let tasks = LocalSet::new();
    let net = runtime.block_on(tasks.run_until(serve(engine, links, control, hold, json, options)))?;
    // The tasks' streams are closed with them; the last turn tells the guests.
    drop(tasks);
    net.with_engine(Engine::turn);
    Ok(())
}

async fn serve(
    mut engine: Engine,
    links: &[LinkSpec],
    control: &Path,
    hold: bool,
    json: bool,
    options: &EgressOptions,
) -> anyhow::Result<Net> {
    let EgressOptions { policy, limits } = options;
    let policy = policy.as_deref().map(Policy::read).transpose()?.map(|(policy, _)| policy);
    // Before a device is open: no frame meets any other rules.
    match &policy {
        Some(policy) => load_policy(&mut engine, policy)?,
        None if has_policy(engine.stack().0.rules()) => {}
        None => {
            return Err(Fault::new(
                "there is no egress policy, neither in the image nor on the command line",
                "give --egress-policy FILE; `sandbox-demo policy check --help` shows one",
            )
            .into());
        }
    }
    let kept = end_lost_streams(&mut engine, |_| None);
    engine.open_links(links)?;
    let control_tasks = ControlTasks::bind(control)?;
    let net = Net::new(engine);
    let egress = Egress::new(&net, *limits, policy);
    egress.adopt(kept)?;

    let mut services = JoinSet::new();
    let (asked, answering) = (net.clone(), egress.clone());
    services.spawn_local(control_tasks.serve(move |request| match request {
        Request::Policy { text } => Answer::Now(reload(&answering, &text).map_err(|error| Refused::new(422, error))),
        Request::Egress => Answer::Now(report(&answering).map_err(Refused::from)),
        request => asked.with_engine(|engine| engine.answer(request)),
    }));
    services.spawn_local(egress.clone().serve());
    services.spawn_local(runtime::drive(net.clone()));

    let stop = runtime::Stop::watch()?;
    net.with_engine(|engine| {
        if !hold {
            engine.resume();
        }
        let state = if hold { "held" } else { "running" };
        let (pid, restored) = (std::process::id(), engine.summary());
        let ready = Ready { state, pid, control, restored, policy: egress.policy_text() };
        print(json, &ready, || ready.text())
    })?;
    stop.wait(&mut services).await?;
    Ok(net)
}

fn reload(egress: &Egress, text: &str) -> Result<serde_json::Value, String> {
    let policy = Policy::parse(text).map_err(|error| format!("the egress policy, {error}"))?;
    let done = egress.load(policy).map_err(|error| format!("{error:#}"))?;
    serde_json::to_value(done).map_err(|error| error.to_string())
}

/// What goes out by host sockets, as it is told to who asks.
pub(crate) fn report(egress: &Egress) -> Result<serde_json::Value, String> {
    let [tcp, udp, echo] = egress.flows();
    let reply = EgressReply { tcp, udp, echo, policy: egress.policy_text() };
    serde_json::to_value(reply).map_err(|error| error.to_string())
}

impl Ready<'_> {
    fn text(&self) -> String {
        let Self { state, pid, control, restored, policy } = self;
        let mut text = restored.map(|summary| format!("{}\n", summary.text())).unwrap_or_default();
        text.push_str(&format!("{state}; control socket {}; process {pid}; egress policy:\n", control.display()));
        text.push_str(policy.as_deref().unwrap_or("     as it was saved\n"));
        text
    }
}

impl Default for EgressLimits {
    fn default() -> Self {
        Self { tcp: 4096, udp: 4096, echo: 256, connect: Duration::from_secs(127) }
    }
}

/// Descriptors beside those of flows.
const SPARE: u64 = 64;
