//! The configuration file of a gateway.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Context;
use hibernet_conntrack::Config as ConntrackConfig;
use hibernet_conntrack::EarlyDrop;
use hibernet_conntrack::Sysctls;
use hibernet_netstack::Cidr;
use hibernet_netstack::FragmentLimits;
use hibernet_netstack::LinkConfig;
use hibernet_netstack::LocalLimits;
use hibernet_netstack::LocalServices;
use hibernet_netstack::MacAddr;
use hibernet_netstack::Medium;
use hibernet_netstack::Route;
use hibernet_netstack::Ruleset;
use hibernet_netstack::StackConfig;
use hibernet_snapshot::Entropy;
use serde::Deserialize;
use serde::Serialize;
use serde_json::Value;

use crate::fault::Fault;
use crate::link::LinkSpec;

/// What `run --config` reads; `example-gateway.json` in this crate shows all of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GatewayConfig {
    /// The links.
    pub(crate) links: Vec<GatewayLink>,
    /// Routes beyond the links' own networks.
    #[serde(default)]
    pub(crate) routes: Vec<Route>,
    /// Settings by the kernel's names: `nf_conntrack_*`, and `net.ipv4.ipfrag_*`.
    #[serde(default)]
    pub(crate) sysctls: BTreeMap<String, Value>,
    /// Most flows the table can ever hold.
    #[serde(default = "default_capacity")]
    pub(crate) capacity: u32,
    /// Who makes room in a full table: `"lru"` (the oldest flow that is not assured), `"kernel"` (as Linux does) or `"off"`.
    #[serde(default)]
    pub(crate) early_drop: EarlyDrop,
    /// Most half-open TCP flows of one source, 0 for no limit.
    #[serde(default)]
    pub(crate) half_open_limit: u32,
    /// `{"policy": {chain: policy}, "rules": [{"chain", "match", "action"}, ..]}`; closed if missing.
    #[serde(default)]
    pub(crate) rules: Ruleset,
    /// Most TCP connections of the gateway itself.
    #[serde(default = "default_connections")]
    pub(crate) connections: u32,
    /// Ports of the gateway's own echo services, if any.
    #[serde(default)]
    pub(crate) udp_echo: Option<u16>,
    /// Like `udp_echo`.
    #[serde(default)]
    pub(crate) tcp_echo: Option<u16>,
}

/// A link of a gateway.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GatewayLink {
    /// Its name, which is the device's.
    pub(crate) name: String,
    /// Its MTU.
    pub(crate) mtu: u32,
    /// Addresses with their networks.
    pub(crate) addrs: Vec<Cidr>,
    /// What it carries: IP unless it says `ethernet`.
    #[serde(default)]
    pub(crate) medium: MediumName,
    /// The gateway's hardware address on an Ethernet link: without it the device's, or one that is drawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) mac: Option<MacAddr>,
}

/// What a link carries, by name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum MediumName {
    /// IP datagrams.
    #[default]
    Ip,
    /// Ethernet frames.
    Ethernet,
}

impl GatewayLink {
    fn link_config(&self) -> anyhow::Result<LinkConfig> {
        let Self { name, mtu, addrs, medium, mac } = self;
        let medium = match (medium, mac) {
            (MediumName::Ip, None) => Medium::Ip,
            (MediumName::Ip, Some(mac)) => anyhow::bail!(
                "link {name} carries IP and has the hardware address {mac}: leave it out, or say `\"medium\": \"ethernet\"`"
            ),
            (MediumName::Ethernet, Some(mac)) => Medium::Ethernet { mac: *mac },
            (MediumName::Ethernet, None) => anyhow::bail!("link {name} has no hardware address: give it a `mac`"),
        };
        Ok(LinkConfig { name: name.clone(), mtu: *mtu, addrs: addrs.clone(), medium })
    }
}

impl GatewayConfig {
    /// Gives each Ethernet link without a hardware address its device's, or where that has none to give, a random locally
    /// administered one. An image keeps it.
    pub(crate) fn settle_macs(&mut self, devices: &[LinkSpec]) -> anyhow::Result<()> {
        for link in self.links.iter_mut().filter(|link| link.medium == MediumName::Ethernet && link.mac.is_none()) {
            let device = devices.iter().find(|device| device.name() == link.name);
            let of_device = device.map(LinkSpec::own_mac).transpose()?.flatten();
            let mut entropy = Entropy::from_os().context("drawing a hardware address")?;
            let [a, b, c, d, e, f, ..] = entropy.public_id().0;
            link.mac = of_device.or_else(|| Some(MacAddr::locally_administered([a, b, c, d, e, f])));
        }
        Ok(())
    }

    /// Reads a configuration file.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path).map_err(|error| {
            Fault::new(
                format!("cannot read the configuration {}: {error}", path.display()),
                "`sandbox-demo run --help` shows an example to start from",
            )
        })?;
        serde_json::from_str(&text).map_err(|error| {
            let what = format!("the configuration {}: {error}", path.display());
            Fault::new(what, "`sandbox-demo run --help` shows an example that can be read").into()
        })
    }

    /// The stack this describes.
    pub(super) fn stack_config(&self) -> anyhow::Result<StackConfig> {
        let (mut sysctls, mut fragments) = (Sysctls::default(), FragmentLimits::default());
        for (name, value) in &self.sysctls {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let is_reassembly = name.starts_with("net.ipv4.");
            let set = if is_reassembly { fragments.set(name, &text) } else { sysctls.set(name, &text) };
            set.with_context(|| format!("sysctl {name} = {text}"))?;
        }
        Ok(StackConfig {
            links: self.links.iter().map(GatewayLink::link_config).collect::<Result<_, _>>()?,
            routes: self.routes.clone(),
            rules: self.rules.clone(),
            conntrack: ConntrackConfig {
                sysctls,
                capacity: self.capacity,
                early_drop: self.early_drop,
                half_open_limit: self.half_open_limit,
            },
            fragments,
            services: LocalServices { udp_echo: self.udp_echo, tcp_echo: self.tcp_echo },
            local: LocalLimits { connections: self.connections },
            ..StackConfig::default()
        })
    }
}

fn default_connections() -> u32 {
    LocalLimits::default().connections
}

fn default_capacity() -> u32 {
    65_536
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_file_describes_a_stack() {
        let config: GatewayConfig =
            serde_json::from_str(include_str!("../../example-gateway.json")).expect("it parses");
        config.stack_config().expect("it means something");
        assert_eq!(config.links.len(), 2);
    }

    #[test]
    fn who_makes_room_and_how_many_may_be_half_open_can_be_said() {
        let text = r#"{"links": [], "early_drop": "kernel", "half_open_limit": 9,
                       "sysctls": {"net.ipv4.ipfrag_time": 7, "nf_conntrack_max": 100}}"#;
        let config: GatewayConfig = serde_json::from_str(text).expect("it parses");
        let stack = config.stack_config().expect("it means something");
        assert_eq!((stack.conntrack.early_drop, stack.conntrack.half_open_limit), (EarlyDrop::Kernel, 9));
        assert_eq!((stack.fragments.ipfrag_time, stack.conntrack.sysctls.max), (7, 100));

        let config: GatewayConfig = serde_json::from_str(r#"{"links": []}"#).expect("it parses");
        let stack = config.stack_config().expect("it means something");
        assert_eq!((stack.conntrack.early_drop, stack.conntrack.half_open_limit), (EarlyDrop::Lru, 0));
        let error = serde_json::from_str::<GatewayConfig>(r#"{"links": [], "early_drop": "no"}"#).expect_err("a typo");
        assert!(error.to_string().contains("`off`, `lru`, `kernel`"), "{error}");
    }

    #[test]
    fn an_ethernet_link_without_a_hardware_address_is_given_one() {
        let text = r#"{"links": [{"name": "g0", "mtu": 1500, "addrs": ["10.0.0.1/24"], "medium": "ethernet"}]}"#;
        let mut config: GatewayConfig = serde_json::from_str(text).expect("it parses");
        assert!(config.stack_config().is_err());
        config.settle_macs(&["tap:g0".parse().expect("a device")]).expect("one is drawn");
        let drawn = config.links[0].mac.expect("it has one");
        assert!(drawn.is_unicast() && drawn.octets()[0] & 2 == 2, "{drawn}");
        let medium = config.stack_config().expect("it means something").links[0].medium;
        assert_eq!(medium, Medium::Ethernet { mac: drawn });
    }

    #[test]
    fn an_ip_link_with_a_hardware_address_is_refused_with_the_remedy() {
        let text = r#"{"links": [{"name": "g0", "mtu": 1500, "addrs": [], "mac": "02:00:00:00:00:01"}]}"#;
        let config: GatewayConfig = serde_json::from_str(text).expect("it parses");
        let error = config.stack_config().expect_err("it carries no frames").to_string();
        assert!(error.contains("02:00:00:00:00:01") && error.contains("ethernet"), "{error}");
    }

    #[test]
    fn an_unknown_field_is_refused_by_name() {
        let error = serde_json::from_str::<GatewayConfig>(r#"{"links": [], "ruels": []}"#).expect_err("a typo");
        assert!(error.to_string().contains("ruels"), "{error}");
    }

    #[test]
    fn an_unknown_sysctl_is_refused_by_name() {
        let text = r#"{"links": [], "sysctls": {"nf_conntrack_nonsense": 1}}"#;
        let config: GatewayConfig = serde_json::from_str(text).expect("it parses");
        let error = format!("{:#}", config.stack_config().expect_err("no such sysctl"));
        assert!(error.contains("nf_conntrack_nonsense"), "{error}");
    }
}
