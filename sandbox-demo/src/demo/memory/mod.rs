//! The fallback where no kernel can be had as a peer: a smaller demonstration within this process, smoltcp at both ends.
//!
//! The stack is still saved to a file, dropped, and restored from it with new keys; nothing but the wires lives on.

mod host;

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use hibernet_netstack::Supplied;
use hibernet_snapshot::Entropy;
use serde::de::DeserializeOwned;

use self::host::Host;
use super::broken::Broken;
use super::carried::Carried;
use super::carried::Cycle;
use super::carried::Expected;
use super::network::BothProgress;
use super::scenario;
use super::scenario::Rules;
use super::scenario::StreamPlans;
use super::watch::Watch;
use crate::clock;
use crate::control::After;
use crate::control::Answer;
use crate::control::KeysReply;
use crate::control::ListReply;
use crate::control::Request;
use crate::control::SaveForm;
use crate::control::StatusReply;
use crate::gateway::Engine;
use crate::gateway::GatewayConfig;
use crate::gateway::RestoreRequest;
use crate::link::Link;
use crate::link::Wire;
use crate::peers::PeerReport;

/// Two hosts, their wires, and the gateway between them while there is one.
struct Memory {
    guest: Host,
    world: Host,
    wires: [(&'static str, Wire); 2],
}

/// Runs the main job and the control in memory.
pub(super) fn run(dir: &Path, watch: &Watch) -> anyhow::Result<(Carried, Broken)> {
    let carried = carry(dir, watch)?;
    let control = count_broken(watch)?;
    Ok((carried, control))
}

fn carry(dir: &Path, watch: &Watch) -> anyhow::Result<Carried> {
    let mut memory = Memory::new(0)?;
    let mut engine = memory.fresh()?;
    let mut keys = vec![keys_of(&mut engine)?];
    let mut cycles = Vec::new();
    for number in 1..=CYCLES {
        let under_traffic = memory.let_all_advance(&mut engine, watch)?;
        let stood = clock::monotonic();
        let image = dir.join(format!("image-{number}"));
        let save =
            ask(&mut engine, Request::Save { path: image.clone(), after: After::Hold, form: SaveForm::default() })?;
        let listed: ListReply = ask(&mut engine, Request::List)?;
        let canary = ask(&mut engine, Request::Canary { path: image.clone() })?;
        drop(engine);

        engine = Engine::restored(&RestoreRequest::moved(&image), Supplied::default())?;
        memory.attach(&mut engine)?;
        let list_equal = ask::<ListReply>(&mut engine, Request::List)? == listed;
        let status: StatusReply = ask(&mut engine, Request::Status)?;
        let restored = status.restored.context("the restored gateway does not say how it was restored")?;
        engine.resume();
        keys.push(keys_of(&mut engine)?);
        let outage = (stood, clock::monotonic());
        let cycle = Cycle { save, canary, restored, list_equal, under_traffic, outage };
        cycle.tell(number, "The stack is dropped; its successor", watch);
        cycles.push(cycle);
    }
    memory.let_all_advance(&mut engine, watch)?;
    memory.guest.quiet();
    memory.world.quiet();
    memory.turn_until(&mut engine, watch, LONG, |memory| memory.progress().all_arrived())?;
    memory.guest.close();
    memory.world.close();
    memory.turn_until(&mut engine, watch, LONG, |memory| memory.progress().closed() == STREAMS)?;
    let report = |host: &Host| PeerReport { streams: host.report(), ..PeerReport::default() };
    let (guest, world) = (report(&memory.guest), report(&memory.world));
    let terminated = scenario::terminated(STREAMS);
    let expected =
        Expected { mode: "in memory", links: "memory", streams: STREAMS, terminated, datagram_flows: 0, pings: 0 };
    Ok(Carried { expected, cycles, keys, guest, world, before: <_>::default(), after: <_>::default(), overruns: 0 })
}

fn count_broken(watch: &Watch) -> anyhow::Result<Broken> {
    let mut memory = Memory::new(1)?;
    let mut engine = memory.fresh()?;
    memory.let_all_advance(&mut engine, watch)?;
    drop(engine);
    // What the gateway had sent already arrives, and is not counted.
    memory.guest.turn();
    memory.world.turn();
    let mut engine = memory.fresh()?;
    memory.mark();
    memory.turn_until(&mut engine, watch, BREAK_TIME, |memory| memory.advanced() == STREAMS)?;
    Ok(Broken { broken: STREAMS - memory.advanced().min(STREAMS), streams: STREAMS })
}

impl Memory {
    fn new(round: u16) -> anyhow::Result<Self> {
        let mut entropy = Entropy::from_os().context("drawing seeds")?;
        let wires = [(scenario::GUEST_LINK, Wire::default()), (scenario::WORLD_LINK, Wire::default())];
        let [(_, to_guest), (_, to_world)] = &wires;
        let mut guest =
            Host::new(to_guest.clone(), &scenario::guest_addresses(), &scenario::GUEST_GATEWAYS, &mut entropy)?;
        let mut world =
            Host::new(to_world.clone(), &scenario::world_addresses(), &scenario::WORLD_GATEWAYS, &mut entropy)?;
        let plans = StreamPlans::new(round, STREAMS);
        for (host, at, streams) in [
            (&mut guest, scenario::guest_listens(), &plans.by_world),
            (&mut world, scenario::world_listens(), &plans.by_guest),
        ] {
            for address in at {
                let arriving = streams.iter().filter(|plan| plan.to.is_ipv4() == address.is_ipv4() && !plan.terminated);
                host.listen(address, arriving.count())?;
            }
        }
        plans.by_guest.iter().try_for_each(|plan| guest.connect(plan))?;
        plans.by_world.iter().try_for_each(|plan| world.connect(plan))?;
        Ok(Self { guest, world, wires })
    }

    /// A gateway with an empty table on the wires.
    fn fresh(&self) -> anyhow::Result<Engine> {
        let config: GatewayConfig =
            serde_json::from_value(scenario::gateway_config(Rules::Strict)).context("the configuration")?;
        let mut engine = Engine::fresh(&config)?;
        self.attach(&mut engine)?;
        engine.resume();
        Ok(engine)
    }

    fn attach(&self, engine: &mut Engine) -> anyhow::Result<()> {
        self.wires.iter().try_for_each(|(name, wire)| engine.attach(Link::memory(name, wire)))
    }

    fn mark(&mut self) {
        self.guest.mark();
        self.world.mark();
    }

    fn progress(&self) -> BothProgress {
        BothProgress { guest: self.guest.progress(), world: self.world.progress() }
    }

    fn advanced(&self) -> usize {
        self.progress().advanced()
    }

    fn let_all_advance(&mut self, engine: &mut Engine, watch: &Watch) -> anyhow::Result<usize> {
        self.mark();
        self.turn_until(engine, watch, LONG, |memory| memory.advanced() == STREAMS)?;
        self.turn_until(engine, watch, TRAFFIC_TIME, |_| false)?;
        Ok(self.advanced())
    }

    /// Lets hosts and gateway take turns until `done`, at most for `time`.
    fn turn_until(
        &mut self,
        engine: &mut Engine,
        watch: &Watch,
        time: Duration,
        done: impl Fn(&Self) -> bool,
    ) -> anyhow::Result<()> {
        let until = clock::monotonic().saturating_add(time);
        while !done(self) && clock::monotonic() < until {
            watch.check()?;
            self.guest.turn();
            engine.turn();
            self.world.turn();
            engine.turn();
            std::thread::sleep(TURN_TIME);
        }
        Ok(())
    }
}

fn keys_of(engine: &mut Engine) -> anyhow::Result<Vec<String>> {
    Ok(ask::<KeysReply>(engine, Request::Keys)?.fingerprints)
}

fn ask<T: DeserializeOwned>(engine: &mut Engine, request: Request) -> anyhow::Result<T> {
    let result = match engine.answer(request) {
        Answer::Now(result) => result,
        Answer::Later(result) => result.recv().context("waiting for the gateway's answer")?,
    };
    serde_json::from_value(result.map_err(|refused| anyhow::Error::msg(refused.error))?)
        .context("reading the gateway's answer")
}

/// Streams of the smaller demonstration.
const STREAMS: usize = 40;
const CYCLES: usize = 2;
/// Between two turns nothing has to be done at once.
const TURN_TIME: Duration = Duration::from_micros(200);
const TRAFFIC_TIME: Duration = Duration::from_millis(200);
const BREAK_TIME: Duration = Duration::from_secs(3);
const LONG: Duration = Duration::from_secs(10);
