//! What an image holds, for people, and what changed between two.

mod flow;

use std::collections::BTreeMap;

use hibernet_conntrack::FlowRecord;
use hibernet_snapshot::diff::{Difference, Pair, Value, aligned, merged, value};
use hibernet_snapshot::image::{Header, SectionId};
use hibernet_snapshot::{Entropy, Instant, Snapshot};
use serde::Serialize;

use super::{Decoded, RestoreError};
use crate::rules::{Chain, Rule, Ruleset};
use crate::stats::Stats;

/// What an image holds: links, routes, rules, settings, counters, flows, fragments, sockets, neighbours.
///
/// It compares with [`diff`](Self::diff) item by item: a flow by its original tuple and zone, a rule by what it says, a socket by its
/// id. Not compared are the generation and its parents, which differ between any two saves.
#[derive(Clone, PartialEq, Debug)]
pub struct Contents {
    header: Header,
    rules: Ruleset,
    /// Ascending by original tuple and zone.
    flows: Vec<FlowRecord>,
    /// All else, ascending.
    items: Vec<Item>,
}

/// One thing among others of its kind.
#[derive(Clone, PartialEq, Debug)]
struct Item {
    section: Section,
    /// Its number, where it has one: then its name is for people alone.
    number: Option<u64>,
    name: String,
    value: Value,
}

/// The kinds of things, in the order they are told of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Section {
    Links,
    Routes,
    Services,
    Counters,
    Conntrack,
    Fragments,
    Tcp,
    Udp,
    Ping,
    Neighbours,
    Other,
}

impl Decoded {
    /// What the image holds. It is checked as for a restore, but for what two flows have in common; `entropy` is drawn from where
    /// a restore would, and protects nothing.
    pub fn contents(self, entropy: &mut Entropy) -> Result<Contents, RestoreError> {
        let mut items = Vec::new();
        let datagrams = match tree(&self.datagrams) {
            Value::Map(mut kinds) => ["udp", "ping"].map(|kind| kinds.remove(kind).unwrap_or(Value::Null)),
            other => [other, Value::Null],
        };
        let [udp, ping] = datagrams;
        for (section, tree) in [
            (Section::Fragments, tree(&self.fragments)),
            (Section::Tcp, tree(&self.tcp)),
            (Section::Udp, udp),
            (Section::Ping, ping),
            (Section::Neighbours, tree(&self.neighbours)),
        ] {
            items.extend(Item::split(section, tree));
        }
        for section in &self.more {
            let value = Value::Bytes(section.body.clone());
            items.push(Item::new(Section::Other, section.id.to_string(), value));
        }
        let header = self.header.clone();
        let validated = self.validate(entropy, Instant::ZERO)?;
        for link in validated.links.given() {
            items.push(Item::new(Section::Links, link.name.clone(), tree(link)));
        }
        for route in validated.routes.given() {
            let via = route.via.map(|via| format!(" via {via}")).unwrap_or_default();
            let name = format!("{}{via} dev {}", route.destination, route.link);
            items.push(Item::new(Section::Routes, name, Value::Null));
        }
        items.push(Item::of_section(Section::Services, tree(&validated.services)));
        items.push(Item::of_section(Section::Counters, counters(&validated.stats)));
        items.push(Item::of_section(Section::Conntrack, settings(&validated.conntrack)));
        items.sort_by(|one, other| one.key().cmp(&other.key()));
        let mut flows = validated.conntrack.flows();
        flows.sort_by(|one, other| flow_key(one).cmp(&flow_key(other)));
        Ok(Contents { header, rules: validated.rules.set().clone(), flows, items })
    }
}

impl Contents {
    /// Who saved it, and as which generation.
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// The flows, ascending by original tuple and zone.
    pub fn flows(&self) -> &[FlowRecord] {
        &self.flows
    }

    /// The same without a section of the embedder's, such as one that differs between any two saves.
    #[must_use]
    pub fn without_section(mut self, id: SectionId) -> Self {
        let name = id.to_string();
        self.items.retain(|item| item.section != Section::Other || item.name != name);
        self
    }

    /// What turns this into `after`, in canonical order: one pass over both, and trees of what differs alone.
    pub fn diff<'a>(&'a self, after: &'a Self) -> impl Iterator<Item = Difference> + 'a {
        let is_setup = |item: &Item| item.section <= Section::Routes;
        let is_counted = |item: &Item| (Section::Services..=Section::Conntrack).contains(&item.section);
        let is_held = |item: &Item| item.section > Section::Conntrack;
        items(self, after, is_setup)
            .chain(rules(&self.rules, &after.rules))
            .chain(items(self, after, is_counted))
            .chain(merged(&self.flows, &after.flows, flow_key).filter_map(flow::difference))
            .chain(items(self, after, is_held))
    }
}

impl Item {
    fn new(section: Section, name: String, value: Value) -> Self {
        Self { section, number: None, name, value }
    }

    fn of_section(section: Section, value: Value) -> Self {
        Self::new(section, String::new(), value)
    }

    /// A section's tree: what it holds many of as items, and the rest as one.
    fn split(section: Section, tree: Value) -> Vec<Self> {
        let Value::Map(mut fields) = tree else { return vec![Self::of_section(section, tree)] };
        let mut items = Vec::new();
        for (field, kind) in [
            ("listeners", "listener"),
            ("streams", "stream"),
            ("ended", "ended"),
            ("sockets", "socket"),
            ("queues", "datagram"),
        ] {
            // A saved map is the list of its pairs.
            let Some(Value::List(many)) = fields.get_mut(field) else { continue };
            for pair in core::mem::take(many) {
                let Value::List(pair) = pair else { continue };
                let Ok([id, value]) = <[Value; 2]>::try_from(pair) else { continue };
                let number = if let Value::Integer(id) = id { u64::try_from(id).ok() } else { None };
                items.push(Self { section, number, name: format!("{kind} {}", id.in_a_row()), value });
            }
            fields.remove(field);
        }
        if let Some(Value::List(neighbours)) = fields.get_mut("neighbours") {
            for neighbour in core::mem::take(neighbours) {
                let name = neighbour_name(&neighbour);
                items.push(Self::new(section, name, neighbour));
            }
            fields.remove("neighbours");
        }
        if !fields.is_empty() {
            items.push(Self::of_section(section, Value::Map(fields)));
        }
        items
    }

    fn key(&self) -> (Section, &str, Option<u64>, &str) {
        // A kind of socket at a time, and by number among those.
        let kind = self.name.split(' ').next().unwrap_or_default();
        (self.section, kind, self.number, &self.name)
    }
}

impl Section {
    const fn name(self) -> &'static str {
        match self {
            Self::Links => "links",
            Self::Routes => "routes",
            Self::Services => "services",
            Self::Counters => "counters",
            Self::Conntrack => "conntrack",
            Self::Fragments => "fragments",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Ping => "ping",
            Self::Neighbours => "neighbours",
            Self::Other => "sections",
        }
    }
}

fn items<'a>(
    before: &'a Contents,
    after: &'a Contents,
    which: impl Fn(&Item) -> bool + 'a,
) -> impl Iterator<Item = Difference> + 'a {
    let difference = move |pair: Pair<'a, Item>| {
        let (Pair::Removed(item) | Pair::Added(item) | Pair::Both(item, _)) = pair;
        if !which(item) {
            return None;
        }
        let (section, name) = (item.section.name(), item.name.clone());
        match pair {
            Pair::Removed(Item { value, .. }) => {
                Some(Difference::Removed { section, item: name, value: value.clone() })
            }
            Pair::Added(Item { value, .. }) => Some(Difference::Added { section, item: name, value: value.clone() }),
            Pair::Both(before, after) => Difference::between(section, name, &before.value, &after.value),
        }
    };
    merged(&before.items, &after.items, Item::key).filter_map(difference)
}

/// Chains by name, rules by what they say; both in the order they are in.
fn rules(before: &Ruleset, after: &Ruleset) -> Vec<Difference> {
    let mut differences = Vec::new();
    for pair in aligned(&before.chains, &after.chains, |one, other| one.name == other.name) {
        let (Pair::Removed(chain) | Pair::Added(chain) | Pair::Both(chain, _)) = pair;
        let item = format!("chain {}", chain.name);
        let (section, none) = ("rules", Vec::new());
        let (old, new) = match pair {
            Pair::Removed(old) => {
                differences.push(Difference::Removed { section, item, value: chain_value(old) });
                (&old.rules, &none)
            }
            Pair::Added(new) => {
                differences.push(Difference::Added { section, item, value: chain_value(new) });
                (&none, &new.rules)
            }
            Pair::Both(old, new) => {
                differences.extend(Difference::between(section, item, &chain_value(old), &chain_value(new)));
                (&old.rules, &new.rules)
            }
        };
        rules_of_chain(&chain.name, old, new, &mut differences);
    }
    differences
}

fn rules_of_chain(chain: &str, before: &[Rule], after: &[Rule], differences: &mut Vec<Difference>) {
    let same = |one: &Rule, other: &Rule| one.matches == other.matches && one.action == other.action;
    let (mut old_number, mut new_number) = (0_usize, 0_usize);
    for pair in aligned(before, after, same) {
        let section = "rules";
        let item = |number: usize| format!("chain {chain} rule {number}");
        match pair {
            Pair::Removed(rule) => {
                old_number = old_number.saturating_add(1);
                differences.push(Difference::Removed { section, item: item(old_number), value: rule_value(rule) });
            }
            Pair::Added(rule) => {
                new_number = new_number.saturating_add(1);
                differences.push(Difference::Added { section, item: item(new_number), value: rule_value(rule) });
            }
            Pair::Both(old, new) => {
                (old_number, new_number) = (old_number.saturating_add(1), new_number.saturating_add(1));
                differences.extend(Difference::between(section, item(new_number), &rule_value(old), &rule_value(new)));
            }
        }
    }
}

fn chain_value(chain: &Chain) -> Value {
    let Chain { name: _, base, rules: _ } = chain;
    let Some(base) = base else { return map([("base", Value::Null)]) };
    map([
        ("type", tree(&base.kind)),
        ("hook", Value::Text(base.hook.to_string())),
        ("priority", Value::Integer(base.priority.into())),
        ("policy", Value::Text(base.policy.to_string())),
        ("before_confirm", Value::Bool(base.before_confirm)),
        ("packets", Value::Integer(base.policy_counters.packets.into())),
        ("bytes", Value::Integer(base.policy_counters.bytes.into())),
    ])
}

fn rule_value(rule: &Rule) -> Value {
    map([
        ("packets", Value::Integer(rule.counters.packets.into())),
        ("bytes", Value::Integer(rule.counters.bytes.into())),
        // As in a rule file.
        ("rule", tree(rule)),
    ])
}

fn counters(stats: &Stats) -> Value {
    let Value::Map(mut fields) = tree(&stats.save()) else { return Value::Null };
    let drops = stats.drops().map(|(reason, count)| (reason.name().to_owned(), Value::Integer(count.into())));
    // Without any it would be an empty leaf, which goes when the first comes.
    fields.remove("drops");
    let drops: BTreeMap<_, _> = drops.collect();
    if !drops.is_empty() {
        fields.insert("drops".to_owned(), Value::Map(drops));
    }
    Value::Map(fields)
}

fn settings(conntrack: &hibernet_conntrack::Validated) -> Value {
    let sysctls = conntrack.sysctls().iter().map(|(name, value)| (name.to_owned(), Value::Integer(value.into())));
    map([
        ("sysctls", Value::Map(sysctls.collect())),
        ("early_drop", tree(&conntrack.early_drop())),
        ("half_open_limit", Value::Integer(conntrack.half_open_limit().into())),
        ("capacity", Value::Integer(conntrack.capacity().into())),
        ("totals", tree(&conntrack.totals().save())),
    ])
}

fn neighbour_name(neighbour: &Value) -> String {
    let Value::Map(fields) = neighbour else { return String::new() };
    let field = |name: &str| match fields.get(name) {
        Some(Value::Text(text)) => text.clone(),
        other => other.map(ToString::to_string).unwrap_or_default(),
    };
    format!("{} link {}", field("addr"), field("link"))
}

/// The value as a tree. All that is saved has one; what had none would show why.
fn tree<T: Serialize>(whole: &T) -> Value {
    value(whole).unwrap_or_else(|error| Value::Text(error.to_string()))
}

fn map<const N: usize>(fields: [(&str, Value); N]) -> Value {
    Value::Map(BTreeMap::from(fields.map(|(name, value)| (name.to_owned(), value))))
}

/// What names a flow in an image.
fn flow_key(flow: &FlowRecord) -> (&hibernet_conntrack::Tuple, hibernet_conntrack::Zone) {
    (&flow.orig, flow.zone)
}
