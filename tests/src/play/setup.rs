//! The router that a scenario asks for.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, Result, bail, ensure};
use hibernet_conntrack::{EarlyDrop, Sysctls};
use hibernet_netstack::{Cidr, FragmentLimits, LinkConfig, Medium, Route, StackConfig};

use super::rules;
use crate::scenario::{Link, Net, Scenario, Setting};

/// The whole configuration.
pub(super) fn stack(scenario: &Scenario) -> Result<StackConfig> {
    let mut sysctls = Sysctls::default();
    let limit = CAPACITY.to_string();
    for (name, value) in [("nf_conntrack_max", limit.as_str()), ("nf_conntrack_acct", "1")] {
        sysctls.set(name, value)?;
    }
    let mut fragments = FragmentLimits::default();
    for (name, value) in stack_sysctls(&global(scenario)?)?.into_iter().chain(stack_sysctls(&scenario.sysctl)?) {
        match name.starts_with(REASSEMBLY) {
            true => fragments.set(&name, &value)?,
            false => sysctls.set(&name, &value)?,
        }
    }
    let conntrack = hibernet_conntrack::Config {
        sysctls,
        capacity: CAPACITY,
        early_drop: EarlyDrop::Off,
        ..hibernet_conntrack::Config::default()
    };
    Ok(StackConfig {
        links: links(&scenario.net)?,
        routes: routes(&scenario.net)?,
        rules: rules::rule_set(scenario)?,
        conntrack,
        fragments,
        ..StackConfig::default()
    })
}

/// The two links.
pub(super) fn links(net: &Net) -> Result<Vec<LinkConfig>> {
    [("in", net.inside()), ("out", net.outside())].into_iter().map(|(name, link)| self::link(name, &link)).collect()
}

fn link(name: &str, link: &Link) -> Result<LinkConfig> {
    let cidr = |text: &String| text.parse().with_context(|| format!("address {text:?} of link {name:?}"));
    let addrs = link.addr.iter().map(cidr).collect::<Result<_>>()?;
    Ok(LinkConfig { name: name.to_owned(), mtu: link.mtu, addrs, medium: Medium::Ip })
}

/// The routes, from arguments of `ip route add`: a prefix, then `via ADDRESS` and `dev NAME` in any order.
pub(super) fn routes(net: &Net) -> Result<Vec<Route>> {
    let links = links(net)?;
    net.routes().iter().map(|line| route(line, &links).with_context(|| format!("route {line:?}"))).collect()
}

fn route(line: &str, links: &[LinkConfig]) -> Result<Route> {
    let mut words = line.split_whitespace();
    let prefix = words.next().context("it is empty")?;
    let (mut via, mut dev) = (None, None);
    while let Some(word) = words.next() {
        let value = words.next().with_context(|| format!("{word:?} lacks its value"))?;
        match word {
            "via" => via = Some(value.parse::<IpAddr>().with_context(|| format!("gateway {value:?}"))?),
            "dev" => dev = Some(value.to_owned()),
            other => bail!("{other:?} is not supported"),
        }
    }
    let destination: Cidr = match prefix {
        "default" if via.is_some_and(|via| via.is_ipv6()) => "::/0".parse()?,
        "default" => "0.0.0.0/0".parse()?,
        prefix if prefix.contains('/') => prefix.parse()?,
        host => Cidr::host(host.parse()?),
    };
    let towards = |via: IpAddr| links.iter().find(|link| link.addrs.iter().any(|addr| addr.contains(via)));
    let link = dev.or_else(|| towards(via?).map(|link| link.name.clone())).context("it leads to no link")?;
    Ok(Route { destination, via, link })
}

/// The sysctls that are for all namespaces: there are but two.
fn global(scenario: &Scenario) -> Result<BTreeMap<String, Setting>> {
    let settings = scenario.global_sysctl.clone();
    match settings.keys().find(|name| !GLOBAL_SYSCTLS.contains(&name.as_str())) {
        None => Ok(settings),
        Some(name) => bail!("global_sysctl {name:?}: expected one of {}", GLOBAL_SYSCTLS.join(", ")),
    }
}

/// The sysctls that the stack has, those of conntrack by name without their path. Those of the host must be as they are.
pub(super) fn stack_sysctls(settings: &BTreeMap<String, Setting>) -> Result<Vec<(String, String)>> {
    let mut ours = Vec::new();
    for (name, value) in settings {
        let (short, value) = (name.strip_prefix("net.netfilter.").unwrap_or(name), value.to_string());
        if !short.contains('.') || short.starts_with(REASSEMBLY) {
            ours.push((short.to_owned(), value));
            continue;
        }
        let fixed = HOST_SYSCTLS.iter().find(|(known, _)| known == name);
        let (_, fixed) = fixed.with_context(|| format!("sysctl {name} is not supported"))?;
        ensure!(*fixed == value, "sysctl {name} is {fixed} here and cannot be {value}");
    }
    Ok(ours)
}

/// Settings of IPv4's reassembly.
const REASSEMBLY: &str = "net.ipv4.ipfrag_";
const GLOBAL_SYSCTLS: [&str; 2] = ["nf_conntrack_max", "nf_conntrack_buckets"];
/// Settings of the host that the stack always has.
const HOST_SYSCTLS: [(&str, &str); 10] = [
    ("net.ipv4.ip_forward", "1"),
    ("net.ipv4.conf.all.rp_filter", "0"),
    ("net.ipv4.conf.all.send_redirects", "0"),
    ("net.ipv4.icmp_ratelimit", "0"),
    ("net.ipv4.tcp_sack", "0"),
    ("net.ipv4.tcp_syncookies", "0"),
    ("net.ipv4.tcp_timestamps", "0"),
    ("net.ipv4.tcp_window_scaling", "0"),
    ("net.ipv6.conf.all.forwarding", "1"),
    ("net.ipv6.icmp.ratelimit", "0"),
];
/// More flows than any scenario makes.
const CAPACITY: u32 = 16_384;
