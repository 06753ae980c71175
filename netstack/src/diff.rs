//! What two images hold that differs: flows that came, went and changed, and everything else place by place.

use core::fmt;
use std::collections::BTreeMap;

use crate::restore::{Decoded, RestoreError};
use hibernet_conntrack::{FlowChange, FlowRecord, Tuple, diff_flows, proto};
use hibernet_snapshot::diff::{self, Change, Value};

/// One thing that differs. Prints as one line, a flow that changed as one for each field.
#[derive(Clone, PartialEq, Debug)]
#[non_exhaustive]
pub enum Difference {
    /// A flow.
    Flow(FlowChange),
    /// Anything else; paths begin with the section's name.
    Other(Change),
}

/// Tells what turns one image into another, in canonical order: links, rules, settings, sockets and the rest first, flows last.
/// Generation and lineage are not compared. Memory beside the images: one copy of the flow records of each, and 16 bytes a flow.
///
/// # Errors
/// If an image holds a flow that cannot be, or something cannot be described; and those of `each`.
pub fn diff_images<E: From<RestoreError>>(
    before: &Decoded,
    after: &Decoded,
    mut each: impl FnMut(Difference) -> Result<(), E>,
) -> Result<(), E> {
    for ((name, one), (_, other)) in before.sections().into_iter().zip(after.sections()) {
        for change in diff::compare(
            &named(name, one.map_err(RestoreError::from)?),
            &named(name, other.map_err(RestoreError::from)?),
        ) {
            each(Difference::Other(change))?;
        }
    }
    // Two kinds of errors come out of one closure; `?` takes the one that it is.
    let mut failed = None;
    let done = diff_flows(&before.conntrack, &after.conntrack, |change| {
        each(Difference::Flow(change)).map_err(|error| {
            failed = Some(error);
            Stop(None)
        })
    });
    match (done, failed) {
        (_, Some(error)) => Err(error),
        (Err(Stop(Some(error))), None) => Err(RestoreError::from(error).into()),
        (Err(Stop(None)) | Ok(()), None) => Ok(()),
    }
}

/// Why the comparison of flows ended early: a record that cannot be, or the caller's own error.
struct Stop(Option<hibernet_conntrack::NotRestored>);

impl From<hibernet_conntrack::NotRestored> for Stop {
    fn from(error: hibernet_conntrack::NotRestored) -> Self {
        Self(Some(error))
    }
}

fn named(name: &str, value: Value) -> Value {
    Value::Map(BTreeMap::from([(name.to_owned(), value)]))
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Other(change) => write!(f, "{change}"),
            Self::Flow(FlowChange::Added(flow)) => write!(f, "+ flow {}: {}", flow_name(flow), flow),
            Self::Flow(FlowChange::Removed(flow)) => write!(f, "- flow {}: {}", flow_name(flow), flow),
            Self::Flow(FlowChange::Changed { before, after }) => {
                let changes = diff::compare(&before.fields(), &after.fields());
                let name = flow_name(after);
                let mut first = true;
                for change in &changes {
                    let line = change.to_string();
                    let (sign, rest) = line.split_at_checked(2).unwrap_or(("~ ", &line));
                    let end = if first { "" } else { "\n" };
                    write!(f, "{end}{sign}flow {name}: {rest}")?;
                    first = false;
                }
                Ok(())
            }
        }
    }
}

/// How a flow is named: protocol, original direction, zone.
pub fn flow_name(flow: &FlowRecord) -> String {
    let Tuple { src, dst, proto, sport, dport } = flow.orig;
    let zone = if flow.zone.id == 0 { String::new() } else { format!(" zone {}", flow.zone.id) };
    let protocol = match proto {
        proto::ICMP => "icmp".to_owned(),
        proto::TCP => "tcp".to_owned(),
        proto::UDP => "udp".to_owned(),
        proto::GRE => "gre".to_owned(),
        proto::ICMPV6 => "icmpv6".to_owned(),
        proto::SCTP => "sctp".to_owned(),
        proto::UDP_LITE => "udplite".to_owned(),
        other => format!("protocol {other}"),
    };
    match proto {
        proto::ICMP | proto::ICMPV6 => {
            format!("{protocol} {src} > {dst} id {sport} type {}{zone}", flow.orig.icmp_type())
        }
        _ => format!("{protocol} {src} port {sport} > {dst} port {dport}{zone}"),
    }
}
