//! What `inspect` prints.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use anyhow::Context;
use hibernet_conntrack::proto;
use hibernet_netstack::Decoded;
use hibernet_netstack::RestorePolicy;
use hibernet_netstack::Stack;
use hibernet_netstack::Supplied;
use hibernet_snapshot::Entropy;
use hibernet_snapshot::Instant;
use hibernet_snapshot::image::Front;
use hibernet_snapshot::image::Image;
use hibernet_snapshot::image::Limits;
use hibernet_snapshot::seal;
use hibernet_snapshot::seal::SealKey;
use hibernet_snapshot::seal::Sealed;
use serde::Serialize;

use super::print;
use crate::fault::image_fault;
use crate::image_file::read_file;
use crate::image_file::read_image;
use crate::image_file::read_seal_key;

/// Prints an image's header, sections and counts; of a sealed one without its key the header.
pub(crate) fn inspect(path: &Path, seal_key: Option<&Path>, json: bool) -> anyhow::Result<()> {
    let key = seal_key.map(read_seal_key).transpose()?;
    if key.is_none() {
        let bytes = read_file(path)?;
        if seal::is_sealed(&bytes) {
            let front = SealedFront::of(path, &bytes)?;
            return print(json, &front, || front.text());
        }
    }
    let inspected = Inspected::of(path, key.as_ref())?;
    print(json, &inspected, || inspected.text())
}

/// What `inspect` prints of a sealed image without its key.
#[derive(Serialize)]
struct SealedFront {
    sealed: bool,
    /// Whether the seal was opened, so that the rest is known to be true.
    checked: bool,
    seal_version: u16,
    chunk_bytes: u32,
    format_version: u16,
    min_reader: u16,
    writer: String,
    schema: String,
    generation: String,
    sections: u32,
    bytes: usize,
}

impl SealedFront {
    fn of(path: &Path, bytes: &[u8]) -> anyhow::Result<Self> {
        let sealed = Sealed::read(bytes).with_context(|| format!("the image {}", path.display()))?;
        let Front { header, format_version, min_reader, sections, .. } = sealed.front;
        Ok(Self {
            sealed: true,
            checked: false,
            seal_version: sealed.version,
            chunk_bytes: sealed.chunk_bytes,
            format_version,
            min_reader,
            writer: header.writer,
            schema: format!("{:016x}", header.schema),
            generation: header.generation.to_string(),
            sections,
            bytes: bytes.len(),
        })
    }

    fn text(&self) -> String {
        let Self {
            seal_version,
            chunk_bytes,
            format_version,
            min_reader,
            writer,
            schema,
            generation,
            sections,
            bytes,
            ..
        } = self;
        format!(
            "sealed (version {seal_version}, XChaCha20-Poly1305, chunks of {chunk_bytes} bytes), {bytes} bytes\n\
             its header says, and only its key (--seal-key FILE) can tell whether it is true:\n\
             format {format_version} (readers from {min_reader} on)\nwritten by {writer}, schema {schema}\n\
             generation {generation}\n{sections} sections"
        )
    }
}

/// What `inspect` prints.
#[derive(Serialize)]
struct Inspected {
    sealed: bool,
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

impl Inspected {
    fn of(path: &Path, key: Option<&SealKey>) -> anyhow::Result<Self> {
        let bytes = read_image(path, key)?;
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
            sealed: key.is_some(),
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
        let Self { sealed, format_version, min_reader, writer, schema, generation, parents, bytes, sections, counts } =
            self;
        let seal = if *sealed { "sealed, and opened with its key\n" } else { "" };
        let mut text = format!(
            "{seal}format {format_version} (readers from {min_reader} on), {bytes} bytes\nwritten by {writer}, schema {schema}\n\
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

/// Restores an image, far from any traffic, to see what it holds. The keys drawn for it protect nothing.
fn reopen(path: &Path, bytes: &[u8]) -> anyhow::Result<Stack> {
    let mut entropy = Entropy::from_os().context("drawing keys")?;
    let refused = |error| image_fault(path, bytes, &error);
    let decoded = Decoded::open(bytes, &Limits::default()).map_err(refused)?;
    let validated = decoded.validate(&mut entropy, Instant::ZERO).map_err(refused)?;
    let rehashed = validated.rehash(entropy, RestorePolicy::default()).map_err(refused)?;
    Ok(rehashed.open(Supplied::default()).0)
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
