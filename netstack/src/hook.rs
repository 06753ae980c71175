//! The five hook points, what stands on them, and in which order it runs.

use core::fmt;

use hibernet_conntrack::Manip;
use hibernet_snapshot::Snapshot;
use serde::{Deserialize, Serialize};

use crate::rules::{BaseChain, ChainKind, Ruleset};

/// A point of a packet's way at which chains and built-in stations see it: netfilter's five.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, Snapshot)]
#[serde(rename_all = "lowercase")]
pub enum Hook {
    /// Every packet that comes in on a link, before it is routed.
    Prerouting,
    /// Packets for this host.
    Input,
    /// Packets that go out again.
    Forward,
    /// Packets this host makes.
    Output,
    /// Every packet that leaves on a link.
    Postrouting,
}

impl Hook {
    /// All hooks, in the order a forwarded packet and then a local one would meet them.
    pub const ALL: [Self; 5] = [Self::Prerouting, Self::Input, Self::Forward, Self::Output, Self::Postrouting];

    /// The hook's name, as nft spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
        }
    }

    /// What a NAT chain may change at this hook; `None` where there is no NAT.
    pub const fn manip(self) -> Option<Manip> {
        match self {
            Self::Prerouting | Self::Output => Some(Manip::Destination),
            Self::Input | Self::Postrouting => Some(Manip::Source),
            Self::Forward => None,
        }
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Priorities of the built-in stations and of the usual chains, by netfilter's numbers.
pub mod priority {
    /// Reassembly.
    pub const DEFRAG: i32 = -400;
    /// Chains that see a packet before it is tracked.
    pub const RAW: i32 = -300;
    /// Connection tracking looks the packet up.
    pub const TRACK: i32 = -200;
    /// Chains that mark.
    pub const MANGLE: i32 = -150;
    /// Destination NAT.
    pub const DSTNAT: i32 = -100;
    /// Chains that filter.
    pub const FILTER: i32 = 0;
    /// Source NAT.
    pub const SRCNAT: i32 = 100;
    /// A new flow enters the table.
    pub const CONFIRM: i32 = i32::MAX;
}

/// One line of the table of hooks: what [`Stack::hooks`](crate::Stack::hooks) returns.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct HookRow {
    /// The hook.
    pub hook: Hook,
    /// Lower runs first.
    pub priority: i32,
    /// Name of the station or chain.
    pub name: String,
    /// What it is.
    pub kind: HookRowKind,
}

/// What stands at a place of a hook.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum HookRowKind {
    /// Built in.
    Station,
    /// A chain of filter type.
    Filter,
    /// A chain of nat type. It runs inside the NAT station, for flows whose translation is not decided.
    Nat,
}

impl fmt::Display for HookRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            HookRowKind::Station => "station",
            HookRowKind::Filter => "filter chain",
            HookRowKind::Nat => "nat chain",
        };
        write!(f, "{:<11} {:>11} {:<12} {}", self.hook.name(), self.priority, kind, self.name)
    }
}

/// What runs at one place of a hook.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// Fragments become datagrams.
    Defrag,
    /// The packet gets its attachment.
    Track,
    /// Bindings are made and applied.
    Nat(Manip),
    /// The flow enters the table.
    Confirm,
    /// A filter chain, by its place in the rule set.
    Chain(usize),
}

/// For every hook the steps in running order, and the nat chains that its NAT station asks.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct HookTable {
    steps: [Vec<Step>; 5],
    nat_chains: [Vec<usize>; 5],
    has_nat: bool,
}

impl HookTable {
    /// The table for a rule set.
    ///
    /// Among equal priorities the last registered runs first, as in the kernel. Registered are, in this order: chains
    /// that ask to be before the stations, the stations, all other chains.
    pub(crate) fn new(rules: &Ruleset) -> Self {
        let base = || rules.chains.iter().enumerate().filter_map(|(index, chain)| Some((index, chain.base?)));
        let has_nat = base().any(|(_, base)| base.kind == ChainKind::Nat);
        let mut table = Self { has_nat, ..Self::default() };
        for hook in Hook::ALL {
            let chains = |early: bool| {
                base().filter_map(move |(index, base)| {
                    let here = base.hook == hook && base.kind == ChainKind::Filter && base.before_confirm == early;
                    here.then_some((base.priority, Step::Chain(index)))
                })
            };
            let mut registered: Vec<(i32, Step)> = chains(true).chain(stations(hook)).chain(chains(false)).collect();
            registered.reverse();
            registered.sort_by_key(|(priority, _)| *priority);
            *table.steps_mut(hook) = registered.into_iter().map(|(_, step)| step).collect();

            let at_hook = |(_, base): &(usize, BaseChain)| base.hook == hook && base.kind == ChainKind::Nat;
            let mut nat: Vec<(usize, BaseChain)> = base().filter(at_hook).collect();
            nat.reverse();
            nat.sort_by_key(|(_, base)| base.priority);
            *table.nat_chains_mut(hook) = nat.into_iter().map(|(index, _)| index).collect();
        }
        table
    }

    /// What runs at a hook, in order.
    pub(crate) fn steps(&self, hook: Hook) -> &[Step] {
        let [prerouting, input, forward, output, postrouting] = &self.steps;
        match hook {
            Hook::Prerouting => prerouting,
            Hook::Input => input,
            Hook::Forward => forward,
            Hook::Output => output,
            Hook::Postrouting => postrouting,
        }
    }

    /// The nat chains of a hook, in order.
    pub(crate) fn nat_chains(&self, hook: Hook) -> &[usize] {
        let [prerouting, input, forward, output, postrouting] = &self.nat_chains;
        match hook {
            Hook::Prerouting => prerouting,
            Hook::Input => input,
            Hook::Forward => forward,
            Hook::Output => output,
            Hook::Postrouting => postrouting,
        }
    }

    /// Whether any nat chain exists: then every new flow gets a binding, be it an empty one.
    pub(crate) const fn has_nat(&self) -> bool {
        self.has_nat
    }

    /// The table as people read it.
    pub(crate) fn rows(&self, rules: &Ruleset) -> Vec<HookRow> {
        let placed = |index: usize| {
            let chain = rules.chains.get(index)?;
            Some((chain.base?.priority, chain.name.clone()))
        };
        let mut rows = Vec::new();
        for hook in Hook::ALL {
            for step in self.steps(hook) {
                let (priority, name, kind) = match *step {
                    Step::Chain(index) => match placed(index) {
                        Some((priority, name)) => (priority, name, HookRowKind::Filter),
                        None => continue,
                    },
                    station => (station_priority(hook, station), station_name(hook, station), HookRowKind::Station),
                };
                rows.push(HookRow { hook, priority, name, kind });
                if matches!(step, Step::Nat(_)) {
                    rows.extend(self.nat_chains(hook).iter().filter_map(|index| {
                        let (priority, name) = placed(*index)?;
                        Some(HookRow { hook, priority, name, kind: HookRowKind::Nat })
                    }));
                }
            }
        }
        rows
    }

    fn steps_mut(&mut self, hook: Hook) -> &mut Vec<Step> {
        let [prerouting, input, forward, output, postrouting] = &mut self.steps;
        match hook {
            Hook::Prerouting => prerouting,
            Hook::Input => input,
            Hook::Forward => forward,
            Hook::Output => output,
            Hook::Postrouting => postrouting,
        }
    }

    fn nat_chains_mut(&mut self, hook: Hook) -> &mut Vec<usize> {
        let [prerouting, input, forward, output, postrouting] = &mut self.nat_chains;
        match hook {
            Hook::Prerouting => prerouting,
            Hook::Input => input,
            Hook::Forward => forward,
            Hook::Output => output,
            Hook::Postrouting => postrouting,
        }
    }
}

/// The built-in stations of a hook.
fn stations(hook: Hook) -> impl Iterator<Item = (i32, Step)> {
    let steps: &'static [Step] = match hook {
        Hook::Prerouting | Hook::Output => &[Step::Defrag, Step::Track, Step::Nat(Manip::Destination)],
        Hook::Input | Hook::Postrouting => &[Step::Nat(Manip::Source), Step::Confirm],
        Hook::Forward => &[],
    };
    steps.iter().map(move |step| (station_priority(hook, *step), *step))
}

const fn station_priority(hook: Hook, step: Step) -> i32 {
    match step {
        Step::Defrag => priority::DEFRAG,
        Step::Track => priority::TRACK,
        Step::Nat(_) => match hook {
            Hook::Prerouting | Hook::Output => priority::DSTNAT,
            _ => priority::SRCNAT,
        },
        Step::Confirm => priority::CONFIRM,
        Step::Chain(_) => priority::FILTER,
    }
}

fn station_name(hook: Hook, step: Step) -> String {
    match (step, hook) {
        (Step::Defrag, _) => "defrag",
        (Step::Track, _) => "track",
        (Step::Nat(_), Hook::Prerouting | Hook::Output) => "dstnat",
        (Step::Nat(_), _) => "srcnat",
        (Step::Confirm, _) => "confirm",
        (Step::Chain(_), _) => "chain",
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(rules: &str, hook: Hook) -> String {
        let rules = Ruleset::from_json(rules).unwrap();
        let rows = HookTable::new(&rules).rows(&rules);
        let names: Vec<_> = rows.iter().filter(|row| row.hook == hook).map(|row| row.name.as_str()).collect();
        names.join(" ")
    }

    #[test]
    fn the_stations_stand_where_netfilter_has_them() {
        let rules = Ruleset { chains: Vec::new() };
        let rows: String = HookTable::new(&rules).rows(&rules).iter().map(|row| format!("{row}\n")).collect();
        insta::assert_snapshot!(rows);
    }

    #[test]
    fn among_equal_priorities_the_last_registered_runs_first() {
        let chain = |name| format!(r#"{{"name":"{name}","hook":"forward","priority":5,"rules":[]}}"#);
        let rules = format!(r#"{{"chains":[{},{},{}]}}"#, chain("a"), chain("b"), chain("c"));
        assert_eq!(names(&rules, Hook::Forward), "c b a");
    }

    #[test]
    fn a_chain_at_the_last_priority_runs_before_confirm_unless_registered_before_it() {
        let chain = |name, early| {
            let max = i32::MAX;
            format!(r#"{{"name":"{name}","hook":"input","priority":{max},"before_confirm":{early},"rules":[]}}"#)
        };
        let rules = format!(r#"{{"chains":[{},{}]}}"#, chain("early", true), chain("late", false));
        assert_eq!(names(&rules, Hook::Input), "srcnat late confirm early");
    }

    #[test]
    fn nat_chains_run_inside_the_station_whatever_their_priority() {
        let rules = r#"{"chains":[
            {"name":"second","type":"nat","hook":"postrouting","priority":300,"rules":[]},
            {"name":"first","type":"nat","hook":"postrouting","priority":-300,"rules":[]},
            {"name":"filter","hook":"postrouting","priority":200,"rules":[]}]}"#;
        assert_eq!(names(rules, Hook::Postrouting), "srcnat first second filter confirm");
    }
}
