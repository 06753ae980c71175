//! The configuration file of a gateway.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Context;
use hibernet_conntrack::Config as ConntrackConfig;
use hibernet_conntrack::EarlyDrop;
use hibernet_conntrack::Sysctls;
use hibernet_netstack::FragmentLimits;
use hibernet_netstack::LinkConfig;
use hibernet_netstack::LocalLimits;
use hibernet_netstack::LocalServices;
use hibernet_netstack::Route;
use hibernet_netstack::Ruleset;
use hibernet_netstack::StackConfig;
use serde::Deserialize;
use serde::Serialize;
use serde_json::Value;

use crate::fault::Fault;

/// What `run --config` reads; `example-gateway.json` in this crate shows all of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GatewayConfig {
    /// The links: name, MTU, addresses with their networks.
    pub(crate) links: Vec<LinkConfig>,
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

impl GatewayConfig {
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
            links: self.links.clone(),
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
