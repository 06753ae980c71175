//! Who talks to whom in the demonstration, and by which rules.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;

use serde_json::Value;
use serde_json::json;

use crate::peers::DatagramPlan;
use crate::peers::StreamPlan;

/// The rules of a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rules {
    /// Drop by default, TCP by SYN only, no picking up of running connections, random ports.
    Strict,
    /// Accept everything, pick up running connections, keep ports.
    Permissive,
}

/// The streams of one job, by the side that opens them.
pub(super) struct StreamPlans {
    pub(super) by_guest: Vec<StreamPlan>,
    pub(super) by_world: Vec<StreamPlan>,
}

impl StreamPlans {
    /// A fifth ends in the gateway itself. Of the others a quarter each: IPv4 masquerade, IPv6 masquerade, inbound DNAT,
    /// plain routed. Of a masqueraded quarter two guest addresses use the same source ports to the same server; of the others
    /// one half is IPv4, one IPv6.
    ///
    /// `round` keeps the jobs' ports apart; `streams` is a multiple of 40.
    pub(super) fn new(round: u16, streams: usize) -> Self {
        let first_port = 20_000 + 4_000 * round;
        let mut plans = Self { by_guest: Vec::new(), by_world: Vec::new() };
        let ending = terminated(streams);
        for port in (first_port..).take((streams - ending) / 8) {
            for from in [GUEST_V4, GUEST_V4_SECOND] {
                plans.guest_opens((from, port), WORLD_V4);
            }
            for from in [GUEST_V6, GUEST_V6_SECOND] {
                plans.guest_opens((from, port), WORLD_V6);
            }
            plans.guest_opens((GUEST_V4_ROUTED, port), WORLD_V4);
            plans.guest_opens((GUEST_V6_ROUTED, port), WORLD_V6);
            plans.world_opens((WORLD_V4, port), ROUTER_V4);
            plans.world_opens((WORLD_V6, port), ROUTER_V6);
        }
        for port in (first_port + 2_000..).take(ending / 4) {
            for (from, to) in [(GUEST_V4, ROUTER_IN_V4), (GUEST_V6, ROUTER_IN_V6)] {
                let plan = plans.ending((from, port), to);
                plans.by_guest.push(plan);
            }
            for (from, to) in [(WORLD_V4, ROUTER_V4), (WORLD_V6, ROUTER_V6)] {
                let plan = plans.ending((from, port), to);
                plans.by_world.push(plan);
            }
        }
        plans
    }

    fn guest_opens(&mut self, from: (IpAddr, u16), to: IpAddr) {
        let to = SocketAddr::new(to, WORLD_PORT);
        self.by_guest.push(StreamPlan { id: self.next_id(), from: from.into(), to, terminated: false });
    }

    fn world_opens(&mut self, from: (IpAddr, u16), to: IpAddr) {
        let to = SocketAddr::new(to, GUEST_PORT);
        self.by_world.push(StreamPlan { id: self.next_id(), from: from.into(), to, terminated: false });
    }

    /// A stream to the gateway's echo service.
    fn ending(&self, from: (IpAddr, u16), to: IpAddr) -> StreamPlan {
        StreamPlan { id: self.next_id(), from: from.into(), to: SocketAddr::new(to, ECHO_PORT), terminated: true }
    }

    fn next_id(&self) -> u64 {
        (self.by_guest.len() + self.by_world.len() + 1) as u64
    }
}

/// How many of so many streams end in the gateway.
pub(super) const fn terminated(streams: usize) -> usize {
    streams / 5
}

/// The datagram flows: all masqueraded, half IPv4, half IPv6, two guest addresses with the same ports.
pub(super) fn datagram_plans() -> Vec<DatagramPlan> {
    let mut plans = Vec::new();
    for index in 0..DATAGRAM_FLOWS / 4 {
        for (from, to) in
            [(GUEST_V4, WORLD_V4), (GUEST_V4_SECOND, WORLD_V4), (GUEST_V6, WORLD_V6), (GUEST_V6_SECOND, WORLD_V6)]
        {
            plans.push(DatagramPlan {
                flow: plans.len() as u32,
                from: SocketAddr::new(from, 10_000 + index),
                to: SocketAddr::new(to, DATAGRAM_PORT),
            });
        }
    }
    plans
}

/// The configuration file of the demonstration's gateway.
pub(super) fn gateway_config(rules: Rules) -> Value {
    let (loose, policy, masquerade) = match rules {
        Rules::Strict => (0, "drop", "masquerade fully-random"),
        Rules::Permissive => (1, "accept", "masquerade"),
    };
    let mut list = vec![
        json!({"chain": "dstnat", "match": {"iif": WORLD_LINK, "proto": "tcp", "daddr": ROUTER_V4, "dport": GUEST_PORT},
            "action": {"dnat": SocketAddr::new(GUEST_V4, GUEST_PORT)}}),
        json!({"chain": "dstnat", "match": {"iif": WORLD_LINK, "proto": "tcp", "daddr": ROUTER_V6, "dport": GUEST_PORT},
            "action": {"dnat": SocketAddr::new(GUEST_V6, GUEST_PORT)}}),
        json!({"chain": "srcnat", "match": {"oif": WORLD_LINK, "saddr": GUEST_NET_V4}, "action": masquerade}),
        json!({"chain": "srcnat", "match": {"oif": WORLD_LINK, "saddr": GUEST_NET_V6}, "action": masquerade}),
    ];
    if rules == Rules::Strict {
        list.push(json!({"chain": "input", "match": {"ctstate": ["established", "related"]}, "action": "accept"}));
        list.push(json!({"chain": "input", "match": {"proto": "tcp", "dport": ECHO_PORT, "ctstate": ["new"],
            "tcpflags_syn_only": true}, "action": "accept"}));
        list.push(json!({"chain": "forward", "match": {"ctstate": ["established", "related"]}, "action": "accept"}));
        list.push(json!({"chain": "forward", "match": {"proto": "tcp", "ctstate": ["new"], "tcpflags_syn_only": true},
            "action": "accept"}));
        for proto in ["udp", "icmp", "icmp6"] {
            list.push(json!({"chain": "forward", "match": {"iif": GUEST_LINK, "proto": proto, "ctstate": ["new"]},
                "action": "accept"}));
        }
    }
    json!({
        "links": [
            {"name": GUEST_LINK, "mtu": MTU,
             "addrs": [cidr(ROUTER_IN_V4, 24), cidr(ROUTER_IN_V6, 64), cidr(ROUTED_GATEWAY_V4, 24), cidr(ROUTED_GATEWAY_V6, 64)]},
            {"name": WORLD_LINK, "mtu": MTU, "addrs": [cidr(ROUTER_V4, 24), cidr(ROUTER_V6, 64)]},
        ],
        "sysctls": {"nf_conntrack_tcp_loose": loose},
        "tcp_echo": ECHO_PORT,
        "rules": {"policy": {"input": policy, "forward": policy}, "rules": list},
    })
}

/// The guest's addresses with their networks: two behind the masquerade, one routed, for each family.
pub(super) fn guest_addresses() -> Vec<(IpAddr, u8)> {
    vec![
        (GUEST_V4, 24),
        (GUEST_V4_SECOND, 24),
        (GUEST_V4_ROUTED, 24),
        (GUEST_V6, 64),
        (GUEST_V6_SECOND, 64),
        (GUEST_V6_ROUTED, 64),
    ]
}

/// The world's addresses with their networks.
pub(super) fn world_addresses() -> Vec<(IpAddr, u8)> {
    vec![(WORLD_V4, 24), (WORLD_V6, 64)]
}

/// Where the guest and the world accept streams.
pub(super) fn guest_listens() -> Vec<SocketAddr> {
    [GUEST_V4, GUEST_V6].map(|address| SocketAddr::new(address, GUEST_PORT)).to_vec()
}

pub(super) fn world_listens() -> Vec<SocketAddr> {
    [WORLD_V4, WORLD_V6].map(|address| SocketAddr::new(address, WORLD_PORT)).to_vec()
}

/// Where the world answers datagrams.
pub(super) fn world_answers() -> Vec<SocketAddr> {
    [WORLD_V4, WORLD_V6].map(|address| SocketAddr::new(address, DATAGRAM_PORT)).to_vec()
}

fn cidr(address: IpAddr, prefix_len: u8) -> String {
    format!("{address}/{prefix_len}")
}

const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

/// An address of one of the documentation or private networks used here: four leading groups, one trailing.
const fn v6(network: [u16; 3], host: u16) -> IpAddr {
    let [a, b, c] = network;
    IpAddr::V6(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, host))
}

pub(super) const GUEST_LINK: &str = "guest0";
pub(super) const WORLD_LINK: &str = "world0";
pub(super) const MTU: u32 = 1500;
pub(super) const STREAMS: usize = 1000;
pub(super) const DATAGRAM_FLOWS: u16 = 100;
pub(super) const PINGS: [IpAddr; 2] = [WORLD_V4, WORLD_V6];
pub(super) const GUEST_GATEWAYS: [IpAddr; 2] = [ROUTER_IN_V4, ROUTER_IN_V6];
pub(super) const WORLD_GATEWAYS: [IpAddr; 2] = [ROUTER_V4, ROUTER_V6];

const WORLD_PORT: u16 = 9000;
const GUEST_PORT: u16 = 8080;
const DATAGRAM_PORT: u16 = 7000;
const ECHO_PORT: u16 = 7;

const GUEST_NET_V4: &str = "10.0.0.0/24";
const GUEST_NET_V6: &str = "fd00:10::/64";
const ROUTER_IN_V4: IpAddr = v4(10, 0, 0, 1);
const ROUTER_IN_V6: IpAddr = v6([0xfd00, 0x10, 0], 1);
const GUEST_V4: IpAddr = v4(10, 0, 0, 2);
const GUEST_V4_SECOND: IpAddr = v4(10, 0, 0, 3);
const GUEST_V6: IpAddr = v6([0xfd00, 0x10, 0], 2);
const GUEST_V6_SECOND: IpAddr = v6([0xfd00, 0x10, 0], 3);

const ROUTED_GATEWAY_V4: IpAddr = v4(198, 51, 100, 1);
const ROUTED_GATEWAY_V6: IpAddr = v6([0x2001, 0xdb8, 0x10], 1);
const GUEST_V4_ROUTED: IpAddr = v4(198, 51, 100, 2);
const GUEST_V6_ROUTED: IpAddr = v6([0x2001, 0xdb8, 0x10], 2);

const ROUTER_V4: IpAddr = v4(203, 0, 113, 1);
const ROUTER_V6: IpAddr = v6([0x2001, 0xdb8, 0xff], 1);
const WORLD_V4: IpAddr = v4(203, 0, 113, 9);
const WORLD_V6: IpAddr = v6([0x2001, 0xdb8, 0xff], 9);

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_thousand_streams_have_their_own_ids_and_ends() {
        let plans = StreamPlans::new(0, STREAMS);
        let all = || plans.by_guest.iter().chain(&plans.by_world);
        assert_eq!(all().count(), STREAMS);
        assert_eq!(all().map(|plan| plan.id).collect::<BTreeSet<_>>().len(), STREAMS);
        assert_eq!(all().map(|plan| (plan.from, plan.to)).collect::<BTreeSet<_>>().len(), STREAMS);
        assert_eq!(all().filter(|plan| plan.terminated).count(), 200);
        assert_eq!(plans.by_world.len(), 200 + 100);
    }

    #[test]
    fn two_guests_share_every_masqueraded_port_to_the_same_server() {
        let plans = StreamPlans::new(1, STREAMS);
        let mut shared: BTreeMap<(u16, SocketAddr), usize> = BTreeMap::new();
        let masqueraded =
            |plan: &&StreamPlan| !plan.terminated && ![GUEST_V4_ROUTED, GUEST_V6_ROUTED].contains(&plan.from.ip());
        for plan in plans.by_guest.iter().filter(masqueraded) {
            *shared.entry((plan.from.port(), plan.to)).or_default() += 1;
        }
        assert_eq!(shared.len(), 200);
        assert!(shared.values().all(|guests| *guests == 2));
    }

    #[test]
    fn the_rounds_share_no_port() {
        let ports = |round| -> BTreeSet<u16> {
            StreamPlans::new(round, STREAMS).by_guest.iter().map(|plan| plan.from.port()).collect()
        };
        assert!(ports(0).is_disjoint(&ports(1)));
        assert!(ports(1).is_disjoint(&ports(2)));
    }

    #[test]
    fn there_are_as_many_datagram_flows_as_promised() {
        let plans = datagram_plans();
        assert_eq!(plans.len(), usize::from(DATAGRAM_FLOWS));
        assert!(plans.iter().enumerate().all(|(index, plan)| plan.flow as usize == index));
    }

    #[test]
    fn both_configurations_are_ones_a_gateway_reads() {
        for rules in [Rules::Strict, Rules::Permissive] {
            serde_json::from_value::<crate::gateway::GatewayConfig>(gateway_config(rules)).expect("it parses");
        }
    }
}
