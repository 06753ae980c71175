//! Rule sets from and to JSON, in the spelling people write.

use core::fmt;
use core::net::IpAddr;
use core::str::FromStr;
use std::collections::BTreeMap;

use hibernet_conntrack::proto;
use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::place::StandardChain;
use super::validate::RulesetError;
use super::{
    Action, BaseChain, Chain, ChainKind, Match, NatTarget, Policy, Ports, Proto, Rule, Ruleset, STANDARD_CHAINS,
};
use crate::hook::Hook;

impl Ruleset {
    /// Reads a rule set. Chains and rules come out in the order they are written.
    pub fn from_json(text: &str) -> Result<Self, RulesetError> {
        serde_json::from_str(text).map_err(|error| RulesetError::Spelling { reason: error.to_string() })
    }

    /// The rule set as JSON, one line, in the general form: what [`Ruleset::from_json`] reads back as the same set.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

impl Serialize for Ruleset {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry("chains", &self.chains)?;
        map.end()
    }
}

impl<'de> Deserialize<'de> for Ruleset {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RulesetVisitor;

        impl<'de> Visitor<'de> for RulesetVisitor {
            type Value = Ruleset;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of rules, or an object with \"chains\", \"rules\" or \"policy\"")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Ruleset, A::Error> {
                let mut written = WrittenRuleset::default();
                while let Some(rule) = seq.next_element()? {
                    written.rules.push(rule);
                }
                written.build().map_err(de::Error::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Ruleset, A::Error> {
                let written = WrittenRuleset::deserialize(de::value::MapAccessDeserializer::new(map))?;
                written.build().map_err(de::Error::custom)
            }
        }

        deserializer.deserialize_any(RulesetVisitor)
    }
}

/// A rule set as it is written.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WrittenRuleset {
    chains: Vec<Chain>,
    rules: Vec<PlacedRule>,
    policy: BTreeMap<String, Policy>,
}

/// A rule with the name of its chain.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PlacedRule {
    chain: String,
    #[serde(default, rename = "match")]
    matches: Match,
    action: Action,
}

impl WrittenRuleset {
    fn build(self) -> Result<Ruleset, String> {
        let Self { chains, rules, policy } = self;
        let mut set = Ruleset { chains };
        set.check_size(rules.len()).map_err(|error| error.to_string())?;
        for PlacedRule { chain, matches, action } in rules {
            set.chain_or_standard(&chain)?.rules.push(Rule::new(matches, action));
        }
        for (chain, policy) in policy {
            let base = set.chain_or_standard(&chain)?.base.as_mut();
            base.ok_or_else(|| format!("found a policy of the chain `{chain}`, which has no hook"))?.policy = policy;
        }
        Ok(set)
    }
}

impl Ruleset {
    /// The chain of that name; a standard one is made where it is missing.
    pub(crate) fn chain_or_standard(&mut self, name: &str) -> Result<&mut Chain, String> {
        let at = match self.chains.iter().position(|chain| chain.name == name) {
            Some(at) => at,
            None => {
                let chain = StandardChain::find(name).ok_or_else(|| unknown_chain(name))?.chain();
                self.chains.push(chain);
                self.chains.len().saturating_sub(1)
            }
        };
        self.chains.get_mut(at).ok_or_else(|| unknown_chain(name))
    }
}

fn unknown_chain(name: &str) -> String {
    let known: Vec<&str> = STANDARD_CHAINS.iter().map(|chain| chain.name).collect();
    format!("found the chain `{name}`, expected one of the set's own or {}", known.join(", "))
}

/// A chain as it is written. One without a hook is a regular chain.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenChain {
    name: String,
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<ChainKind>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hook: Option<Hook>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    priority: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    policy: Option<Policy>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    before_confirm: Option<bool>,
    #[serde(default)]
    rules: Vec<Rule>,
}

impl WrittenChain {
    fn base(&self) -> Result<Option<BaseChain>, String> {
        let Self { name, kind, hook, priority, policy, before_confirm, rules: _ } = self;
        let Some(hook) = *hook else {
            if kind.is_none() && priority.is_none() && policy.is_none() && before_confirm.is_none() {
                return Ok(None);
            }
            return Err(format!(
                "found the chain `{name}` without a hook, expected neither type, priority nor policy then"
            ));
        };
        Ok(Some(BaseChain {
            policy: policy.unwrap_or_default(),
            before_confirm: before_confirm.unwrap_or_default(),
            ..BaseChain::new(kind.unwrap_or_default(), hook, priority.unwrap_or_default())
        }))
    }
}

impl Serialize for Chain {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { name, base, rules } = self.clone();
        WrittenChain {
            name,
            kind: base.map(|base| base.kind),
            hook: base.map(|base| base.hook),
            priority: base.map(|base| base.priority),
            policy: base.map(|base| base.policy),
            before_confirm: base.map(|base| base.before_confirm),
            rules,
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Chain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written = WrittenChain::deserialize(deserializer)?;
        let base = written.base().map_err(de::Error::custom)?;
        let WrittenChain { name, rules, .. } = written;
        Ok(Self { name, base, rules })
    }
}

/// A rule as it is written inside a chain.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenRule {
    #[serde(default, rename = "match")]
    matches: Match,
    action: Action,
}

impl Serialize for Rule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        WrittenRule { matches: self.matches.clone(), action: self.action.clone() }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Rule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let WrittenRule { matches, action } = WrittenRule::deserialize(deserializer)?;
        Ok(Self::new(matches, action))
    }
}

impl Serialize for Action {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let name = self.name();
        let value = match self {
            Self::Accept
            | Self::Drop
            | Self::Reject
            | Self::RejectTcpReset
            | Self::RejectAdminProhibited
            | Self::Tproxy
            | Self::Notrack
            | Self::Return => {
                return serializer.serialize_str(name);
            }
            Self::Masquerade(target) if *target == NatTarget::default() => return serializer.serialize_str(name),
            Self::Masquerade(target) | Self::Redirect(target) => {
                let to = target.ports.map(|ports| ports.to_string()).unwrap_or_default();
                ActionValue::Nat { to, flags: target.flags() }
            }
            Self::Snat(target) | Self::Dnat(target) => {
                ActionValue::Nat { to: target.destination(), flags: target.flags() }
            }
            Self::Zone(zone) | Self::ZoneOrig(zone) => ActionValue::Number(u32::from(*zone)),
            Self::CtMark(mark) => ActionValue::Number(*mark),
            Self::Log { prefix: text } | Self::Jump(text) | Self::Goto(text) => ActionValue::Text(text.clone()),
        };
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry(name, &value)?;
        map.end()
    }
}

impl<'de> Deserialize<'de> for Action {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ActionVisitor;

        impl<'de> Visitor<'de> for ActionVisitor {
            type Value = Action;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an action: a word such as \"accept\", or an object with one entry such as {\"snat\": ..}")
            }

            fn visit_str<E: de::Error>(self, word: &str) -> Result<Action, E> {
                word_action(word).map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Action, A::Error> {
                let entry: Option<(String, ActionValue)> = map.next_entry()?;
                let (name, value) = entry.ok_or_else(|| de::Error::custom("found an empty action"))?;
                if let Some(extra) = map.next_key::<String>()? {
                    return Err(de::Error::custom(format!("found `{extra}` after `{name}`: an action has one entry")));
                }
                entry_action(&name, value).map_err(de::Error::custom)
            }
        }

        deserializer.deserialize_any(ActionVisitor)
    }
}

/// What stands behind an action's name.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum ActionValue {
    Number(u32),
    Text(String),
    Nat {
        #[serde(default, skip_serializing_if = "String::is_empty")]
        to: String,
        #[serde(default, skip_serializing_if = "String::is_empty")]
        flags: String,
    },
}

fn word_action(word: &str) -> Result<Action, String> {
    Ok(match word {
        "accept" => Action::Accept,
        "drop" => Action::Drop,
        "reject" => Action::Reject,
        "reject-tcp" => Action::RejectTcpReset,
        "reject-admin" => Action::RejectAdminProhibited,
        "tproxy" => Action::Tproxy,
        "notrack" => Action::Notrack,
        "return" => Action::Return,
        _ => match word.split_once(' ').unwrap_or((word, "")) {
            ("masquerade", flags) => Action::Masquerade(NatTarget::default().with_flags(flags)?),
            _ => return Err(unknown_action(word)),
        },
    })
}

fn entry_action(name: &str, value: ActionValue) -> Result<Action, String> {
    let target = |value| match value {
        ActionValue::Number(port) => ports_only(&port.to_string()),
        ActionValue::Text(text) => text.parse(),
        ActionValue::Nat { to, flags } if to.is_empty() => NatTarget::default().with_flags(&flags),
        ActionValue::Nat { to, flags } => to.parse::<NatTarget>()?.with_flags(&flags),
    };
    let link_target = |value| match value {
        ActionValue::Text(text) => ports_only(&text),
        ActionValue::Nat { to, flags } if !to.is_empty() => ports_only(&to)?.with_flags(&flags),
        other => target(other),
    };
    let zone = |value| match value {
        ActionValue::Number(zone) => {
            u16::try_from(zone).map_err(|_| format!("found zone {zone}, expected 0 to {}", u16::MAX))
        }
        _ => Err("found no number, expected a zone".to_owned()),
    };
    Ok(match (name, value) {
        ("snat", value) => Action::Snat(target(value)?),
        ("dnat", value) => Action::Dnat(target(value)?),
        ("redirect", value) => Action::Redirect(link_target(value)?),
        ("masquerade", value) => Action::Masquerade(link_target(value)?),
        ("zone", value) => Action::Zone(zone(value)?),
        ("zone_orig", value) => Action::ZoneOrig(zone(value)?),
        ("ctmark", ActionValue::Number(mark)) => Action::CtMark(mark),
        ("jump", ActionValue::Text(chain)) => Action::Jump(chain),
        ("goto", ActionValue::Text(chain)) => Action::Goto(chain),
        ("log", ActionValue::Text(prefix)) => Action::Log { prefix },
        (name, _) => return Err(unknown_action(name)),
    })
}

fn unknown_action(found: &str) -> String {
    format!(
        "found the action `{found}`, expected accept, drop, reject, reject-tcp, reject-admin, tproxy, notrack, masquerade, \
         snat, dnat, redirect, zone, zone_orig, ctmark, jump, goto, return or log, in their forms"
    )
}

impl NatTarget {
    fn with_flags(mut self, flags: &str) -> Result<Self, String> {
        for flag in flags.split([',', ' ']).filter(|flag| !flag.is_empty()) {
            match flag {
                "random" => self.random = true,
                "fully-random" => self.fully_random = true,
                "persistent" => self.persistent = true,
                _ => return Err(format!("found the flag `{flag}`, expected random, fully-random or persistent")),
            }
        }
        Ok(self)
    }

    fn flags(&self) -> String {
        let flags = [(self.random, "random"), (self.fully_random, "fully-random"), (self.persistent, "persistent")];
        let set: Vec<&str> = flags.into_iter().filter_map(|(set, name)| set.then_some(name)).collect();
        set.join(",")
    }

    /// The address and port part, as [`NatTarget::from_str`] reads it.
    fn destination(&self) -> String {
        let port = self.ports.map(|ports| ports.to_string());
        let Some((first, last)) = self.addrs else { return port.map(|port| format!(":{port}")).unwrap_or_default() };
        let bracketed = port.is_some() && first.is_ipv6();
        let addr = |addr: IpAddr| if bracketed { format!("[{addr}]") } else { addr.to_string() };
        let addrs = if first == last { addr(first) } else { format!("{}-{}", addr(first), addr(last)) };
        match port {
            Some(port) => format!("{addrs}:{port}"),
            None => addrs,
        }
    }
}

impl FromStr for NatTarget {
    type Err = String;

    /// `A`, `A:P`, `A:P-P`, `A-A:P`, with IPv6 addresses in brackets where a port follows; or `:P`.
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("found `{text}`, expected ADDRESS, ADDRESS:PORT, ADDRESS:PORT-PORT or [ADDRESS6]:PORT");
        let v6 = text.matches(':').count() > 1;
        let (addrs, ports) = match text.rfind("]:") {
            Some(at) => (text.get(..=at), text.get(at.saturating_add(2)..)),
            None if v6 => (Some(text), None),
            None => match text.split_once(':') {
                Some((addrs, ports)) => (Some(addrs), Some(ports)),
                None => (Some(text), None),
            },
        };
        let addr = |text: &str| text.trim_matches(['[', ']']).parse::<IpAddr>().map_err(|_| bad());
        let addrs = match addrs.ok_or_else(bad)? {
            "" => None,
            range => match range.split_once('-') {
                Some((first, last)) => Some((addr(first)?, addr(last)?)),
                None => addr(range).map(|addr| Some((addr, addr)))?,
            },
        };
        let ports = ports.map(str::parse).transpose()?;
        Ok(Self { addrs, ports, ..Self::default() })
    }
}

/// A target that has ports alone: of masquerade and redirect.
fn ports_only(text: &str) -> Result<NatTarget, String> {
    Ok(NatTarget { ports: Some(text.trim_start_matches(':').parse()?), ..NatTarget::default() })
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { write!(f, "{}", self.first) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("found the port `{text}`, expected a number from 0 to 65535 or a range such as 1000-2000");
        let port = |text: &str| text.trim().parse::<u16>().map_err(|_| bad());
        match text.split_once('-') {
            Some((first, last)) => Self::range(port(first)?, port(last)?).ok_or_else(bad),
            None => Ok(Self::one(port(text)?)),
        }
    }
}

impl Serialize for Ports {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.first == self.last { serializer.serialize_u16(self.first) } else { serializer.collect_str(self) }
    }
}

impl<'de> Deserialize<'de> for Ports {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match NumberOrText::deserialize(deserializer)? {
            NumberOrText::Number(port) => port.to_string().parse(),
            NumberOrText::Text(text) => text.parse(),
        }
        .map_err(de::Error::custom)
    }
}

impl fmt::Display for Proto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match PROTOCOLS.iter().find(|(_, number)| *number == self.0) {
            Some((name, _)) => f.write_str(name),
            None => write!(f, "{}", self.0),
        }
    }
}

impl Serialize for Proto {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match PROTOCOLS.iter().find(|(_, number)| *number == self.0) {
            Some((name, _)) => serializer.serialize_str(name),
            None => serializer.serialize_u8(self.0),
        }
    }
}

impl<'de> Deserialize<'de> for Proto {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = match NumberOrText::deserialize(deserializer)? {
            NumberOrText::Number(number) => number.to_string(),
            NumberOrText::Text(text) => text,
        };
        let named = PROTOCOLS.iter().find(|(name, _)| *name == text).map(|(_, number)| *number);
        named.or_else(|| text.parse().ok()).map(Self).ok_or_else(|| {
            let names: Vec<&str> = PROTOCOLS.iter().map(|(name, _)| *name).collect();
            de::Error::custom(format!("found the protocol `{text}`, expected {} or 0 to 255", names.join(", ")))
        })
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum NumberOrText {
    Number(u32),
    Text(String),
}

const PROTOCOLS: [(&str, u8); 7] = [
    ("icmp", proto::ICMP),
    ("tcp", proto::TCP),
    ("udp", proto::UDP),
    ("gre", proto::GRE),
    ("icmp6", proto::ICMPV6),
    ("sctp", proto::SCTP),
    ("udplite", proto::UDP_LITE),
];

#[cfg(test)]
mod tests;
