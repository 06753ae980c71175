//! The subcommands that read images.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use anyhow::Context;
use hibernet_conntrack::FlowRecord;
use hibernet_conntrack::Tuple;
use hibernet_conntrack::proto;
use hibernet_netstack::Decoded;
use hibernet_netstack::LinkConfig;
use hibernet_netstack::RestorePolicy;
use hibernet_netstack::Route;
use hibernet_netstack::Ruleset;
use hibernet_netstack::Stack;
use hibernet_netstack::Supplied;
use hibernet_snapshot::Entropy;
use hibernet_snapshot::Instant;
use hibernet_snapshot::diff;
use hibernet_snapshot::image::Image;
use hibernet_snapshot::image::Limits;
use serde::Serialize;

use super::print;
use crate::fault::image_fault;
use crate::gateway::read_image;

/// Prints an image's header, sections and counts.
pub(crate) fn inspect(path: &Path, json: bool) -> anyhow::Result<()> {
    let inspected = Inspected::of(path)?;
    print(json, &inspected, || inspected.text())
}

/// Prints what changed between two images.
pub(crate) fn diff(before: &Path, after: &Path, json: bool) -> anyhow::Result<()> {
    let tree = |path: &Path| -> anyhow::Result<diff::Value> {
        let content = Content::of(&reopen(path, &read_image(path)?)?);
        diff::value(&content).context("describing an image")
    };
    let changes: Vec<String> = diff::compare(&tree(before)?, &tree(after)?).iter().map(ToString::to_string).collect();
    print(json, &Changes { changes: &changes }, || {
        if changes.is_empty() { "no difference but the generation".to_owned() } else { changes.join("\n") }
    })
}

#[derive(Serialize)]
struct Changes<'a> {
    changes: &'a [String],
}

/// What `inspect` prints.
#[derive(Serialize)]
struct Inspected {
    format_version: u16,
    min_reader: u16,
    writer: String,
    schema: String,
    generation: String,
    parents: Vec<String>,
    bytes: usize,
    sections: Vec<SectionRow>,
    counts: Counts,
}

#[derive(Serialize)]
struct SectionRow {
    id: String,
    version: u16,
    required: bool,
    bytes: usize,
}

#[derive(Serialize)]
struct Counts {
    links: usize,
    routes: usize,
    chains: usize,
    rules: usize,
    neighbours: usize,
    flows: usize,
    flows_by_protocol: BTreeMap<String, usize>,
}

/// What an image holds, for comparing: everything people set up, and the flows by their original direction.
#[derive(Serialize)]
struct Content {
    links: Vec<LinkConfig>,
    routes: Vec<Route>,
    rules: Ruleset,
    drops: BTreeMap<&'static str, u64>,
    neighbours: Vec<String>,
    flows: BTreeMap<String, FlowContent>,
}

#[derive(Serialize)]
struct FlowContent {
    reply: String,
    state: String,
    status: String,
    remaining_seconds: u64,
    mark: u32,
    packets: [u64; 2],
    bytes: [u64; 2],
}

impl Inspected {
    fn of(path: &Path) -> anyhow::Result<Self> {
        let bytes = read_image(path)?;
        let stack = reopen(path, &bytes)?;
        let image = Image::parse(&bytes, &Limits::default())?;
        let sections = image.sections().map(|section| SectionRow {
            id: section.id.to_string(),
            version: section.version,
            required: section.required,
            bytes: section.body.len(),
        });
        // The lineage of a stack that was just reopened ends with the image itself.
        let parents = stack.lineage().split_last().map(|(_, parents)| parents).unwrap_or_default();
        Ok(Self {
            format_version: image.format_version(),
            min_reader: image.min_reader(),
            writer: image.header().writer.clone(),
            schema: format!("{:016x}", image.header().schema),
            generation: image.header().generation.to_string(),
            parents: parents.iter().map(ToString::to_string).collect(),
            bytes: bytes.len(),
            sections: sections.collect(),
            counts: Counts::of(&stack),
        })
    }

    fn text(&self) -> String {
        let Self { format_version, min_reader, writer, schema, generation, parents, bytes, sections, counts } = self;
        let mut text = format!(
            "format {format_version} (readers from {min_reader} on), {bytes} bytes\nwritten by {writer}, schema {schema}\n\
             generation {generation}\n"
        );
        for parent in parents.iter().rev() {
            let _ = writeln!(text, "  from {parent}");
        }
        for SectionRow { id, version, required, bytes } in sections {
            let kind = if *required { "required" } else { "optional" };
            let _ = writeln!(text, "section {id} version {version}, {kind}, {bytes} bytes");
        }
        let Counts { links, routes, chains, rules, neighbours, flows, flows_by_protocol } = counts;
        let _ = writeln!(text, "{links} links, {routes} routes, {chains} chains with {rules} rules, {flows} flows");
        for (protocol, flows) in flows_by_protocol {
            let _ = writeln!(text, "  {protocol}: {flows}");
        }
        if *neighbours > 0 {
            let _ = writeln!(text, "{neighbours} neighbours");
        }
        text
    }
}

impl Counts {
    fn of(stack: &Stack) -> Self {
        let flows = stack.flows(Instant::ZERO);
        let mut flows_by_protocol = BTreeMap::new();
        for flow in &flows {
            *flows_by_protocol.entry(protocol_name(flow.orig.proto)).or_default() += 1;
        }
        Self {
            links: stack.links().len(),
            routes: stack.routes().len(),
            chains: stack.rules().chains.len(),
            rules: stack.rules().chains.iter().map(|chain| chain.rules.len()).sum(),
            neighbours: stack.neighbours(Instant::ZERO).len(),
            flows: flows.len(),
            flows_by_protocol,
        }
    }
}

impl Content {
    fn of(stack: &Stack) -> Self {
        let flow = |flow: &FlowRecord| (tuple_text(&flow.orig, flow), FlowContent::of(flow));
        Self {
            links: stack.links().to_vec(),
            routes: stack.routes().to_vec(),
            rules: stack.rules().clone(),
            drops: stack.stats().drops().map(|(reason, count)| (reason.name(), count)).collect(),
            neighbours: stack.neighbours(Instant::ZERO).iter().map(ToString::to_string).collect(),
            flows: stack.flows(Instant::ZERO).iter().map(flow).collect(),
        }
    }
}

impl FlowContent {
    fn of(flow: &FlowRecord) -> Self {
        Self {
            reply: tuple_text(&flow.reply, flow),
            state: format!("{:?}", flow.protocol),
            status: format!("{:?}", flow.status),
            remaining_seconds: flow.remaining.as_secs(),
            mark: flow.mark,
            packets: flow.counters.packets,
            bytes: flow.counters.bytes,
        }
    }
}

/// Restores an image, far from any traffic, to see what it holds. The keys drawn for it protect nothing.
fn reopen(path: &Path, bytes: &[u8]) -> anyhow::Result<Stack> {
    let mut entropy = Entropy::from_os().context("drawing keys")?;
    let refused = |error| image_fault(path, &error);
    let decoded = Decoded::open(bytes, &Limits::default()).map_err(refused)?;
    let validated = decoded.validate(&mut entropy, Instant::ZERO).map_err(refused)?;
    let rehashed = validated.rehash(entropy, RestorePolicy::default()).map_err(refused)?;
    Ok(rehashed.open(Supplied::default()).0)
}

fn tuple_text(tuple: &Tuple, flow: &FlowRecord) -> String {
    let Tuple { src, dst, proto, sport, dport } = *tuple;
    let protocol = protocol_name(proto);
    let zone = if flow.zone.id == 0 { String::new() } else { format!(" zone {}", flow.zone.id) };
    match proto {
        proto::ICMP | proto::ICMPV6 => format!("{protocol} {src} > {dst} id {sport} type {}{zone}", tuple.icmp_type()),
        _ => format!("{protocol} {src} port {sport} > {dst} port {dport}{zone}"),
    }
}

fn protocol_name(number: u8) -> String {
    match number {
        proto::ICMP => "icmp".to_owned(),
        proto::TCP => "tcp".to_owned(),
        proto::UDP => "udp".to_owned(),
        proto::GRE => "gre".to_owned(),
        proto::ICMPV6 => "icmpv6".to_owned(),
        proto::SCTP => "sctp".to_owned(),
        proto::UDP_LITE => "udplite".to_owned(),
        other => format!("protocol {other}"),
    }
}
