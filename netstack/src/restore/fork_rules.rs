//! The rules of a fork: which inherited flows go on in it.

mod parse;
#[cfg(test)]
mod tests;

use hibernet_conntrack::{FlowRecord, ProtocolState, Status};
use serde::{Deserialize, Serialize};

use super::sides::Sides;
use crate::cidr::Cidr;
use crate::link::LinkId;
use crate::rules::{Ports, Proto};

pub use self::parse::ForkRulesError;

/// Which inherited flows go on in a fork. The first rule that matches decides.
///
/// Where none does, a flow that stays inside (between the guest and this host, or within either) is kept: both its ends are in
/// the fork. Any other gets the default action.
///
/// In JSON: a list of rules, or an object with `"rules"` and `"default"`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct ForkRules {
    /// The rules.
    pub rules: Vec<ForkRule>,
    /// What becomes of flows to the outside that no rule matches.
    pub default: ForkAction,
}

/// A rule of a fork. Written `ACTION KEY=VALUE ..` (`keep proto=tcp dport=22`), in JSON `{"match": {..}, "action": ".."}`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForkRule {
    /// Which flows.
    #[serde(default, rename = "match")]
    pub matches: ForkMatch,
    /// What becomes of them.
    pub action: ForkAction,
}

/// What becomes of an inherited flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ForkAction {
    /// It goes on, as if the stack had moved. The other copy must not go on with it too.
    Keep,
    /// It ends, and whoever has an end of it inside is told: TCP by a reset, at once and again for every late segment; others
    /// by an ICMP port unreachable for every late packet. Nothing goes out.
    #[default]
    Reset,
    /// It ends, and nobody is told. Late packets are dropped.
    Drop,
}

/// What a flow must be for a rule to match. All that is given must hold; nothing given matches every flow.
///
/// Addresses and ports are those of the flow's first packet as it came in, before any translation.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForkMatch {
    /// Layer 4 protocol: `tcp`, `udp`, `icmp`, `icmp6`, `sctp`, `gre`, `udplite` or a number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proto: Option<Proto>,
    /// Address or network of who opened the flow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saddr: Option<Cidr>,
    /// Address or network it was opened to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub daddr: Option<Cidr>,
    /// Source port or ports, of protocols that have ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sport: Option<Ports>,
    /// Destination port or ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dport: Option<Ports>,
    /// Any of these states.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<Vec<FlowState>>,
    /// Zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<u16>,
    /// Mark (`ct mark`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<MarkMatch>,
    /// Which way it was opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direction: Option<FlowDirection>,
    /// Name of the link that leads to who opened it; `lo` for this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iif: Option<String>,
    /// Name of the link that leads to who answers; `lo` for this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oif: Option<String>,
}

/// A state of a flow, by the word for it: `unreplied`, `replied`, `assured`, or a state of TCP or SCTP as `conntrack -L` names
/// it, in lower case (`established`, `syn_sent`, ..).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowState(&'static str);

/// A mark, and which of its bits count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MarkMatch {
    /// The value of the bits that count.
    pub value: u32,
    /// The bits that count.
    pub mask: u32,
}

/// Which way a flow was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum FlowDirection {
    /// From inside to outside.
    Outbound,
    /// From outside to inside.
    Inbound,
    /// From inside to inside.
    Internal,
    /// From outside to outside.
    Transit,
}

/// An inherited flow, and where its ends are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inherited<'a> {
    flow: &'a FlowRecord,
    iif: Option<LinkId>,
    oif: Option<LinkId>,
    /// Whether the end that sends in the original, in the reply direction is inside.
    pub(super) inside: [bool; 2],
}

/// Rules with the names of links resolved.
#[derive(Debug)]
pub(super) struct LoadedForkRules<'a> {
    rules: &'a ForkRules,
    links: Vec<[Option<LinkId>; 2]>,
}

impl<'a> LoadedForkRules<'a> {
    /// An error is the name of a link that does not exist.
    pub(super) fn new(rules: &'a ForkRules, sides: &Sides<'_>) -> Result<Self, String> {
        let id = |name: &Option<String>| match name {
            None => Ok(None),
            Some(name) => sides.link(name).map(Some).ok_or_else(|| name.clone()),
        };
        let links = rules.rules.iter().map(|rule| Ok([id(&rule.matches.iif)?, id(&rule.matches.oif)?]));
        Ok(Self { rules, links: links.collect::<Result<_, String>>()? })
    }

    /// What becomes of a flow, and the number of the rule that says so.
    pub(super) fn action(&self, flow: &Inherited<'_>) -> (ForkAction, Option<usize>) {
        let rules = self.rules.rules.iter().zip(&self.links).enumerate();
        for (number, (rule, links)) in rules {
            if rule.matches.matches(flow, links) {
                return (rule.action, Some(number));
            }
        }
        let action = if flow.direction() == FlowDirection::Internal { ForkAction::Keep } else { self.rules.default };
        (action, None)
    }
}

impl<'a> Inherited<'a> {
    pub(super) fn new(flow: &'a FlowRecord, sides: &Sides<'_>) -> Self {
        let (orig, reply) = (&flow.orig, &flow.reply);
        let (iif, oif) = (sides.link_to(orig.src, orig.dst), sides.link_to(reply.src, reply.dst));
        let is_inside = |link: Option<LinkId>| link.is_some_and(|link| sides.is_inside(link));
        Self { flow, iif, oif, inside: [is_inside(iif), is_inside(oif)] }
    }

    fn direction(&self) -> FlowDirection {
        match self.inside {
            [true, true] => FlowDirection::Internal,
            [true, false] => FlowDirection::Outbound,
            [false, true] => FlowDirection::Inbound,
            [false, false] => FlowDirection::Transit,
        }
    }
}

impl ForkMatch {
    fn matches(&self, inherited: &Inherited<'_>, links: &[Option<LinkId>; 2]) -> bool {
        let Self { proto, saddr, daddr, sport, dport, state, zone, mark, direction, iif: _, oif: _ } = self;
        let (flow, [iif, oif]) = (inherited.flow, links);
        let orig = &flow.orig;
        let has_ports = !orig.is_icmp() && (orig.sport, orig.dport) != (0, 0);
        let port = |asked: &Option<Ports>, found: u16| asked.is_none_or(|ports| has_ports && ports.contains(found));
        let link = |asked: &Option<LinkId>, found: Option<LinkId>| asked.is_none() || *asked == found;
        proto.is_none_or(|proto| proto.0 == orig.proto)
            && saddr.is_none_or(|cidr| cidr.contains(orig.src))
            && daddr.is_none_or(|cidr| cidr.contains(orig.dst))
            && port(sport, orig.sport)
            && port(dport, orig.dport)
            && state.as_ref().is_none_or(|states| states.iter().any(|state| state.is_of(flow)))
            && zone.is_none_or(|zone| zone == flow.zone.id)
            && mark.is_none_or(|mark| flow.mark & mark.mask == mark.value)
            && direction.is_none_or(|direction| direction == inherited.direction())
            && link(iif, inherited.iif)
            && link(oif, inherited.oif)
    }
}

impl FlowState {
    fn is_of(self, flow: &FlowRecord) -> bool {
        let Self(word) = self;
        match word {
            UNREPLIED => !flow.status.contains(Status::SEEN_REPLY),
            REPLIED => flow.status.contains(Status::SEEN_REPLY),
            ASSURED => flow.status.contains(Status::ASSURED),
            word => match flow.protocol {
                ProtocolState::Tcp(track) => track.state.name().eq_ignore_ascii_case(word),
                ProtocolState::Sctp(track) => track.state.name().eq_ignore_ascii_case(word),
                ProtocolState::Udp(_) | ProtocolState::Other => false,
            },
        }
    }
}

const UNREPLIED: &str = "unreplied";
const REPLIED: &str = "replied";
const ASSURED: &str = "assured";
