//! The chains that rules can name without saying where they stand.

use super::{BaseChain, Chain, ChainKind};
use crate::hook::{Hook, priority};

/// A chain known by its name alone.
pub(crate) struct StandardChain {
    pub(crate) name: &'static str,
    kind: ChainKind,
    hook: Hook,
    priority: i32,
    before_confirm: bool,
}

impl StandardChain {
    pub(crate) fn find(name: &str) -> Option<&'static Self> {
        STANDARD_CHAINS.iter().find(|chain| chain.name == name)
    }

    pub(crate) fn chain(&self) -> Chain {
        let Self { name, kind, hook, priority, before_confirm } = *self;
        let base = BaseChain { before_confirm, ..BaseChain::new(kind, hook, priority) };
        Chain { base: Some(base), ..Chain::regular(name) }
    }
}

const fn at(name: &'static str, kind: ChainKind, hook: Hook, priority: i32) -> StandardChain {
    StandardChain { name, kind, hook, priority, before_confirm: false }
}

const fn late(name: &'static str, hook: Hook) -> StandardChain {
    StandardChain { name, kind: ChainKind::Filter, hook, priority: priority::CONFIRM, before_confirm: true }
}

/// Standard names. `late_input` and `late_postrouting` are registered before the stations, so they see confirmed flows.
pub(crate) const STANDARD_CHAINS: &[StandardChain] = &[
    at("raw_prerouting", ChainKind::Filter, Hook::Prerouting, priority::RAW),
    at("raw_output", ChainKind::Filter, Hook::Output, priority::RAW),
    at("mangle_prerouting", ChainKind::Filter, Hook::Prerouting, priority::MANGLE),
    at("mangle_input", ChainKind::Filter, Hook::Input, priority::MANGLE),
    at("mangle_forward", ChainKind::Filter, Hook::Forward, priority::MANGLE),
    at("mangle_output", ChainKind::Filter, Hook::Output, priority::MANGLE),
    at("mangle_postrouting", ChainKind::Filter, Hook::Postrouting, priority::MANGLE),
    at("dstnat", ChainKind::Nat, Hook::Prerouting, priority::DSTNAT),
    at("dstnat_output", ChainKind::Nat, Hook::Output, priority::DSTNAT),
    at("input", ChainKind::Filter, Hook::Input, priority::FILTER),
    at("forward", ChainKind::Filter, Hook::Forward, priority::FILTER),
    at("output", ChainKind::Filter, Hook::Output, priority::FILTER),
    at("srcnat", ChainKind::Nat, Hook::Postrouting, priority::SRCNAT),
    at("srcnat_input", ChainKind::Nat, Hook::Input, priority::SRCNAT),
    late("late_input", Hook::Input),
    late("late_postrouting", Hook::Postrouting),
];
