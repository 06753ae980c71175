//! The subcommands that read images.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context;
use hibernet_conntrack::proto;
use hibernet_netstack::Decoded;
use hibernet_netstack::DeltaBase;
use hibernet_netstack::RestoreOptions;
use hibernet_netstack::RestorePolicy;
use hibernet_netstack::Stack;
use hibernet_netstack::Supplied;
use hibernet_netstack::base_of;
use hibernet_snapshot::Entropy;
use hibernet_snapshot::Instant;
use hibernet_snapshot::image::Front;
use hibernet_snapshot::image::StoredImage;
use hibernet_snapshot::seal;
use hibernet_snapshot::seal::Sealed;
use serde::Serialize;

use super::print;
use crate::fault::image_fault;
use crate::gateway::ImageFiles;
use crate::gateway::threads;
use crate::image_file::front_of;
use crate::image_file::seal_fault;

/// Prints an image's header, sections and counts; of a chain what it comes to.
pub(crate) fn inspect(files: &ImageFiles, json: bool) -> anyhow::Result<()> {
    if files.seal_key.is_none()
        && let Some(front) = SealedFront::of(files)?
    {
        return print(json, &front, || front.text());
    }
    let inspected = Inspected::of(files)?;
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
    bytes: u64,
}

impl SealedFront {
    /// Of the first of these files that is sealed, if one is.
    fn of(files: &ImageFiles) -> anyhow::Result<Option<Self>> {
        let sealed = |path: &&std::path::PathBuf| seal::is_sealed(&front_of(path));
        let Some(path) = files.paths.iter().find(sealed) else { return Ok(None) };
        let read = Sealed::read(&front_of(path)).map_err(|error| seal_fault(path, &error))?;
        let Front { header, format_version, min_reader, sections, .. } = read.front;
        Ok(Some(Self {
            sealed: true,
            checked: false,
            seal_version: read.version,
            chunk_bytes: read.chunk_bytes,
            format_version,
            min_reader,
            writer: header.writer,
            schema: format!("{:016x}", header.schema),
            generation: header.generation.to_string(),
            sections,
            bytes: std::fs::metadata(path).map_or(0, |metadata| metadata.len()),
        }))
    }

    fn text(&self) -> String {
        let Self {
            sealed: _,
            checked: _,
            seal_version,
            chunk_bytes,
            format_version,
            min_reader,
            writer,
            schema,
            generation,
            sections,
            bytes,
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
    format_version: u16,
    writer: String,
    schema: String,
    generation: String,
    /// Of a delta that is looked at by itself.
    continues: Option<Continued>,
    parents: Vec<String>,
    sealed: bool,
    bytes: u64,
    sections: Vec<SectionRow>,
    files: Vec<FileRow>,
    /// Not of a delta by itself: it holds a part of the flows alone.
    counts: Option<Counts>,
}

#[derive(Serialize)]
struct Continued {
    sha256: String,
    generation: String,
    number: u32,
}

#[derive(Serialize)]
struct FileRow {
    path: String,
    sha256: String,
    generation: String,
    delta: bool,
}

#[derive(Serialize)]
struct SectionRow {
    id: String,
    version: u16,
    required: bool,
    parts: usize,
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
    fn of(files: &ImageFiles) -> anyhow::Result<Self> {
        let mut rows = Vec::new();
        let mut last: Option<(StoredImage, Option<DeltaBase>, u64)> = None;
        for path in &files.paths {
            let bytes = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
            let (image, digest) = files.read(path)?;
            let base = base_of(&image).map_err(|error| image_fault(path, &error))?;
            rows.push(FileRow {
                path: path.display().to_string(),
                sha256: digest.to_string(),
                generation: image.header().generation.to_string(),
                delta: base.is_some(),
            });
            last = Some((image, base, bytes));
        }
        let (image, base, bytes) = last.context("no image is named")?;
        let alone = files.paths.len() == 1;
        let continues = base.filter(|_| alone).map(|base| Continued {
            sha256: base.digest.to_string(),
            generation: base.generation.to_string(),
            number: base.number,
        });
        let path = files.paths.last().map(std::path::PathBuf::as_path).unwrap_or(Path::new(""));
        let stack = if continues.is_some() { None } else { Some(reopen(path, files.open()?)?) };
        // The lineage of a stack that was just reopened ends with the image itself.
        let parents = stack.iter().flat_map(|stack| stack.lineage().split_last().map(|(_, parents)| parents));
        let header = image.header();
        Ok(Self {
            format_version: image.format_version(),
            writer: header.writer.clone(),
            schema: format!("{:016x}", header.schema),
            generation: header.generation.to_string(),
            continues,
            parents: parents.flatten().map(ToString::to_string).collect(),
            sealed: files.seal_key.is_some(),
            bytes,
            sections: rows_of(&image),
            files: rows,
            counts: stack.as_ref().map(Counts::of),
        })
    }

    fn text(&self) -> String {
        let Self {
            format_version,
            writer,
            schema,
            generation,
            continues,
            parents,
            sealed,
            bytes,
            sections,
            files,
            counts,
        } = self;
        let seal = if *sealed { "sealed, and opened with its key\n" } else { "" };
        let mut text = format!(
            "{seal}format {format_version} (readers from {format_version} on), {bytes} bytes\nwritten by {writer}, schema \
             {schema}\ngeneration {generation}\n"
        );
        for FileRow { path, sha256, generation, delta } in files {
            let kind = if *delta { "delta" } else { "full " };
            let _ = writeln!(text, "{kind} {path}: SHA-256 {sha256}, generation {generation}");
        }
        if let Some(Continued { sha256, generation, number }) = continues {
            let place = number.saturating_add(1);
            let _ = writeln!(text, "delta {place}, continues SHA-256 {sha256}, generation {generation}");
        }
        for parent in parents.iter().rev() {
            let _ = writeln!(text, "  from {parent}");
        }
        for SectionRow { id, version, required, parts, bytes } in sections {
            let kind = if *required { "required" } else { "optional" };
            let parts = if *parts > 1 { format!(" in {parts} parts") } else { String::new() };
            let _ = writeln!(text, "section {id} version {version}, {kind}, {bytes} bytes{parts}");
        }
        let Some(counts) = counts else { return text };
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

/// The sections of an image, those of one name together.
fn rows_of(image: &StoredImage) -> Vec<SectionRow> {
    let mut rows: Vec<SectionRow> = Vec::new();
    for section in image.sections() {
        let id = section.id.to_string();
        match rows.last_mut().filter(|row| row.id == id) {
            Some(row) => {
                row.parts += 1;
                row.bytes += section.body.len();
            }
            None => rows.push(SectionRow {
                id,
                version: section.version,
                required: section.required,
                parts: 1,
                bytes: section.body.len(),
            }),
        }
    }
    rows
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
fn reopen(path: &Path, decoded: Decoded) -> anyhow::Result<Stack> {
    let mut entropy = Entropy::from_os().context("drawing keys")?;
    let refused = |error| image_fault(path, &error);
    let mut options = RestoreOptions::default().on_threads(threads());
    let validated = decoded.validate_with(&mut entropy, Instant::ZERO, &mut options).map_err(refused)?;
    let rehashed = validated.rehash_with(entropy, RestorePolicy::default(), &mut options).map_err(refused)?;
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
