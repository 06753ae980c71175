//! A policy as rules of the stack: what is denied is rejected in PREROUTING, before anything else is asked, and what is
//! allowed is handed to the host's sockets.
//!
//! Base chain `egress` stands at prerouting with the priority of mangle and sends what comes in on a guest's link to
//! `egress_guest`, which holds the policy. What is allowed goes on to `egress_allowed`. The chains are rules like all others:
//! an image holds them, so a restored stack is closed from its first packet on.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;

use hibernet_conntrack::CtState;
use hibernet_conntrack::Direction;
use hibernet_conntrack::proto;
use hibernet_netstack::Action;
use hibernet_netstack::Chain;
use hibernet_netstack::ChainKind;
use hibernet_netstack::Cidr;
use hibernet_netstack::Hook;
use hibernet_netstack::LinkConfig;
use hibernet_netstack::Match;
use hibernet_netstack::Ports;
use hibernet_netstack::Proto;
use hibernet_netstack::Rule;
use hibernet_netstack::Ruleset;
use hibernet_netstack::priority;

use super::policy::LoopbackRule;
use super::policy::Policy;
use super::policy::PolicyAction;
use super::policy::PolicyProtocol;
use super::policy::PolicyRule;

/// The set with the policy in force on the links of guests; one that was in it is replaced. Everything else stays as it is.
pub(crate) fn with_policy(set: &Ruleset, policy: &Policy, guests: &[LinkConfig]) -> Ruleset {
    let mut chains: Vec<Chain> =
        set.chains.iter().filter(|chain| !CHAINS.contains(&chain.name.as_str())).cloned().collect();
    for chain in chains.iter_mut().filter(|chain| chain.base.is_some_and(|base| base.hook == Hook::Input)) {
        // Elsewhere than in a filter chain nothing has to be let in.
        if chain.base.is_some_and(|base| base.kind == ChainKind::Filter) {
            chain.rules.retain(|rule| rule.matches.ctmark != Some(MARK));
            chain.rules.insert(0, Rule::new(Match { ctmark: Some(MARK), ..Match::default() }, Action::Accept));
        }
    }
    let mut base = Chain::new(BASE, ChainKind::Filter, Hook::Prerouting, priority::MANGLE);
    let from = |link: &LinkConfig| Match { iif: Some(link.name.clone()), ..Match::default() };
    base.rules = guests.iter().map(|link| Rule::new(from(link), Action::Goto(GUEST.to_owned()))).collect();
    let allowed = Chain {
        rules: [Action::CtMark(MARK), Action::Tproxy, Action::RejectAdminProhibited].map(plain).into(),
        ..Chain::regular(ALLOWED)
    };
    let guest = Chain { rules: guest_rules(policy, guests), ..Chain::regular(GUEST) };
    chains.extend([base, guest, allowed]);
    Ruleset { chains }
}

/// Lets what a policy allows go on by the stack's own routes, instead of by the host's sockets.
pub(crate) fn by_routes(set: &mut Ruleset) {
    for chain in set.chains.iter_mut().filter(|chain| chain.name == ALLOWED) {
        chain.rules = vec![plain(Action::Accept)];
    }
}

/// Whether a policy is in force in the set.
pub(crate) fn has_policy(set: &Ruleset) -> bool {
    CHAINS.iter().all(|name| set.chain(name).is_some())
}

/// The chain `egress_guest`.
fn guest_rules(policy: &Policy, guests: &[LinkConfig]) -> Vec<Rule> {
    let mut rules = Vec::new();
    // Answers to who has called the guest, and errors about them, were let in by other rules.
    let reply = Match { ctdir: Some(Direction::Reply), ..Match::default() };
    rules.push(Rule::new(reply, Action::Accept));
    rules.push(Rule::new(Match { ctstate: Some(vec![CtState::Related]), ..Match::default() }, Action::Accept));
    let own = || guests.iter().flat_map(|link| &link.addrs);
    for LoopbackRule { line: _, protocol, ports } in &policy.loopback {
        for (cidr, range) in own().flat_map(|cidr| ports.iter().map(move |range| (cidr, range))) {
            let number = if *protocol == PolicyProtocol::Udp { proto::UDP } else { proto::TCP };
            let to = to(Some(Cidr::host(cidr.addr())), Some(number), Some(*range));
            rules.push(Rule::new(to, Action::Goto(ALLOWED.to_owned())));
        }
    }
    // The gateway itself and groups: input and forward see to them, and they leave by no host socket.
    let stays = own()
        .map(|cidr| Cidr::host(cidr.addr()))
        .chain(own().filter_map(Cidr::broadcast).map(|addr| Cidr::host(addr.into())));
    for cidr in stays.chain(confined()) {
        rules.push(Rule::new(to(Some(cidr), None, None), Action::Accept));
    }
    rules.extend(policy.rules.iter().flat_map(of_rule));
    rules.extend(denials(&Match::default()));
    rules
}

/// What one rule of the policy becomes.
fn of_rule(rule: &PolicyRule) -> Vec<Rule> {
    let PolicyRule { line: _, action, cidrs, protocol, ports } = rule;
    let cidrs: Vec<Option<Cidr>> =
        if cidrs.is_empty() { vec![None] } else { cidrs.iter().copied().map(Some).collect() };
    let ports: Vec<Option<Ports>> =
        if ports.is_empty() { vec![None] } else { ports.iter().copied().map(Some).collect() };
    let mut rules = Vec::new();
    for (cidr, range) in cidrs.iter().flat_map(|cidr| ports.iter().map(move |range| (*cidr, *range))) {
        for number in numbers(*protocol, cidr) {
            let matches = to(cidr, number, range);
            match action {
                PolicyAction::Allow => rules.push(Rule::new(matches, Action::Goto(ALLOWED.to_owned()))),
                PolicyAction::Deny => rules.extend(denials(&matches)),
            }
        }
    }
    rules
}

/// TCP is reset, everything else is told that it is prohibited.
fn denials(matches: &Match) -> Vec<Rule> {
    let admin = Rule::new(matches.clone(), Action::RejectAdminProhibited);
    match matches.proto {
        Some(Proto(proto::TCP)) => vec![Rule::new(matches.clone(), Action::RejectTcpReset)],
        Some(_) => vec![admin],
        None => {
            let tcp = Match { proto: Some(Proto(proto::TCP)), ..matches.clone() };
            vec![Rule::new(tcp, Action::RejectTcpReset), admin]
        }
    }
}

/// The protocol numbers to match; `None` is all.
fn numbers(protocol: PolicyProtocol, cidr: Option<Cidr>) -> Vec<Option<u8>> {
    match (protocol, cidr.map(|cidr| cidr.addr())) {
        (PolicyProtocol::Any, _) => vec![None],
        (PolicyProtocol::Tcp, _) => vec![Some(proto::TCP)],
        (PolicyProtocol::Udp, _) => vec![Some(proto::UDP)],
        (PolicyProtocol::Icmp, Some(IpAddr::V4(_))) => vec![Some(proto::ICMP)],
        (PolicyProtocol::Icmp, Some(IpAddr::V6(_))) => vec![Some(proto::ICMPV6)],
        (PolicyProtocol::Icmp, None) => vec![Some(proto::ICMP), Some(proto::ICMPV6)],
    }
}

fn to(daddr: Option<Cidr>, number: Option<u8>, dport: Option<Ports>) -> Match {
    Match { daddr, proto: number.map(Proto), dport, ..Match::default() }
}

fn plain(action: Action) -> Rule {
    Rule::new(Match::default(), action)
}

/// Groups, the limited broadcast address, and what means something on its link alone.
fn confined() -> impl Iterator<Item = Cidr> {
    let networks: [(IpAddr, u8); 4] = [
        (Ipv4Addr::new(224, 0, 0, 0).into(), 4),
        (Ipv4Addr::BROADCAST.into(), 32),
        (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0).into(), 8),
        (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0).into(), 10),
    ];
    networks.into_iter().filter_map(|(addr, prefix)| Cidr::new(addr, prefix).ok())
}

/// The base chain, the policy, and what is done with what is allowed.
const BASE: &str = "egress";
const GUEST: &str = "egress_guest";
const ALLOWED: &str = "egress_allowed";
const CHAINS: [&str; 3] = [BASE, GUEST, ALLOWED];
/// The mark of flows that are allowed: it lets them through INPUT.
const MARK: u32 = 0x6567_7273;
