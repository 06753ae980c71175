//! Plays a scenario through a [`Stack`] on a simulated clock.
//!
//! The stack is set up as the oracle sets up its router, with the oracle's observers as chains of its rule set; everything
//! in a record is what the stack let out, told, or shows in its table. Nothing here knows an answer.

mod audit;
mod freeze;
mod local;
mod observe;
mod rules;
mod setup;
mod table;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Error, Result, bail};
use hibernet_netstack::Stack;
use hibernet_snapshot::{Entropy, Instant};
use serde_json::{Map, Number};

use crate::notation::{build, bytes_of_hex};
use crate::record::{EventKind, Inject, Record};
use crate::scenario::{Scenario, Step};
use crate::variables::Variables;
pub use audit::Audit;
use observe::{Names, Seen};

/// What playing a scenario gave.
#[derive(Debug)]
pub struct Run {
    /// A record of every step that was played.
    pub records: Vec<Record>,
    /// Why it stopped before the end.
    pub error: Option<Error>,
    /// What became of the packets that did not get through.
    pub audit: Audit,
}

/// What happens between the steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Between {
    /// Nothing.
    #[default]
    Nothing,
    /// A save and a restore under new keys; an image that does not save back to its own bytes ends the run. The streams of
    /// local TCP connections are not in an image: a scenario that has one open cannot be played so.
    Restore,
}

/// Plays all steps, as far as the scenario can be played.
pub fn play(scenario: &Scenario, between: Between) -> Run {
    let (mut records, mut audit) = (Vec::new(), Audit::default());
    let error = Player::new(scenario, between).and_then(|player| player.play(&mut records, &mut audit)).err();
    Run { records, error, audit }
}

struct Player<'a> {
    scenario: &'a Scenario,
    between: Between,
    stack: Stack,
    names: Names,
    variables: Variables,
    now: Instant,
}

impl<'a> Player<'a> {
    fn new(scenario: &'a Scenario, between: Between) -> Result<Self> {
        let config = setup::stack(scenario)?;
        let mut stack = Stack::new(config, Entropy::from_test_seed(SEED), START)?;
        local::listen(&mut stack, &scenario.listen)?;
        let names = Names::of(&stack);
        Seen::take(&mut stack, &names, false);
        Ok(Self { scenario, between, stack, names, variables: Variables::new(&scenario.vars), now: START })
    }

    fn play(mut self, records: &mut Vec<Record>, audit: &mut Audit) -> Result<()> {
        let mut at = Number::from_f64(0.0).context("zero is a number")?;
        for (number, step) in self.scenario.steps.iter().enumerate() {
            if let Some(given) = &step.at {
                at = given.clone();
            }
            let record = self.step(number, at.clone(), step, audit).with_context(|| format!("step {number}"))?;
            records.push(record);
            audit.counted = self.stack.stats().drops().collect();
            if self.between == Between::Restore {
                self.restore(number).with_context(|| format!("after step {number}"))?;
            }
        }
        Ok(())
    }

    fn step(&mut self, number: usize, at: Number, step: &Step, audit: &mut Audit) -> Result<Record> {
        let seconds = at.as_f64().filter(|seconds| *seconds >= 0.0).context("at must not be negative")?;
        self.wait_until(START.saturating_add(Duration::from_secs_f64(seconds)));
        self.change(step)?;

        let used = step.send.as_deref().map(|send| self.variables.used_in(send)).unwrap_or_default();
        let packets = self.packets(step)?;
        let mut seen = Seen::default();
        let mut inject = None;
        let mut refused = false;
        if step.injects() {
            let dev = step.dev.as_deref().context("a packet needs the link (dev) that it comes in by")?;
            let link = self.stack.link(dev).with_context(|| format!("there is no link {dev:?}"))?;
            inject = Some(Inject::new(dev, &packets));
            for packet in &packets {
                if is_ip(packet) {
                    let before = self.stack.stats().clone();
                    self.stack.ingress(link, packet.clone(), self.now);
                    audit.follow(number, packet, &before, self.stack.stats());
                } else {
                    refused = true;
                }
                if packets.len() > 1 {
                    seen.extend(Seen::take(&mut self.stack, &self.names, false));
                }
            }
        }
        let errno = match &step.local {
            Some(sender) => Some(local::send(&mut self.stack, sender, &self.variables, self.now)?),
            None => None,
        };
        let settle = Duration::try_from_secs_f64(step.settle.unwrap_or(SETTLE)).context("settle")?;
        self.wait_until(self.now.saturating_add(settle));
        let raw = step.local.as_ref().is_some_and(|sender| sender.pkt.is_some());
        seen.extend(Seen::take(&mut self.stack, &self.names, raw));
        audit.tell(&seen.drops);

        let captured = self.capture(step, &seen)?;
        let (ctstate, ctdir) = (packets.len() == 1).then(|| verdict(&seen)).unzip();
        let full = !step.summary;
        let mut record = Record {
            step: number,
            at,
            note: step.note.clone(),
            uses: used,
            inject,
            inject_error: refused.then_some("EINVAL"),
            local: step.local.clone(),
            errno,
            ctstate,
            ctdir,
            out_count: None,
            event_count: None,
            trace_count: None,
            inject_count: None,
            out: None,
            trace: None,
            events: None,
            why: seen.why.clone(),
            count: self.stack.conntrack().len(),
            conntrack: (full && !step.brief).then(|| table::entries(&self.stack.flows(self.now))),
            captured,
        };
        if step.summary {
            summarise(&mut record, &seen);
        } else {
            record.out = Some(seen.out);
            record.trace = (!step.brief).then_some(seen.trace);
            record.events = (!step.brief).then_some(seen.events);
        }
        Ok(record)
    }

    /// Goes on with a restored stack.
    fn restore(&mut self, number: usize) -> Result<()> {
        let seed = SEED.wrapping_add(1 + number as u64);
        self.stack = freeze::restored(&self.stack, seed, self.now)?;
        Ok(())
    }

    /// Settings and rules that change before the step's packets.
    fn change(&mut self, step: &Step) -> Result<()> {
        if step.nft.is_some() {
            bail!("raw nft text is not supported: say it with add_rules");
        }
        for (name, value) in setup::stack_sysctls(&step.sysctl)? {
            self.stack.set_sysctl(&name, &value)?;
        }
        for rule in &step.add_rules {
            self.stack.add_rule(&rule.chain, rules::later_rule(rule)?)?;
        }
        Ok(())
    }

    /// The packets that go in.
    fn packets(&self, step: &Step) -> Result<Vec<Vec<u8>>> {
        if let Some(hex) = &step.hex {
            return Ok(vec![bytes_of_hex(hex)?]);
        }
        let Some(send) = &step.send else { return Ok(Vec::new()) };
        let Some(repeat) = step.repeat else {
            return Ok(vec![build(&self.variables.substitute(send)?, step.frag)?]);
        };
        let first = step.port0.unwrap_or(20_000);
        let counted = (0..repeat).map(|index| self.variables.counting(index, first + index));
        counted.map(|variables| build(&variables.substitute(send)?, None)).collect()
    }

    fn capture(&mut self, step: &Step, seen: &Seen) -> Result<Map<String, serde_json::Value>> {
        let left: Vec<_> = seen.packets.iter().map(Vec::as_slice).collect();
        let mut captured = Map::new();
        for (name, path) in &step.capture {
            captured.insert(name.clone(), self.variables.capture(name, path, &left)?);
        }
        Ok(captured)
    }

    /// Lets time pass, with every timer at its moment.
    fn wait_until(&mut self, moment: Instant) {
        for _ in 0..MOST_TIMERS {
            match self.stack.next_deadline(self.now).filter(|deadline| *deadline <= moment) {
                Some(deadline) => self.now = self.now.max(deadline),
                None => break,
            }
            self.stack.poll(self.now);
        }
        self.now = self.now.max(moment);
        self.stack.poll(self.now);
    }
}

/// Counts in place of lists.
fn summarise(record: &mut Record, seen: &Seen) {
    let on = |dev: &str| (dev.to_owned(), seen.out.iter().filter(|left| left.dev == dev).count());
    record.out_count = Some(BTreeMap::from([on("in"), on("out")]));
    let events = record.event_count.insert(BTreeMap::<EventKind, usize>::new());
    for event in &seen.events {
        *events.entry(event.kind).or_default() += 1;
    }
    let trace = record.trace_count.insert(BTreeMap::new());
    for hop in &seen.trace {
        let direction = hop.dir.as_deref().unwrap_or("None");
        *trace.entry(format!("{}|{}|{direction}", hop.hook, hop.state)).or_default() += 1;
    }
    if let Some(Inject::Many(packets)) = &record.inject {
        record.inject_count = Some(packets.len());
    }
    record.why.truncate(1);
}

/// State and direction as the packet passed prerouting; nothing if it never got past conntrack.
fn verdict(seen: &Seen) -> (Option<String>, Option<String>) {
    let first = seen.trace.iter().find(|hop| hop.hook == "prerouting");
    first.map_or((None, None), |hop| (Some(hop.state.clone()), hop.dir.clone()))
}

/// What a TUN device takes: it looks at the version and refuses all else.
fn is_ip(packet: &[u8]) -> bool {
    matches!(packet.first().map(|first| first >> 4), Some(4 | 6))
}

/// Any other moment would do: no record shows it.
const START: Instant = Instant::from_secs(1);
/// Seconds that a step waits for answers unless it says otherwise.
const SETTLE: f64 = 0.002;
/// A stack that asks for more timers within one wait is taken to be stuck.
const MOST_TIMERS: u32 = 100_000;
/// Random choices are the same in every run.
const SEED: u64 = 1;
