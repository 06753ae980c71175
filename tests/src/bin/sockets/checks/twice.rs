//! One image restored twice: nothing that is drawn is the same.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;

use super::Figures;
use super::transfer::{open, stream};
use crate::kernel::{self, End};
use crate::lab::{Lab, SOON, kernel_addr, stack_addr, wait};
use crate::protocol::{HostConfig, Request, Settings};

/// What a stack has chosen.
struct Choices {
    /// Initial numbers of connections whose ends are the same in every stack.
    numbers: Vec<u32>,
    /// Ports of connections to one end.
    ports: Vec<u16>,
    generation: String,
    parent: String,
}

pub(super) fn run(figures: &mut Figures) -> Result<()> {
    let lab = Lab::new(&[])?;
    let mut host = lab.start(&HostConfig::neighbour())?;
    let end = open(&mut host, false, true, false)?;
    let (image, saved) = lab.save_and_kill(host)?;
    let [one, other] = [0, 1].map(|round| choices(&lab, &image, round));
    let (one, other) = (one.context("the first")?, other.context("the second")?);
    anyhow::ensure!(one.parent == saved.generation && other.parent == saved.generation, "not of the same image");
    let generations = BTreeSet::from([&saved.generation, &one.generation, &other.generation]);
    anyhow::ensure!(generations.len() == 3, "generations are the same: {generations:?}");
    let numbers = one.numbers.iter().zip(&other.numbers).filter(|(one, other)| one == other).count();
    let ports = one.ports.iter().zip(&other.ports).filter(|(one, other)| one == other).count();
    anyhow::ensure!(numbers == 0, "{numbers} of {CONNECTIONS} initial numbers are the same");
    // One of 28,232 ports by chance: two the same in 32 pairs happens once in a million.
    anyhow::ensure!(ports <= 1, "{ports} of {CONNECTIONS} ports are the same");
    for choices in [&one, &other] {
        // One pair of ports by chance.
        let numbers = choices.numbers.iter().collect::<BTreeSet<_>>().len();
        let ports = choices.ports.iter().collect::<BTreeSet<_>>().len();
        anyhow::ensure!(numbers == CONNECTIONS, "only {numbers} of {CONNECTIONS} initial numbers are distinct");
        anyhow::ensure!(ports + 1 >= CONNECTIONS, "only {ports} of {CONNECTIONS} ports are distinct");
    }
    figures.insert("initial numbers compared".into(), json!(CONNECTIONS));
    figures.insert("the same".into(), json!(numbers));
    figures.insert("ports compared".into(), json!(CONNECTIONS));
    figures.insert("ports the same".into(), json!(ports));
    figures.insert("generations".into(), json!(generations));
    drop(end);
    Ok(())
}

fn choices(lab: &Lab, image: &Path, round: u16) -> Result<Choices> {
    let mut host = lab.restore(image)?;
    let parent = host.hello.parent.clone();
    // Nobody has to answer at these ends for a SYN to be sent.
    for number in 0..CONNECTIONS_U16 {
        let from = Some((stack_addr(false), OWN_PORT + number).into());
        let to = (kernel_addr(false), SILENT_PORT).into();
        host.call::<u16>(&Request::Connect {
            id: 1_000_000 + u64::from(number),
            from,
            to,
            settings: Settings::default(),
        })?;
    }
    let syns: Vec<(u16, u16, u32)> = host.call(&Request::Syns)?;
    let of = |own: u16| syns.iter().find(|(src, dst, _)| (*src, *dst) == (own, SILENT_PORT)).map(|(.., seq)| *seq);
    let numbers = (0..CONNECTIONS_U16).map(|number| of(OWN_PORT + number).context("a SYN was not sent"));
    let numbers = numbers.collect::<Result<Vec<_>>>()?;
    let mut ports = Vec::new();
    for number in 0..CONNECTIONS_U16 {
        let to = (kernel_addr(false), SILENT_PORT).into();
        let request =
            Request::Connect { id: 2_000_000 + u64::from(number), from: None, to, settings: Settings::default() };
        ports.push(host.call::<u16>(&request)?);
    }
    // A connection of either stack works.
    let listener = kernel::listen(false, WORKING_PORT + round)?;
    let (id, to) = (u64::from(WORKING_PORT + round), (kernel_addr(false), WORKING_PORT + round).into());
    host.call::<u16>(&Request::Connect { id, from: None, to, settings: Settings::default() })?;
    let mut end = End::unborn(listener, WORKING_PORT + round);
    end.flow.goal = 1000;
    host.tell(&Request::Set { id, more: 1000, reading: None, close: false })?;
    wait(SOON, "a connection of the restored stack", || {
        end.pump()?;
        Ok(end.flow.got.bytes == 1000 && stream(&mut host, id)?.got.bytes == 1000)
    })?;
    let (_, saved) = lab.save_and_kill(host)?;
    Ok(Choices { numbers, ports, generation: saved.generation, parent })
}

const CONNECTIONS_U16: u16 = 32;
const CONNECTIONS: usize = CONNECTIONS_U16 as usize;
/// The stack's ports where they are given.
const OWN_PORT: u16 = 10_000;
/// A port of the kernel where nobody accepts.
const SILENT_PORT: u16 = 9;
const WORKING_PORT: u16 = 9000;
