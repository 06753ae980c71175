//! The rules of a guest's gateway: what the guest may ask the gateway for, and where what it sends may go.

use std::net::IpAddr;

use hibernet_netstack::Cidr;
use hibernet_netstack::Ruleset;
use serde_json::Value;
use serde_json::json;

use super::forward::Forward;
use super::forward::Transport;

/// What the rules are made for.
pub(super) struct RulePlan<'a> {
    /// The guest's link.
    pub(super) guest: &'a str,
    /// The link to the world, if there is one.
    pub(super) uplink: Option<&'a str>,
    /// Forwards that come in by the uplink.
    pub(super) forwards: &'a [Forward],
    /// Who they are for unless they say.
    pub(super) first_guest: Option<IpAddr>,
    /// Port of the gateway's echo services, if it has any.
    pub(super) echo: Option<u16>,
}

/// The rules. What they do not let pass is refused at once, with a reset or an ICMP error, never left to hang.
pub(super) fn rules(plan: &RulePlan<'_>) -> anyhow::Result<Ruleset> {
    let RulePlan { guest, uplink, echo, .. } = plan;
    let accept = |chain: &str, matches: Value| json!({"chain": chain, "match": matches, "action": "accept"});
    let known = |chain: &str| accept(chain, json!({"ctstate": ["established", "related"]}));
    let mut rules = vec![
        known("input"),
        accept("input", json!({"iif": guest, "proto": "icmp"})),
        accept("input", json!({"iif": guest, "proto": "icmp6"})),
        accept("input", json!({"iif": guest, "proto": "udp", "dport": 67})),
        accept("input", json!({"iif": guest, "proto": "udp", "dport": 53})),
        accept("input", json!({"iif": guest, "proto": "tcp", "dport": 53})),
    ];
    if let Some(echo) = echo {
        rules.push(accept("input", json!({"iif": guest, "proto": "udp", "dport": echo})));
        rules.push(accept("input", json!({"iif": guest, "proto": "tcp", "dport": echo})));
    }
    if let Some(uplink) = uplink {
        rules.push(accept("input", json!({"iif": uplink, "proto": "icmp"})));
        rules.push(accept("input", json!({"iif": uplink, "proto": "icmp6"})));
    }
    rules.push(known("forward"));
    if let Some(uplink) = uplink {
        rules.push(accept("forward", json!({"iif": guest, "oif": uplink})));
        rules.extend(plan.forwards.iter().flat_map(|forward| inbound(plan, uplink, forward)));
        rules.push(json!({"chain": "srcnat", "match": {"oif": uplink}, "action": "masquerade fully-random"}));
    }
    for chain in ["input", "forward"] {
        rules.push(json!({"chain": chain, "match": {"iif": guest, "proto": "tcp"}, "action": "reject-tcp"}));
        rules.push(json!({"chain": chain, "match": {"iif": guest}, "action": "reject"}));
    }
    Ok(serde_json::from_value(json!({"policy": {"input": "drop", "forward": "drop"}, "rules": rules}))?)
}

/// A forward on the uplink is a translation of the destination, and leave for it to pass.
fn inbound(plan: &RulePlan<'_>, uplink: &str, forward: &Forward) -> Vec<Value> {
    let Some(guest) = forward.guest.or(plan.first_guest) else { return Vec::new() };
    let proto = if forward.transport == Transport::Tcp { "tcp" } else { "udp" };
    let to = std::net::SocketAddr::new(guest, forward.guest_port).to_string();
    let mut matches = json!({"iif": uplink, "proto": proto, "dport": forward.host_port});
    let family = if guest.is_ipv4() { "ipv4" } else { "ipv6" };
    if let Some(fields) = matches.as_object_mut() {
        match forward.host.filter(|host| !host.is_unspecified()) {
            Some(host) => fields.insert("daddr".to_owned(), json!(Cidr::host(host))),
            None => fields.insert("family".to_owned(), json!(family)),
        };
    }
    vec![
        json!({"chain": "dstnat", "match": matches, "action": {"dnat": to}}),
        json!({"chain": "forward", "match": {"iif": uplink, "oif": plan.guest, "proto": proto,
               "daddr": Cidr::host(guest), "dport": forward.guest_port, "ctstate": ["new"]}, "action": "accept"}),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_without_an_uplink_lets_nothing_through_and_says_so() {
        let plan = RulePlan { guest: "guest", uplink: None, forwards: &[], first_guest: None, echo: Some(7) };
        let rules = rules(&plan).expect("rules").to_json();
        assert!(!rules.contains("masquerade") && !rules.contains("oif"), "{rules}");
        assert!(rules.matches("reject-tcp").count() == 2, "{rules}");
    }

    #[test]
    fn a_forward_on_the_uplink_is_translated_to_its_guest() {
        let forwards = ["8080:80".parse().expect("a forward"), "udp:203.0.113.1:53:10.0.2.16:53".parse().expect("one")];
        let first_guest = Some([10, 0, 2, 15].into());
        let plan = RulePlan { guest: "guest", uplink: Some("wan"), forwards: &forwards, first_guest, echo: None };
        let rules = rules(&plan).expect("rules").to_json();
        assert!(rules.contains("10.0.2.15:80") && rules.contains("10.0.2.16:53"), "{rules}");
        assert!(rules.contains("203.0.113.1"), "{rules}");
    }
}
