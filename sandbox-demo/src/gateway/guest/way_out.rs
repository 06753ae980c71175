//! Where the guest may go, and by what: sockets of the host, or the uplink. Without either, nowhere.

use std::path::Path;
use std::path::PathBuf;

use anyhow::Context;
use hibernet_netstack::LinkConfig;
use serde_json::Value;

use crate::control::PolicyReply;
use crate::egress::Egress;
use crate::egress::EgressLimits;
use crate::egress::Policy;
use crate::egress::by_routes;
use crate::egress::has_policy;
use crate::egress::report;
use crate::egress::with_policy;
use crate::fault::raise_file_limit;
use crate::gateway::Engine;
use crate::runtime::Net;

/// What is said of egress on the command line.
#[derive(Debug, Clone)]
pub(crate) struct EgressChoice {
    /// The policy; without one a restored gateway keeps its image's, and a new one lets the guest go by an uplink alone.
    pub(crate) policy: Option<PathBuf>,
    pub(crate) limits: EgressLimits,
}

/// The guest's way out.
#[derive(Clone)]
pub(super) enum WayOut {
    /// By the host's own sockets.
    Sockets(Egress),
    /// By the uplink, or nowhere.
    Routes { net: Net, guest: String, has_uplink: bool },
}

/// Puts a policy in force before a device is open: no frame meets any other rules.
pub(super) fn enforce(engine: &mut Engine, guest: &str, has_uplink: bool, policy: &Policy) -> anyhow::Result<()> {
    let (stack, _) = engine.stack();
    let guests: Vec<LinkConfig> = stack.links().iter().filter(|link| link.name == guest).cloned().collect();
    let mut rules = with_policy(stack.rules(), policy, &guests);
    if has_uplink {
        by_routes(&mut rules);
    }
    stack.load_rules(rules).context("the egress policy as rules of the stack")
}

impl EgressChoice {
    /// What the file says, if one is given.
    pub(super) fn read(&self) -> anyhow::Result<Option<Policy>> {
        Ok(self.policy.as_deref().map(|path: &Path| Policy::read(path)).transpose()?.map(|(policy, _)| policy))
    }

    /// The way out of a stack whose rules hold the policy already.
    pub(super) fn open(
        &self,
        net: &Net,
        guest: &str,
        has_uplink: bool,
        policy: Option<Policy>,
    ) -> anyhow::Result<WayOut> {
        let has_policy = net.with_engine(|engine| has_policy(engine.stack().0.rules()));
        if has_uplink || !has_policy {
            return Ok(WayOut::Routes { net: net.clone(), guest: guest.to_owned(), has_uplink });
        }
        raise_file_limit(self.limits.descriptors().saturating_add(SPARE))?;
        Ok(WayOut::Sockets(Egress::new(net, self.limits, policy)))
    }
}

impl WayOut {
    /// Puts another policy in force in a running gateway.
    pub(super) fn load(&self, text: &str) -> Result<Value, String> {
        let policy = Policy::parse(text).map_err(|error| format!("the egress policy, {error}"))?;
        let rules = policy.rules.len();
        let done = match self {
            Self::Sockets(egress) => egress.load(policy),
            Self::Routes { has_uplink: false, .. } => {
                Err(anyhow::anyhow!("this gateway has neither an uplink nor egress: start it with --egress-policy"))
            }
            // Each packet of the guest meets the rules, so flows that are not allowed any more end by themselves.
            Self::Routes { net, guest, has_uplink: true } => net
                .with_engine(|engine| enforce(engine, guest, true, &policy))
                .map(|()| PolicyReply { rules, ended: 0 }),
        };
        let done = done.map_err(|error| format!("{error:#}"))?;
        serde_json::to_value(done).map_err(|error| error.to_string())
    }

    /// What goes out by host sockets.
    pub(super) fn report(&self) -> Result<Value, String> {
        match self {
            Self::Sockets(egress) => report(egress),
            Self::Routes { .. } => Err("this gateway has no host sockets for its guest".to_owned()),
        }
    }
}

/// Descriptors beside those of flows.
const SPARE: u64 = 1200;
