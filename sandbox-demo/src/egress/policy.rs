//! The egress policy: where a guest may go, as a file says it. What no rule allows is denied.

use std::fmt;
use std::net::IpAddr;
use std::ops::Range;
use std::path::Path;

use hibernet_conntrack::proto;
use hibernet_netstack::Cidr;
use hibernet_netstack::Ports;
use serde::Deserialize;
use serde::Serialize;
use toml::Spanned;

use crate::fault::Fault;

/// Where a guest may go: rules in order, of which the first that fits decides.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Policy {
    pub(crate) rules: Vec<PolicyRule>,
    /// What the guest reaches of the host's own loopback address, at the gateway's address.
    pub(crate) loopback: Vec<LoopbackRule>,
}

/// One rule of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct PolicyRule {
    /// Where in the file it begins, from 1.
    pub(crate) line: usize,
    pub(crate) action: PolicyAction,
    /// Destinations; all if empty.
    pub(crate) cidrs: Vec<Cidr>,
    pub(crate) protocol: PolicyProtocol,
    /// Destination ports; all if empty.
    pub(crate) ports: Vec<Ports>,
}

/// Ports of the host's loopback address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct LoopbackRule {
    pub(crate) line: usize,
    pub(crate) protocol: PolicyProtocol,
    pub(crate) ports: Vec<Ports>,
}

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PolicyAction {
    /// The packet goes out.
    Allow,
    /// The guest gets a TCP reset, or ICMP administratively prohibited.
    Deny,
}

/// The protocols of a rule.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PolicyProtocol {
    Tcp,
    Udp,
    /// ICMP, and ICMPv6 for destinations of IPv6.
    Icmp,
    #[default]
    Any,
}

/// Why a policy was refused, and where in its text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct PolicyError {
    /// From 1.
    pub(crate) line: usize,
    /// What was found and what was expected.
    pub(crate) problem: String,
}

impl Policy {
    /// Reads a policy file.
    pub(crate) fn read(path: &Path) -> anyhow::Result<(Self, String)> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            Fault::new(
                format!("cannot read the egress policy {}: {error}", path.display()),
                "`sandbox-demo policy check --help` shows one to start from",
            )
        })?;
        let policy = Self::parse(&text).map_err(|error| {
            Fault::new(
                format!("the egress policy {}, {error}", path.display()),
                "correct it and try `sandbox-demo policy check`; its --help shows an example",
            )
        })?;
        Ok((policy, text))
    }

    /// Reads a policy.
    pub(crate) fn parse(text: &str) -> Result<Self, PolicyError> {
        let at = |span: Range<usize>, problem: String| PolicyError { line: line_of(text, span.start), problem };
        let file: PolicyFile = toml::from_str(text).map_err(|error| {
            let problem = error.message().trim().replace('\n', ", ");
            at(error.span().unwrap_or(0..0), problem)
        })?;
        let mut policy = Self::default();
        for written in file.rule {
            let span = written.span();
            let WrittenRule { action, cidr, protocol, ports } = written.into_inner();
            let protocol = protocol.unwrap_or_default();
            if let Some(ports) = ports.as_ref().filter(|_| !protocol.has_ports()) {
                let problem = format!(
                    "found `ports` in a rule of protocol {protocol}, expected `protocol = \"tcp\"` or `\"udp\"` beside it"
                );
                return Err(at(ports.span(), problem));
            }
            policy.rules.push(PolicyRule {
                line: line_of(text, span.start),
                action,
                cidrs: cidr.map(OneOrMore::into_vec).unwrap_or_default(),
                protocol,
                ports: ports.map(|ports| ports.into_inner().into_vec()).unwrap_or_default(),
            });
        }
        for written in file.loopback {
            let span = written.span();
            let WrittenLoopback { protocol, ports } = written.into_inner();
            if !protocol.get_ref().has_ports() {
                let problem = format!("found the protocol {}, expected tcp or udp", protocol.get_ref());
                return Err(at(protocol.span(), problem));
            }
            let (line, protocol) = (line_of(text, span.start), protocol.into_inner());
            policy.loopback.push(LoopbackRule { line, protocol, ports: ports.into_vec() });
        }
        let size = policy.rules.iter().map(PolicyRule::width).sum::<usize>()
            + policy.loopback.iter().map(|rule| rule.ports.len()).sum::<usize>();
        if size > MOST_RULES {
            let problem = format!("found {size} combinations of network and port, expected {MOST_RULES} at most");
            return Err(PolicyError { line: 1, problem });
        }
        Ok(policy)
    }

    /// Whether the guest may go there. `port` is that of TCP or UDP.
    pub(crate) fn allows(&self, protocol: u8, to: IpAddr, port: Option<u16>) -> bool {
        let first = self.rules.iter().find(|rule| rule.covers(protocol, to, port));
        first.is_some_and(|rule| rule.action == PolicyAction::Allow)
    }

    /// Whether the host's loopback address is reached at that port of the gateway.
    pub(crate) fn maps(&self, protocol: u8, port: u16) -> bool {
        let covers = |rule: &LoopbackRule| {
            rule.protocol.covers(protocol) && rule.ports.iter().any(|range| contains(*range, port))
        };
        self.loopback.iter().any(covers)
    }

    /// The policy for people, a line per rule.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for (number, rule) in self.rules.iter().enumerate() {
            text.push_str(&format!("{:>3}  {rule}  (line {})\n", number + 1, rule.line));
        }
        text.push_str("     deny everything else\n");
        for LoopbackRule { line, protocol, ports } in &self.loopback {
            text.push_str(&format!("     loopback of the host: {protocol} {}  (line {line})\n", list(ports)));
        }
        text
    }
}

impl PolicyRule {
    /// How many rules of the stack it becomes, at least.
    fn width(&self) -> usize {
        self.cidrs.len().max(1) * self.ports.len().max(1)
    }

    fn covers(&self, protocol: u8, to: IpAddr, port: Option<u16>) -> bool {
        let Self { line: _, action: _, cidrs, protocol: own, ports } = self;
        own.covers(protocol)
            && (cidrs.is_empty() || cidrs.iter().any(|cidr| cidr.contains(to)))
            && (ports.is_empty() || port.is_some_and(|port| ports.iter().any(|range| contains(*range, port))))
    }
}

impl PolicyProtocol {
    fn has_ports(self) -> bool {
        matches!(self, Self::Tcp | Self::Udp)
    }

    fn covers(self, protocol: u8) -> bool {
        match self {
            Self::Tcp => protocol == proto::TCP,
            Self::Udp => protocol == proto::UDP,
            Self::Icmp => matches!(protocol, proto::ICMP | proto::ICMPV6),
            Self::Any => true,
        }
    }
}

impl fmt::Display for PolicyProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
            Self::Any => "any",
        })
    }
}

impl fmt::Display for PolicyRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line: _, action, cidrs, protocol, ports } = self;
        let action = if *action == PolicyAction::Allow { "allow" } else { "deny" };
        let to = if cidrs.is_empty() { "anywhere".to_owned() } else { list(cidrs) };
        write!(f, "{action} {protocol} to {to}")?;
        if ports.is_empty() { Ok(()) } else { write!(f, " ports {}", list(ports)) }
    }
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.problem)
    }
}

impl std::error::Error for PolicyError {}

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyFile {
    #[serde(default)]
    rule: Vec<Spanned<WrittenRule>>,
    #[serde(default)]
    loopback: Vec<Spanned<WrittenLoopback>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenRule {
    action: PolicyAction,
    cidr: Option<OneOrMore<Cidr>>,
    protocol: Option<PolicyProtocol>,
    ports: Option<Spanned<OneOrMore<Ports>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenLoopback {
    protocol: Spanned<PolicyProtocol>,
    ports: OneOrMore<Ports>,
}

/// One value, or a list of them.
struct OneOrMore<T>(Vec<T>);

impl<T> OneOrMore<T> {
    fn into_vec(self) -> Vec<T> {
        self.0
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMore<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::IntoDeserializer;

        // Not an untagged enum: that would say of a wrong value only that it fits neither.
        struct Visitor<T>(std::marker::PhantomData<T>);

        impl<'de, T: Deserialize<'de>> serde::de::Visitor<'de> for Visitor<T> {
            type Value = Vec<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value or a list of values")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Vec<T>, E> {
                T::deserialize(text.into_deserializer()).map(|value| vec![value])
            }

            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Vec<T>, E> {
                T::deserialize(number.into_deserializer()).map(|value| vec![value])
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
                let mut values = Vec::new();
                while let Some(value) = seq.next_element()? {
                    values.push(value);
                }
                if values.is_empty() {
                    return Err(serde::de::Error::custom("found an empty list, expected at least one value"));
                }
                Ok(values)
            }
        }

        deserializer.deserialize_any(Visitor(std::marker::PhantomData)).map(Self)
    }
}

fn list<T: fmt::Display>(values: &[T]) -> String {
    values.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

fn contains(range: Ports, port: u16) -> bool {
    (range.first()..=range.last()).contains(&port)
}

/// The line of a place in a text, from 1.
fn line_of(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1
}

/// Most combinations of network and port: every packet of a guest may be shown all of them.
const MOST_RULES: usize = 1024;

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) const EXAMPLE: &str = include_str!("../../example-egress.toml");

    fn refused(text: &str) -> String {
        Policy::parse(text).expect_err("it is wrong").to_string()
    }

    #[test]
    fn the_first_rule_that_fits_decides_and_none_denies() {
        let policy = Policy::parse(
            "[[rule]]\naction = \"deny\"\ncidr = \"10.1.0.0/16\"\n\
             [[rule]]\naction = \"allow\"\ncidr = [\"10.0.0.0/8\", \"fd00::/8\"]\nprotocol = \"tcp\"\nports = [443, \"8000-8010\"]\n\
             [[rule]]\naction = \"allow\"\nprotocol = \"icmp\"\n",
        )
        .expect("a policy");
        for (protocol, to, port, allowed) in [
            (proto::TCP, "10.2.3.4", Some(443), true),
            (proto::TCP, "10.1.3.4", Some(443), false),
            (proto::TCP, "10.2.3.4", Some(444), false),
            (proto::TCP, "fd00::1", Some(8010), true),
            (proto::TCP, "2001:db8::1", Some(443), false),
            (proto::UDP, "10.2.3.4", Some(443), false),
            (proto::ICMP, "192.0.2.1", None, true),
            (proto::ICMP, "10.1.0.1", None, false),
            (proto::ICMPV6, "2001:db8::1", None, true),
            (proto::SCTP, "10.2.3.4", Some(443), false),
        ] {
            let to = to.parse().expect("an address");
            assert_eq!(policy.allows(protocol, to, port), allowed, "{protocol} {to} {port:?}");
        }
        assert!(!Policy::default().allows(proto::TCP, "192.0.2.1".parse().expect("an address"), Some(80)));
    }

    #[test]
    fn a_mistake_is_told_with_its_line_and_what_was_expected() {
        for (text, line, told) in [
            ("[[rule]]\naction = \"permit\"\n", 2, "expected `allow` or `deny`"),
            ("\n[[rule]]\naction = \"allow\"\ncidr = \"10.0.0.0/33\"\n", 4, "33"),
            ("[[rule]]\naction = \"allow\"\ncidr = \"host\"\n", 3, "host"),
            ("[[rule]]\naction = \"allow\"\nprotocol = \"tcp\"\nports = [80, \"90-80\"]\n", 4, "90-80"),
            ("[[rule]]\naction = \"allow\"\nprotocol = \"tcp\"\nports = 70000\n", 4, "70000"),
            ("[[rule]]\naction = \"allow\"\nprotocol = \"icmp\"\nports = 80\n", 4, "expected `protocol = \"tcp\"`"),
            ("[[rule]]\naction = \"allow\"\nports = 80\n", 3, "protocol any"),
            ("[[rule]]\naction = \"allow\"\nprotocol = \"tpc\"\n", 3, "`tcp`, `udp`, `icmp`, `any`"),
            ("[[rule]]\naction = \"allow\"\nport = 80\n", 3, "unknown field `port`"),
            ("[[rules]]\naction = \"allow\"\n", 1, "unknown field `rules`"),
            ("[[rule]]\ncidr = \"10.0.0.0/8\"\n", 1, "missing field `action`"),
            ("[[rule]]\naction = \"allow\"\ncidr = []\n", 3, "at least one"),
            ("[[rule]]\naction = allow\n", 2, ""),
            ("[[loopback]]\nprotocol = \"any\"\nports = 80\n", 2, "expected tcp or udp"),
            ("[[loopback]]\nprotocol = \"tcp\"\n", 1, "missing field `ports`"),
        ] {
            let error = refused(text);
            assert!(error.starts_with(&format!("line {line}: ")) && error.contains(told), "{text}: {error}");
        }
    }

    #[test]
    fn more_rules_than_one_packet_may_be_shown_are_refused() {
        let ports: Vec<String> = (1..=MOST_RULES + 1).map(|port| port.to_string()).collect();
        let text = format!("[[rule]]\naction = \"allow\"\nprotocol = \"tcp\"\nports = [{}]\n", ports.join(", "));
        assert!(refused(&text).contains("1025"));
    }

    #[test]
    fn the_example_is_a_policy_that_reads_like_this() {
        let policy = Policy::parse(EXAMPLE).expect("it parses");
        assert!(policy.maps(proto::TCP, 8080) && !policy.maps(proto::UDP, 8080) && !policy.maps(proto::TCP, 8081));
        let text = policy.text();
        assert!(text.contains("deny any to 169.254.0.0/16") && text.contains("deny everything else"), "{text}");
    }
}
