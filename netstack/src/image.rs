//! The sections of a saved stack: what each holds, and how it is read back.

use hibernet_conntrack::Conntrack;
use hibernet_snapshot::digest::ImageDigest;
use hibernet_snapshot::image::SectionId;
use hibernet_snapshot::{FieldClass, FieldSchema, GenerationId, Invalid, Schema, Snapshot};

use crate::ethernet::NeighboursSection;
use crate::fragments::FragmentsSection;
use crate::link::LinkConfig;
use crate::local::{DatagramsSection, LocalServices, TcpSection};
use crate::route::Route;
use crate::rules::{BaseChain, Chain, Counters, Rule, Ruleset};
use crate::stats::Stats;

/// Links, addresses and routes.
pub(crate) const LINKS: SectionId = SectionId::new(*b"LINK");
/// Chains and rules with their counters.
pub(crate) const RULES: SectionId = SectionId::new(*b"RULE");
/// Settings and flows of connection tracking.
pub(crate) const CONNTRACK: SectionId = SectionId::new(*b"CONN");
/// Flows beyond those that stand with the settings, in blocks: the one section of which there may be several.
pub(crate) const FLOWS: SectionId = SectionId::new(*b"FLOW");
/// Of a delta: the image it continues.
pub(crate) const BASE: SectionId = SectionId::new(*b"BASE");
/// Of a delta: how the flows of that image become those of this one.
pub(crate) const CHANGES: SectionId = SectionId::new(*b"DIFF");
/// Fragments that wait for the rest of their datagrams.
pub(crate) const FRAGMENTS: SectionId = SectionId::new(*b"FRAG");
/// Neighbours on Ethernet links, and packets that wait for their hardware addresses.
pub(crate) const NEIGHBOURS: SectionId = SectionId::new(*b"NEIG");
/// Counters.
pub(crate) const STATS: SectionId = SectionId::new(*b"STAT");
/// Services of the host itself.
pub(crate) const LOCAL: SectionId = SectionId::new(*b"LOCL");
/// TCP connections and listeners of the host itself.
pub(crate) const TCP: SectionId = SectionId::new(*b"TCPS");
/// UDP and ping sockets.
pub(crate) const DATAGRAMS: SectionId = SectionId::new(*b"UDPS");
/// Generations.
pub(crate) const LINEAGE: SectionId = SectionId::new(*b"LINE");
/// All of them, in the order they are written: rules come before what they guard.
pub(crate) const SECTIONS: [SectionId; 11] =
    [LINEAGE, RULES, LINKS, LOCAL, STATS, CONNTRACK, FLOWS, FRAGMENTS, TCP, DATAGRAMS, NEIGHBOURS];
/// Version of every section's layout.
pub(crate) const SECTION_VERSION: u16 = 1;
/// Most parents an image names.
pub(crate) const MAX_LINEAGE: usize = 64;

/// The layout of all sections together.
pub(crate) const SCHEMA: Schema = Schema::Struct {
    name: "Stack",
    fields: &[
        section("lineage", LineageSection::SCHEMA),
        section("rules", RulesSection::SCHEMA),
        section("links", LinksSection::SCHEMA),
        section("local", LocalServices::SCHEMA),
        section("stats", Stats::SCHEMA),
        section("conntrack", Conntrack::SCHEMA),
        section("fragments", FragmentsSection::SCHEMA),
        section("tcp", TcpSection::SCHEMA),
        section("datagrams", DatagramsSection::SCHEMA),
        section("neighbours", NeighboursSection::SCHEMA),
        FieldSchema { name: "ip_ids", class: FieldClass::Redrawn },
        FieldSchema { name: "local_sockets", class: FieldClass::Redrawn },
        FieldSchema { name: "tcp_numbers", class: FieldClass::Redrawn },
        FieldSchema { name: "tcp_sockets", class: FieldClass::Rebuilt },
        FieldSchema { name: "neighbour_times", class: FieldClass::Redrawn },
        FieldSchema { name: "route_table", class: FieldClass::Rebuilt },
        FieldSchema { name: "hook_table", class: FieldClass::Rebuilt },
        FieldSchema { name: "queues", class: FieldClass::Supplied },
    ],
};

const fn section(name: &'static str, schema: Schema) -> FieldSchema {
    FieldSchema { name, class: FieldClass::Saved(schema) }
}

/// The image that a delta continues.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeltaBase {
    /// SHA-256 of its file.
    pub digest: ImageDigest,
    /// Its generation.
    pub generation: GenerationId,
    /// How many deltas lie between it and the full image: 0 for the full image itself.
    pub number: u32,
}

impl DeltaBase {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let Self { digest, generation, number } = self;
        [&digest.0[..], &generation.0, &number.to_le_bytes()].concat()
    }

    pub(crate) fn read(body: &[u8]) -> Result<Self, Invalid> {
        let cut = || Invalid::new("", format!("{} bytes", body.len()), "52 bytes");
        let (digest, rest) = body.split_first_chunk().ok_or_else(cut)?;
        let (generation, rest) = rest.split_first_chunk().ok_or_else(cut)?;
        let number = rest.try_into().map(u32::from_le_bytes).map_err(|_| cut())?;
        Ok(Self { digest: ImageDigest(*digest), generation: GenerationId(*generation), number })
    }
}

/// Links, addresses and routes, as configured.
#[derive(Clone, PartialEq, Eq, Debug, Snapshot)]
pub(crate) struct LinksSection {
    #[snapshot(saved)]
    pub(crate) links: Vec<LinkConfig>,
    #[snapshot(saved)]
    pub(crate) routes: Vec<Route>,
}

/// Generations the saved stack descends from, oldest first; its own is in the image's header.
#[derive(Clone, PartialEq, Eq, Debug, Snapshot)]
#[snapshot(validate = bounded)]
pub(crate) struct LineageSection {
    #[snapshot(saved)]
    pub(crate) parents: Vec<GenerationId>,
}

fn bounded(lineage: &LineageSection) -> Result<(), Invalid> {
    let found = lineage.parents.len();
    if found <= MAX_LINEAGE {
        return Ok(());
    }
    Err(Invalid::new("parents", format!("{found} generations"), format!("at most {MAX_LINEAGE}")))
}

/// Chains in their order.
#[derive(Clone, PartialEq, Eq, Debug, Snapshot)]
pub(crate) struct RulesSection {
    #[snapshot(saved)]
    chains: Vec<ChainSection>,
}

#[derive(Clone, PartialEq, Eq, Debug, Snapshot)]
struct ChainSection {
    #[snapshot(saved)]
    name: String,
    #[snapshot(saved)]
    base: Option<BaseChain>,
    #[snapshot(saved)]
    rules: Vec<RuleSection>,
}

/// A rule as it is written in JSON, in the one spelling that a rule is written back in.
#[derive(Clone, PartialEq, Eq, Debug, Snapshot)]
struct RuleSection {
    #[snapshot(saved)]
    rule: String,
    #[snapshot(saved)]
    counters: Counters,
}

impl RulesSection {
    pub(crate) fn of(set: &Ruleset) -> Self {
        let rule = |rule: &Rule| RuleSection {
            rule: serde_json::to_string(rule).unwrap_or_default(),
            counters: rule.counters,
        };
        let chain = |chain: &Chain| {
            let Chain { name, base, rules } = chain;
            ChainSection { name: name.clone(), base: *base, rules: rules.iter().map(rule).collect() }
        };
        Self { chains: set.chains.iter().map(chain).collect() }
    }

    /// The rule set; refused where a rule cannot be read, or is not spelled as it would be written.
    pub(crate) fn into_set(self) -> Result<Ruleset, Invalid> {
        let mut set = Ruleset { chains: Vec::new() };
        for (at, chain) in self.chains.into_iter().enumerate() {
            let ChainSection { name, base, rules } = chain;
            let mut read = Vec::new();
            for (number, section) in rules.into_iter().enumerate() {
                let place = |invalid: Invalid| invalid.at(number).within("rules").at(at).within("chains");
                read.push(section.into_rule().map_err(place)?);
            }
            set.chains.push(Chain { name, base, rules: read });
        }
        Ok(set)
    }
}

impl RuleSection {
    fn into_rule(self) -> Result<Rule, Invalid> {
        let Self { rule, counters } = self;
        let mut read: Rule = serde_json::from_str(&rule)
            .map_err(|error| Invalid::new("rule", format!("{rule} ({error})"), "a rule in JSON"))?;
        let written = serde_json::to_string(&read).unwrap_or_default();
        if written != rule {
            return Err(Invalid::new("rule", rule, format!("the spelling {written}")));
        }
        read.counters = counters;
        Ok(read)
    }
}
