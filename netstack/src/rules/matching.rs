//! Whether a rule matches a packet.

use core::net::IpAddr;

use hibernet_conntrack::{CtState, Direction, proto};

use super::validate::rule_family;
use super::{Action, Family, Match, Ports, Rule};
use crate::cidr::Cidr;
use crate::link::{LinkId, Links};

/// What rules look at in a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Subject {
    pub(crate) iif: Option<LinkId>,
    pub(crate) oif: Option<LinkId>,
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    pub(crate) proto: u8,
    /// Source and destination port, where the protocol has them and they are in this packet.
    pub(crate) ports: Option<(u16, u16)>,
    /// TCP's flags, where they are in this packet.
    pub(crate) tcp_flags: Option<u8>,
    pub(crate) state: Option<CtState>,
    pub(crate) direction: Option<Direction>,
    pub(crate) mark: Option<u32>,
}

/// A rule's match with names resolved.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Test {
    iif: Option<LinkId>,
    oif: Option<LinkId>,
    saddr: Option<Cidr>,
    daddr: Option<Cidr>,
    proto: Option<u8>,
    sport: Option<Ports>,
    dport: Option<Ports>,
    states: Option<u8>,
    direction: Option<Direction>,
    mark: Option<u32>,
    family: Option<Family>,
    syn_only: bool,
}

impl Test {
    /// The test of a rule. Names of links that do not exist were refused before.
    pub(crate) fn new(rule: &Rule, links: &Links) -> Self {
        let Match { iif, oif, saddr, daddr, proto, sport, dport, ctstate, ctdir, ctmark, family: _, tcpflags_syn_only } =
            &rule.matches;
        let id = |name: &Option<String>| name.as_ref().and_then(|name| links.id(name));
        let tcp_alone = matches!(rule.action, Action::RejectTcpReset);
        Self {
            iif: id(iif),
            oif: id(oif),
            saddr: *saddr,
            daddr: *daddr,
            proto: proto.map(|proto| proto.0).or(tcp_alone.then_some(proto::TCP)),
            sport: *sport,
            dport: *dport,
            states: ctstate.as_ref().map(|states| states.iter().fold(0, |mask, state| mask | bit(*state))),
            direction: *ctdir,
            mark: *ctmark,
            family: rule_family(rule),
            syn_only: *tcpflags_syn_only,
        }
    }

    /// Whether it asks for something that differs from packet to packet of a flow.
    pub(crate) const fn looks_at_flags(&self) -> bool {
        self.syn_only
    }

    pub(crate) fn matches(&self, subject: &Subject) -> bool {
        let Self { iif, oif, saddr, daddr, proto, sport, dport, states, direction, mark, family, syn_only } = self;
        let state = subject.state.unwrap_or(CtState::Invalid);
        equal(iif, subject.iif)
            && equal(oif, subject.oif)
            && equal(proto, Some(subject.proto))
            && family.is_none_or(|family| (family == Family::Ipv4) == subject.src.is_ipv4())
            && states.is_none_or(|mask| mask & bit(state) != 0)
            && saddr.is_none_or(|cidr| cidr.contains(subject.src))
            && daddr.is_none_or(|cidr| cidr.contains(subject.dst))
            && sport.is_none_or(|range| subject.ports.is_some_and(|(port, _)| range.contains(port)))
            && dport.is_none_or(|range| subject.ports.is_some_and(|(_, port)| range.contains(port)))
            && equal(direction, subject.direction)
            && equal(mark, subject.mark)
            && (!syn_only || subject.tcp_flags.is_some_and(|flags| flags & FIN_SYN_RST_ACK == SYN))
    }
}

/// Whether nothing is asked, or what is asked is there.
fn equal<T: PartialEq + Copy>(asked: &Option<T>, found: Option<T>) -> bool {
    asked.is_none() || *asked == found
}

const fn bit(state: CtState) -> u8 {
    match state {
        CtState::New => 1,
        CtState::Established => 2,
        CtState::Related => 4,
        CtState::Invalid => 8,
        CtState::Untracked => 16,
    }
}

/// TCP's SYN flag (RFC 9293, section 3.1).
const SYN: u8 = 0x02;
const FIN_SYN_RST_ACK: u8 = 0x17;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::LinkConfig;
    use crate::rules::Ruleset;

    fn links() -> Links {
        let link =
            |name: &str| LinkConfig { name: name.into(), mtu: 1500, addrs: Vec::new(), medium: crate::Medium::Ip };
        Links::new(vec![link("in"), link("out")])
    }

    fn test(matches: &str) -> Test {
        let set =
            Ruleset::from_json(&format!(r#"[{{"chain":"forward","match":{matches},"action":"accept"}}]"#)).unwrap();
        Test::new(&set.chains[0].rules[0], &links())
    }

    fn subject(src: &str, dst: &str) -> Subject {
        Subject {
            iif: links().id("in"),
            oif: links().id("out"),
            src: src.parse().unwrap(),
            dst: dst.parse().unwrap(),
            proto: proto::TCP,
            ports: Some((40_000, 80)),
            tcp_flags: Some(SYN | 0x40),
            state: Some(CtState::New),
            direction: Some(Direction::Original),
            mark: Some(7),
        }
    }

    #[test]
    fn every_part_of_a_match_must_hold() {
        let v4 = subject("10.0.0.2", "198.51.100.10");
        let v6 = subject("fd00:10::2", "2001:db8:1::10");
        for (matches, on_v4, on_v6) in [
            ("{}", true, true),
            (r#"{"iif":"in","oif":"out"}"#, true, true),
            (r#"{"iif":"out"}"#, false, false),
            (r#"{"saddr":"10.0.0.0/8"}"#, true, false),
            (r#"{"daddr":"2001:db8::/32"}"#, false, true),
            (r#"{"family":"ipv6"}"#, false, true),
            (r#"{"proto":"tcp","sport":"30000-40000","dport":80}"#, true, true),
            (r#"{"proto":"udp"}"#, false, false),
            (r#"{"dport":81}"#, false, false),
            (r#"{"ctstate":["established","new"]}"#, true, true),
            (r#"{"ctstate":["established"]}"#, false, false),
            (r#"{"ctdir":"original","ctmark":7}"#, true, true),
            (r#"{"ctdir":"reply"}"#, false, false),
            (r#"{"ctmark":8}"#, false, false),
            (r#"{"tcpflags_syn_only":true}"#, true, true),
        ] {
            assert_eq!((test(matches).matches(&v4), test(matches).matches(&v6)), (on_v4, on_v6), "{matches}");
        }
    }

    #[test]
    fn a_packet_without_ports_or_flow_matches_no_rule_that_asks_for_them() {
        let bare = Subject {
            ports: None,
            tcp_flags: None,
            state: None,
            direction: None,
            mark: None,
            ..subject("10.0.0.2", "10.0.0.3")
        };
        for matches in [
            r#"{"dport":80}"#,
            r#"{"tcpflags_syn_only":true}"#,
            r#"{"ctstate":["new"]}"#,
            r#"{"ctdir":"original"}"#,
            r#"{"ctmark":7}"#,
        ] {
            assert!(!test(matches).matches(&bare), "{matches}");
        }
        assert!(test(r#"{"ctstate":["invalid"]}"#).matches(&bare));
    }
}
