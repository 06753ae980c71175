//! What the packets have reached.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;

/// Counts over all batches, from the kernel's records.
#[derive(Default, Debug, Serialize)]
pub(crate) struct Coverage {
    pub(crate) packets: usize,
    pub(crate) agreeing: usize,
    pub(crate) by_ctstate: BTreeMap<String, usize>,
    pub(crate) by_protocol: BTreeMap<String, usize>,
    pub(crate) by_rules: BTreeMap<String, usize>,
    /// How often a flow has come into each TCP state.
    pub(crate) tcp_entered: BTreeMap<String, usize>,
    pub(crate) sctp_entered: BTreeMap<String, usize>,
}

impl Coverage {
    /// Adds one batch's records; `differing`: the steps at which the stack did otherwise.
    pub(crate) fn add(&mut self, rules: &str, records: &[Value], differing: &BTreeSet<usize>) {
        let mut states = BTreeMap::new();
        for (step, record) in records.iter().enumerate() {
            self.packets += 1;
            self.agreeing += usize::from(!differing.contains(&step));
            let text = |value: &Value| value.as_str().unwrap_or("dropped before").to_owned();
            *self.by_ctstate.entry(text(&record["ctstate"])).or_default() += 1;
            let protocol = text(&record["inject"]["text"]);
            let protocol = protocol.split(' ').next().unwrap_or_default().replace("proto132", "sctp");
            *self.by_protocol.entry(protocol).or_default() += 1;
            *self.by_rules.entry(rules.to_owned()).or_default() += 1;
            let mut now = BTreeMap::new();
            for flow in record["conntrack"].as_array().into_iter().flatten() {
                for (proto, entered) in [("tcp", &mut self.tcp_entered), ("sctp", &mut self.sctp_entered)] {
                    let Some(state) = flow[proto]["state"].as_str() else { continue };
                    let key = flow["orig"].to_string();
                    if states.get(&key).is_none_or(|before| before != state) {
                        *entered.entry(state.to_owned()).or_default() += 1;
                    }
                    now.insert(key, state.to_owned());
                }
            }
            states = now;
        }
    }

    /// Packets of a ctstate in percent.
    pub(crate) fn share(&self, ctstate: &str) -> f64 {
        self.by_ctstate.get(ctstate).copied().unwrap_or(0) as f64 * 100.0 / self.packets.max(1) as f64
    }

    /// Packets that are of flows which exist, and neither INVALID nor NEW, in percent.
    pub(crate) fn on_flows(&self) -> f64 {
        self.share("established") + self.share("related")
    }

    /// TCP states into which flows have come too rarely.
    pub(crate) fn rare_states(&self) -> Vec<(&'static str, usize)> {
        let counts = TCP_STATES.map(|state| (state, self.tcp_entered.get(state).copied().unwrap_or(0)));
        counts.into_iter().filter(|(_, count)| *count < OFTEN).collect()
    }
}

/// All that a tracked connection can be in.
const TCP_STATES: [&str; 9] =
    ["SYN_SENT", "SYN_RECV", "ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK", "TIME_WAIT", "CLOSE", "SYN_SENT2"];
const OFTEN: usize = 50;
