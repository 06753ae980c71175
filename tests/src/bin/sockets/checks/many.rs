//! Ten thousand connections of kernel clients, saved and restored.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use super::Figures;
use crate::flow::compare;
use crate::kernel::End;
use crate::lab::{Counters, Host, Lab, wait};
use crate::protocol::{HostConfig, Request, Settings, StatsReply, StreamReply};

pub(super) fn run(figures: &mut Figures) -> Result<()> {
    let lab = Lab::new(&[])?;
    let mut host = lab.start(&HostConfig::neighbour())?;
    host.tell(&Request::Listen {
        port: PORT,
        backlog: 16_384,
        half_open: 16_384,
        settings: Settings::default(),
        echo: false,
    })?;
    let before = stats(&mut host)?;
    let mut ends = BTreeMap::new();
    for wave in 0..CONNECTIONS / WAVE {
        for number in 0..WAVE {
            // A port of its own, also among those of the other IP version: it is the stream's name.
            let own = u16::try_from(u32::from(FIRST_PORT) + wave * WAVE + number).context("a port")?;
            let end = End::connect(wave % 2 == 1, own, PORT)?;
            ends.insert(end.port, end);
        }
        let wanted = u64::from(wave + 1) * u64::from(WAVE);
        wait(LONG, "the connections", || Ok(stats(&mut host)?.accepted >= wanted))?;
    }
    anyhow::ensure!(ends.len() == CONNECTIONS as usize, "{} ports for {CONNECTIONS} clients", ends.len());
    let open = stats(&mut host)?;
    anyhow::ensure!(open.streams >= CONNECTIONS as usize, "{} streams are open", open.streams);
    let (mut heir, saved) = lab.checkpoint(host)?;
    anyhow::ensure!(heir.hello.streams_kept >= CONNECTIONS, "{} streams were kept", heir.hello.streams_kept);
    let restored = stats(&mut heir)?;
    let flows = u64::from(CONNECTIONS);
    figures.insert("connections".into(), json!(CONNECTIONS));
    figures.insert("save us per flow".into(), micros(saved.nanos));
    figures.insert("restore us per flow".into(), micros(heir.hello.nanos));
    figures.insert("image bytes per flow".into(), json!(saved.bytes as u64 / flows));
    figures.insert("bytes per idle connection".into(), json!(open.memory.saturating_sub(before.memory) / flows));
    figures.insert("restored".into(), json!(restored.memory.saturating_sub(before.memory) / flows));
    speak(&mut heir, &mut ends)?;
    let spoken = stats(&mut heir)?;
    figures.insert("after speaking".into(), json!(spoken.memory.saturating_sub(before.memory) / flows));
    anyhow::ensure!(spoken.resets_sent == 0, "the stack sent {} resets", spoken.resets_sent);
    Counters::must_be_zero()
}

/// Every connection carries some bytes both ways and ends in order.
fn speak(host: &mut Host, ends: &mut BTreeMap<u16, End>) -> Result<()> {
    for end in ends.values_mut() {
        host.tell(&Request::Set { id: end.port.into(), more: BYTES, reading: None, close: false })?;
        (end.flow.goal, end.flow.closing) = (BYTES, true);
        end.pump()?;
    }
    // The kernel's ends close first: in TIME-WAIT they answer what comes late, with nothing the stack could have caused.
    wait(LONG, "the kernel's FINs", || {
        let mut shut = true;
        for end in ends.values_mut().filter(|end| !end.flow.shut) {
            end.pump()?;
            shut &= end.flow.shut;
        }
        Ok(shut)
    })?;
    wait(LONG, "the stack to have read all", || {
        let replies: Vec<StreamReply> = host.call(&Request::Streams(Vec::new()))?;
        Ok(replies.iter().all(|reply| reply.finished))
    })?;
    for port in ends.keys() {
        host.tell(&Request::Set { id: (*port).into(), more: 0, reading: None, close: true })?;
    }
    wait(LONG, "the end of all", || {
        let mut over = true;
        for end in ends.values_mut().filter(|end| !end.flow.is_over()) {
            end.pump()?;
            over &= end.flow.is_over();
        }
        Ok(over)
    })?;
    let mut replies: Vec<StreamReply> = Vec::new();
    wait(LONG, "the end of all at the stack", || {
        replies = host.call(&Request::Streams(Vec::new()))?;
        Ok(replies.iter().all(|reply| reply.over))
    })?;
    anyhow::ensure!(replies.len() == ends.len(), "{} of {} streams are known", replies.len(), ends.len());
    for reply in &replies {
        let port = u16::try_from(reply.id).context("a port")?;
        let end = ends.get(&port).with_context(|| format!("no end at {port}"))?;
        compare("kernel to stack", &end.flow.sent.sum(), &reply.got)?;
        compare("stack to kernel", &reply.sent, &end.flow.got.sum())?;
    }
    Ok(())
}

fn stats(host: &mut Host) -> Result<StatsReply> {
    host.call(&Request::Stats)
}

fn micros(nanos: u64) -> serde_json::Value {
    json!((nanos / u64::from(CONNECTIONS)) as f64 / 1000.0)
}

const CONNECTIONS: u32 = 10_000;
/// Clients that connect at once.
const WAVE: u32 = 250;
const PORT: u16 = 80;
const FIRST_PORT: u16 = 20_000;
const BYTES: u64 = 2000;
const LONG: Duration = Duration::from_secs(120);
