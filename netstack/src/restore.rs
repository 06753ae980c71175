//! An image as a stack, in steps that the types enforce: `Decoded`, `Validated`, `Rehashed`, [`Stack`].
//!
//! Only the last has `ingress`, and its rules are in force before it exists. A failed step leaves nothing behind.

mod contents;
mod fork;
mod fork_rules;
mod policy;
mod reset;
mod sides;
#[cfg(test)]
mod tests;
mod time;

use std::collections::VecDeque;

use hibernet_conntrack::{Conntrack, ConntrackSaved, RestoreOptions, WireChoices};
use hibernet_snapshot::codec::{CodecError, decode};
use hibernet_snapshot::image::{Header, Image, ImageError, Limits, SectionId, StoredImage, StoredSection};
use hibernet_snapshot::{Entropy, GenerationId, Instant, Invalid, Redraw, Snapshot};
use serde::de::DeserializeOwned;
use thiserror::Error;

pub use self::contents::Contents;
use self::fork::Plan;
pub use self::fork_rules::{
    FlowDirection, FlowState, ForkAction, ForkMatch, ForkRule, ForkRules, ForkRulesError, MarkMatch,
};
pub use self::policy::{ClonePolicy, RestorePolicy, TimePolicy};
use self::sides::Sides;
use self::time::Timed;
pub(crate) use self::time::nearer;
use crate::ethernet::{CheckedNeighbours, NeighboursSection};
use crate::event::EventQueue;
use crate::fragments::{Defragmenter, FragmentsSection};
use crate::image::{
    BASE, CONNTRACK, DATAGRAMS, DeltaBase, FLOWS, FRAGMENTS, LINEAGE, LINKS, LOCAL, LineageSection, LinksSection,
    NEIGHBOURS, RULES, RulesSection, SCHEMA, SECTION_VERSION, SECTIONS, STATS, TCP,
};
use crate::link::Links;
use crate::local::{Datagrams, DatagramsSection, Local, LocalLimits, LocalServices, StreamReset, TcpSection};
use crate::report::{FlowOutcome, ResetCause, RestoreReport};
use crate::route::RouteTable;
use crate::rules::Rules;
use crate::stack::{ConfigError, QueueLimits, Stack, checked_links};
use crate::stats::Stats;

/// An image that is whole and decodes. Nothing in it has been believed yet.
#[derive(Debug)]
pub struct Decoded {
    header: Header,
    lineage: <LineageSection as Snapshot>::Saved,
    rules: <RulesSection as Snapshot>::Saved,
    links: <LinksSection as Snapshot>::Saved,
    local: <LocalServices as Snapshot>::Saved,
    stats: <Stats as Snapshot>::Saved,
    pub(crate) conntrack: ConntrackSaved,
    fragments: <FragmentsSection as Snapshot>::Saved,
    tcp: <TcpSection as Snapshot>::Saved,
    datagrams: <DatagramsSection as Snapshot>::Saved,
    neighbours: <NeighboursSection as Snapshot>::Saved,
    /// Sections that a stack skips.
    more: Vec<StoredSection>,
}

/// A state that passed every check. It has no keys, so nothing can be looked up in it.
#[derive(Debug)]
pub struct Validated {
    generation: GenerationId,
    parents: Vec<GenerationId>,
    links: Links,
    routes: RouteTable,
    rules: Rules,
    services: LocalServices,
    stats: Stats,
    conntrack: hibernet_conntrack::Validated,
    fragments: Defragmenter,
    tcp: TcpSection,
    datagrams: Datagrams,
    neighbours: CheckedNeighbours,
    now: Instant,
}

/// A state under fresh keys. Only [`Rehashed::open`] lets traffic in.
#[derive(Debug)]
pub struct Rehashed {
    stack: Stack,
    report: RestoreReport,
    /// Of connections of the host itself that could not be rebuilt.
    resets: Vec<StreamReset>,
    /// What a fork has to tell the inside.
    told: Vec<Vec<u8>>,
    now: Instant,
}

/// What the embedder hands in for the restored stack.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Supplied {
    /// Bounds of the queues.
    pub queues: QueueLimits,
    /// Bounds of local sockets. Those that are in the image are kept even where they are more.
    pub local: LocalLimits,
}

/// Why an image was refused. Nothing was changed.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The container is not sound.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The sections have another layout.
    #[error("saved with schema {found:016x}, this build reads {expected:016x}; written by {writer:?}")]
    Schema {
        /// The image's fingerprint.
        found: u64,
        /// This build's.
        expected: u64,
        /// Who wrote it.
        writer: String,
    },
    /// A section is not there.
    #[error("section {section} is missing; written by {writer:?}")]
    Missing {
        /// The section.
        section: SectionId,
        /// Who wrote it.
        writer: String,
    },
    /// A section has a layout this build does not read.
    #[error("section {section} has version {found}, this build reads {expected}; written by {writer:?}")]
    SectionVersion {
        /// The section.
        section: SectionId,
        /// Its version.
        found: u16,
        /// The version this build reads.
        expected: u16,
        /// Who wrote it.
        writer: String,
    },
    /// A section does not decode.
    #[error("section {section}: {error}")]
    Codec {
        /// The section.
        section: SectionId,
        /// What is wrong.
        error: CodecError,
    },
    /// The image is a delta, and of no use without what it continues.
    #[error(
        "this is delta {number} to the image with SHA-256 {digest} (generation {generation}): give that first; written by \
         {writer:?}",
        number = base.number.saturating_add(1),
        digest = base.digest,
        generation = base.generation
    )]
    Delta {
        /// What it continues.
        base: DeltaBase,
        /// Who wrote it.
        writer: String,
    },
    /// A full image where a delta was expected.
    #[error("this is a full image, expected a delta; written by {writer:?}")]
    NotADelta {
        /// Who wrote it.
        writer: String,
    },
    /// A delta continues another image than the one before it: one is missing, or they are in another order.
    #[error(
        "this delta continues SHA-256 {} (generation {}, number {}), but before it comes {} (generation {}, number {}); \
         written by {writer:?}",
        found.digest, found.generation, found.number, expected.digest, expected.generation, expected.number
    )]
    WrongBase {
        /// What it continues.
        found: Box<DeltaBase>,
        /// What came before it.
        expected: Box<DeltaBase>,
        /// Who wrote it.
        writer: String,
    },
    /// A value is out of range.
    #[error("section {section}: {invalid}")]
    Invalid {
        /// The section.
        section: SectionId,
        /// Where, what was found, what was expected.
        invalid: Invalid,
    },
    /// Links, routes or rules do not fit together.
    #[error("section {section}: {error}")]
    Config {
        /// The section.
        section: SectionId,
        /// What is wrong.
        error: Box<ConfigError>,
    },
    /// The flows or settings of connection tracking cannot be.
    #[error("section {section}: {0}", section = CONNTRACK)]
    Conntrack(#[from] hibernet_conntrack::NotRestored),
    /// The policy names a link that the image does not have.
    #[error("the restore policy names the link `{name}`, which the image does not have: it has {known}")]
    NoSuchLink {
        /// The name.
        name: String,
        /// Those it has.
        known: String,
    },
}

impl Decoded {
    /// Opens an image: every checksum is verified, every section decoded.
    pub fn open(bytes: &[u8], limits: &Limits) -> Result<Self, RestoreError> {
        Self::of(StoredImage::from(Image::parse(bytes, limits)?), limits)
    }

    /// The same from whatever gives bytes, a file or a [`hibernet_snapshot::seal::Unsealer`]. Of a large image this takes
    /// less memory: blocks of flows are freed as they are made use of.
    pub fn read(input: &mut impl std::io::Read, limits: &Limits) -> Result<Self, RestoreError> {
        Self::of(StoredImage::read(input, limits)?, limits)
    }

    pub(crate) fn of(mut image: StoredImage, limits: &Limits) -> Result<Self, RestoreError> {
        let header = image.header().clone();
        let (found, expected) = (header.schema, SCHEMA.fingerprint());
        if found != expected {
            return Err(RestoreError::Schema { found, expected, writer: header.writer });
        }
        if let Some(base) = base_of(&image)? {
            return Err(RestoreError::Delta { base, writer: header.writer });
        }
        image.require_known(&SECTIONS)?;
        let mut conntrack: ConntrackSaved = section(&image, CONNTRACK, limits)?;
        for block in image.take(FLOWS) {
            check_version(&header, &block)?;
            check_part(&block, true)?;
            conntrack.attach(block.body);
        }
        Ok(Self {
            lineage: section(&image, LINEAGE, limits)?,
            rules: section(&image, RULES, limits)?,
            links: section(&image, LINKS, limits)?,
            local: section(&image, LOCAL, limits)?,
            stats: section(&image, STATS, limits)?,
            conntrack,
            fragments: section(&image, FRAGMENTS, limits)?,
            tcp: section(&image, TCP, limits)?,
            datagrams: section(&image, DATAGRAMS, limits)?,
            neighbours: section(&image, NEIGHBOURS, limits)?,
            more: image.take_unknown(&SECTIONS),
            header,
        })
    }

    /// Who saved it, and as which generation.
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// How many flows there are.
    pub const fn flows(&self) -> u32 {
        self.conntrack.count()
    }

    /// A section that a stack skips: the embedder's own.
    pub fn skipped(&self, id: SectionId) -> Option<&StoredSection> {
        self.more.iter().find(|section| section.id == id)
    }

    /// Checks every value against everything the running stack relies on. Remaining times count from `now`.
    pub fn validate(self, entropy: &mut Entropy, now: Instant) -> Result<Validated, RestoreError> {
        self.validate_with(entropy, now, &mut RestoreOptions::default())
    }

    /// The same on several threads, into memory that is there, with word of how far it is.
    pub fn validate_with(
        self,
        entropy: &mut Entropy,
        now: Instant,
        options: &mut RestoreOptions<'_>,
    ) -> Result<Validated, RestoreError> {
        let Self {
            header,
            lineage,
            rules,
            links,
            local,
            stats,
            conntrack,
            fragments,
            tcp,
            datagrams,
            neighbours,
            more: _,
        } = self;
        let LineageSection { parents } = valid(LINEAGE, LineageSection::restore(lineage, (), entropy))?;
        let LinksSection { links, routes } = valid(LINKS, LinksSection::restore(links, (), entropy))?;
        let links = checked_links(links).map_err(|error| config(LINKS, error))?;
        let routes = RouteTable::new(&links, routes).map_err(|error| config(LINKS, error.into()))?;
        let set = valid(RULES, RulesSection::restore(rules, (), entropy).and_then(RulesSection::into_set))?;
        let fragments = FragmentsSection::restore(fragments, (), entropy);
        let services = valid(LOCAL, LocalServices::restore(local, (), entropy))?;
        let datagrams = DatagramsSection::restore(datagrams, (), entropy);
        let neighbours = NeighboursSection::restore(neighbours, (), entropy);
        Ok(Validated {
            fragments: valid(FRAGMENTS, fragments.and_then(|section| section.into_defragmenter(now)))?,
            neighbours: valid(NEIGHBOURS, neighbours.and_then(|section| section.check(&links, now)))?,
            generation: header.generation,
            parents,
            rules: Rules::load(set, &links).map_err(|error| config(RULES, error.into()))?,
            links,
            routes,
            tcp: valid(TCP, TcpSection::restore(tcp, (), entropy))?,
            datagrams: valid(DATAGRAMS, datagrams.and_then(|section| section.into_datagrams(services)))?,
            services,
            stats: valid(STATS, Stats::restore(stats, (), entropy))?,
            conntrack: hibernet_conntrack::Validated::check_with(conntrack, now, entropy, options)?,
            now,
        })
    }
}

impl Validated {
    /// Draws every key afresh from `entropy`, which is wiped afterwards, and files every flow under them.
    pub fn rehash(self, entropy: Entropy, policy: RestorePolicy) -> Result<Rehashed, RestoreError> {
        self.rehash_with(entropy, policy, &mut RestoreOptions::default())
    }

    /// The same on several threads, into memory that is there, with word of how far it is. The options are those that
    /// [`Decoded::validate_with`] was given.
    pub fn rehash_with(
        self,
        mut entropy: Entropy,
        policy: RestorePolicy,
        options: &mut RestoreOptions<'_>,
    ) -> Result<Rehashed, RestoreError> {
        let Self {
            generation,
            parents,
            links,
            routes,
            rules,
            services,
            stats,
            mut conntrack,
            mut fragments,
            mut tcp,
            datagrams,
            mut neighbours,
            now,
        } = self;
        let RestorePolicy { clone, time, elapsed, inside } = policy;
        let unknown = |name| {
            let known: Vec<&str> = links.configured().iter().map(|link| link.name.as_str()).collect();
            RestoreError::NoSuchLink { name, known: known.join(", ") }
        };
        let sides = Sides::new(&links, &routes, &inside).map_err(unknown)?;
        let counted = time.counted(elapsed);
        let timed =
            Timed { conntrack: &mut conntrack, fragments: &mut fragments, neighbours: &mut neighbours, tcp: &mut tcp };
        time::pass(timed, counted, &sides, now);
        let records = conntrack.flows();
        let (mut fragments_dropped, mut waiting_dropped) = (0, 0);
        let plan = match &clone {
            ClonePolicy::Move => Plan::default(),
            ClonePolicy::Fork(rules) => {
                fragments_dropped = fragments.forget(|number| !sides.is_inside_at(number));
                waiting_dropped = neighbours.forget_waiting(|link| !sides.is_inside(link));
                Plan::new(rules, &records, &mut tcp, &sides).map_err(unknown)?
            }
        };
        plan.sever(&mut conntrack);
        if !counted.is_zero() {
            conntrack.retain(|flow| !flow.remaining.is_zero());
        }
        let conntrack = conntrack.rehash_with(&mut entropy, options)?;
        let mut local = Local::new(services, LocalLimits::default(), &links, &mut entropy);
        let rebuilt = local.restore_tcp(tcp, now);
        let Plan { streams, resets: told, .. } = &plan;
        let flows = reset::sort_out(&records, &rebuilt.streams, &plan);
        let mut streams = [streams.as_slice(), &rebuilt.streams].concat();
        streams.sort_by_key(|stream| stream.stream);
        let mut report = RestoreReport::new(generation, flows, streams);
        report.cookies_lost = rebuilt.cookies_lost;
        (report.elapsed, report.counted) = (elapsed, counted);
        (report.fragments_dropped, report.waiting_dropped) = (fragments_dropped, waiting_dropped);
        let told = told.clone();
        let mut lineage = parents;
        lineage.push(generation);
        let queues = QueueLimits::default();
        let stack = Stack {
            local: local.with_datagrams(datagrams),
            sink: None,
            links,
            routes,
            rules,
            conntrack,
            fragments,
            stats,
            events: EventQueue::new(queues.events),
            egress: VecDeque::new(),
            work: VecDeque::new(),
            queues,
            ip_ids: WireChoices::redraw(&mut entropy),
            neighbours: neighbours.open(&mut entropy),
            lineage,
            expiry_budget: crate::stack::EXPIRY_BUDGET,
            told: now,
            chain: None,
        };
        report.instance = entropy.public_id();
        Ok(Rehashed { stack, report, resets: rebuilt.resets, told, now })
    }
}

impl Rehashed {
    /// Opens the stack for traffic. Peers of connections that cannot go on are reset at once: the resets are the first
    /// packets in [`Stack::egress`], and pass OUTPUT and NAT as any packet of this host does.
    pub fn open(self, supplied: Supplied) -> (Stack, RestoreReport) {
        let Self { mut stack, mut report, resets, told, now } = self;
        let Supplied { queues, local } = supplied;
        // They are as many as the flows they end: each is told, however long the queue is to be later.
        stack.queues.egress = usize::MAX;
        for datagram in told {
            stack.tell_inside(datagram, now);
        }
        stack.queues = queues;
        stack.events = EventQueue::new(queues.events);
        stack.local.set_limits(local);
        for stream in &resets {
            reset::end(&mut stack, stream, now);
        }
        (report.sockets, report.datagrams) = stack.local.datagrams().count();
        (stack, report)
    }

    /// Opens the stack as hooks around a device. Connections of the host behind them are its own: none is reset.
    pub(crate) fn open_as_hooks(mut self, supplied: Supplied) -> (Stack, RestoreReport) {
        self.resets.clear();
        self.told.clear();
        for flow in &mut self.report.flows {
            if let FlowOutcome::Reset(ResetCause::LocalStream(_)) = flow.outcome {
                flow.outcome = FlowOutcome::Kept;
            }
        }
        self.report.count();
        self.open(supplied)
    }

    /// The restored connection tracking, to look at before any traffic.
    pub const fn conntrack(&self) -> &Conntrack {
        &self.stack.conntrack
    }
}

fn section<T: DeserializeOwned>(image: &StoredImage, section: SectionId, limits: &Limits) -> Result<T, RestoreError> {
    let writer = || image.header().writer.clone();
    let found = image
        .sections()
        .find(|found| found.id == section)
        .ok_or_else(|| RestoreError::Missing { section, writer: writer() })?;
    check_version(image.header(), found)?;
    check_part(found, false)?;
    decode(&found.body, limits).map_err(|error| RestoreError::Codec { section, error })
}

pub(crate) fn check_version(header: &Header, section: &StoredSection) -> Result<(), RestoreError> {
    let StoredSection { id, version, .. } = *section;
    if version == SECTION_VERSION {
        return Ok(());
    }
    let (found, expected) = (version, SECTION_VERSION);
    Err(RestoreError::SectionVersion { section: id, found, expected, writer: header.writer.clone() })
}

fn check_part(section: &StoredSection, part: bool) -> Result<(), RestoreError> {
    let spelled = |part| if part { "one of several" } else { "the only one of its name" };
    if section.part == part {
        return Ok(());
    }
    valid(section.id, Err(Invalid::new("flags", spelled(section.part), spelled(part))))
}

/// What a delta says it continues; `None` if `image` is a full one.
pub fn base_of(image: &StoredImage) -> Result<Option<DeltaBase>, RestoreError> {
    let Some(section) = image.sections().find(|section| section.id == BASE) else { return Ok(None) };
    check_version(image.header(), section)?;
    valid(BASE, DeltaBase::read(&section.body)).map(Some)
}

fn valid<T>(section: SectionId, result: Result<T, Invalid>) -> Result<T, RestoreError> {
    result.map_err(|invalid| RestoreError::Invalid { section, invalid })
}

fn config(section: SectionId, error: ConfigError) -> RestoreError {
    RestoreError::Config { section, error: Box::new(error) }
}
