//! A local stream whose flow is forgotten, or tracked no longer, goes on.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Figures;
use super::transfer::{open, stream};
use crate::flow::compare;
use crate::kernel::End;
use crate::lab::{Counters, Host, Lab, SOON, wait};
use crate::protocol::{HostConfig, Request, StatsReply};

/// What happens to the tracker under the stream.
#[derive(Clone, Copy, Debug)]
enum Event {
    Flush,
    Notrack,
}

pub(super) fn run(figures: &mut Figures) -> Result<()> {
    let mut streams = 0;
    for event in [Event::Flush, Event::Notrack] {
        for (v6, stack_connects) in [(false, false), (false, true), (true, false), (true, true)] {
            let result = std::thread::scope(|scope| {
                let thread = scope.spawn(move || under(event, v6, stack_connects));
                thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("it panicked")))
            });
            result.with_context(|| format!("{event:?}, v6 {v6}, the stack connects: {stack_connects}"))?;
            streams += 1;
        }
    }
    figures.insert("streams".into(), json!(streams));
    figures.insert("bytes each way".into(), json!(3 * PART));
    Ok(())
}

/// A third of the bytes, the event, a third, a checkpoint, the last third.
fn under(event: Event, v6: bool, stack_connects: bool) -> Result<()> {
    let lab = Lab::new(&[])?;
    let mut host = lab.start(&HostConfig::neighbour())?;
    let mut end = open(&mut host, v6, stack_connects, false)?;
    part(&mut host, &mut end, 1)?;
    anyhow::ensure!(flows(&mut host)? > 0, "the stream is not tracked");
    host.tell(&match event {
        Event::Flush => Request::Flush,
        Event::Notrack => Request::Rules(notrack()),
    })?;
    if matches!(event, Event::Notrack) {
        host.tell(&Request::Flush)?;
    }
    part(&mut host, &mut end, 2)?;
    let found = flows(&mut host)?;
    match event {
        Event::Flush => anyhow::ensure!(found == 1, "{found} flows after the flush and a third of the bytes"),
        Event::Notrack => anyhow::ensure!(found == 0, "{found} flows are tracked all the same"),
    }
    host = lab.checkpoint(host)?.0;
    end.flow.closing = true;
    host.tell(&Request::Set { id: end.port.into(), more: 0, reading: None, close: false })?;
    part(&mut host, &mut end, 3)?;
    host.tell(&Request::Set { id: end.port.into(), more: 0, reading: None, close: true })?;
    wait(SOON, "the end in order", || {
        end.pump()?;
        Ok(end.flow.is_over() && stream(&mut host, end.port.into())?.over)
    })?;
    let stack = stream(&mut host, end.port.into())?;
    compare("kernel to stack", &end.flow.sent.sum(), &stack.got)?;
    compare("stack to kernel", &stack.sent, &end.flow.got.sum())?;
    Counters::must_be_zero()
}

/// Lets the next third pass, both ways.
fn part(host: &mut Host, end: &mut End, number: u64) -> Result<()> {
    let id = u64::from(end.port);
    host.tell(&Request::Set { id, more: PART, reading: None, close: false })?;
    end.flow.goal += PART;
    wait(SOON, "a third of the bytes", || {
        while end.pump()? {}
        let stack = stream(host, id)?;
        anyhow::ensure!(stack.failure.is_none(), "the stack's end: {:?}", stack.failure);
        Ok(end.flow.got.bytes == number * PART && stack.got.bytes == number * PART)
    })
}

fn flows(host: &mut Host) -> Result<u32> {
    Ok(host.call::<StatsReply>(&Request::Stats)?.flows)
}

fn notrack() -> Value {
    json!([
        {"chain": "raw_prerouting", "match": {"proto": "tcp"}, "action": "notrack"},
        {"chain": "raw_output", "match": {"proto": "tcp"}, "action": "notrack"},
    ])
}

const PART: u64 = 1 << 20;
