//! A flow for people: its name, and its fields as a tree.

use core::net::SocketAddr;

use hibernet_conntrack::{FlowRecord, ProtocolState, SctpTrack, TcpSide, TcpTrack, Tuple, UdpTrack, Zone, proto};
use hibernet_snapshot::Instant;
use hibernet_snapshot::diff::{Difference, Pair, Value};

use super::map;

/// What became of a flow.
pub(super) fn difference(pair: Pair<'_, FlowRecord>) -> Option<Difference> {
    let section = "flows";
    match pair {
        Pair::Removed(flow) => Some(Difference::Removed { section, item: name(flow), value: value(flow) }),
        Pair::Added(flow) => Some(Difference::Added { section, item: name(flow), value: value(flow) }),
        Pair::Both(before, after) if before == after => None,
        Pair::Both(before, after) => Difference::between(section, name(after), &value(before), &value(after)),
    }
}

/// A flow by what it is told by: its original tuple and its zone.
fn name(flow: &FlowRecord) -> String {
    let zone = match flow.zone {
        Zone { id: 0, .. } => String::new(),
        Zone { id, orig_only: true } => format!(" zone-orig {id}"),
        Zone { id, orig_only: false } => format!(" zone {id}"),
    };
    format!("{}{zone}", tuple(&flow.orig))
}

fn tuple(tuple: &Tuple) -> String {
    let Tuple { src, dst, proto, sport, dport } = *tuple;
    let name = match proto {
        proto::ICMP => "icmp",
        proto::TCP => "tcp",
        proto::UDP => "udp",
        proto::GRE => "gre",
        proto::ICMPV6 => "icmpv6",
        proto::SCTP => "sctp",
        proto::UDP_LITE => "udplite",
        other => return format!("protocol {other} {src} > {dst}"),
    };
    match proto {
        proto::ICMP | proto::ICMPV6 => {
            format!("{name} {src} > {dst} id {sport} type {} code {}", tuple.icmp_type(), tuple.icmp_code())
        }
        proto::GRE => format!("{name} {src} > {dst} keys {sport:#x} {dport:#x}"),
        _ => format!("{name} {} > {}", SocketAddr::new(src, sport), SocketAddr::new(dst, dport)),
    }
}

fn value(flow: &FlowRecord) -> Value {
    let FlowRecord { orig: _, reply, zone: _, status, remaining, protocol, mark, counters } = flow;
    let directions = |[original, reply]: [u64; 2]| map([("original", number(original)), ("reply", number(reply))]);
    map([
        ("reply", Value::Text(tuple(reply))),
        ("status", set(status.iter_names().map(|(name, _)| name))),
        ("remaining", Value::Text(format!("{remaining:?}"))),
        ("mark", number(*mark)),
        ("packets", directions(counters.packets)),
        ("bytes", directions(counters.bytes)),
        match protocol {
            ProtocolState::Tcp(track) => ("tcp", tcp(track)),
            ProtocolState::Udp(UdpTrack { stream_at }) => {
                let wait = stream_at.saturating_since(Instant::ZERO);
                ("udp", map([("stream_in", Value::Text(format!("{wait:?}")))]))
            }
            ProtocolState::Sctp(track) => ("sctp", sctp(track)),
            ProtocolState::Other => ("protocol", Value::Null),
        },
    ])
}

fn tcp(track: &TcpTrack) -> Value {
    let TcpTrack {
        state,
        sides: [original, reply],
        retrans,
        last_dir,
        last_index,
        last_seq,
        last_ack,
        last_len,
        last_win,
        last_wscale,
        last_flags,
    } = track;
    let side = |side: &TcpSide| {
        let TcpSide { td_end, td_maxend, td_maxwin, td_maxack, scale, flags } = side;
        map([
            ("td_end", number(*td_end)),
            ("td_maxend", number(*td_maxend)),
            ("td_maxwin", number(*td_maxwin)),
            ("td_maxack", number(*td_maxack)),
            ("scale", number(*scale)),
            ("flags", set(flags.iter_names().map(|(name, _)| name))),
        ])
    };
    map([
        ("state", text(state.name())),
        ("original", side(original)),
        ("reply", side(reply)),
        ("retrans", number(*retrans)),
        (
            "last",
            map([
                ("direction", Value::Text(format!("{last_dir:?}"))),
                ("kind", Value::Text(format!("{last_index:?}"))),
                ("seq", number(*last_seq)),
                ("ack", number(*last_ack)),
                ("len", number(*last_len)),
                ("win", number(*last_win)),
                ("wscale", number(*last_wscale)),
                ("flags", number(*last_flags)),
            ]),
        ),
    ])
}

fn sctp(track: &SctpTrack) -> Value {
    let SctpTrack { state, vtag: [original, reply], last_dir, flags } = track;
    map([
        ("state", text(state.name())),
        ("vtag", map([("original", number(*original)), ("reply", number(*reply))])),
        ("last_direction", Value::Text(format!("{last_dir:?}"))),
        ("flags", number(*flags)),
    ])
}

/// Flags that are set, each by its name: so that one more changes no other.
fn set(names: impl Iterator<Item = &'static str>) -> Value {
    Value::Map(names.map(|name| (name.to_owned(), Value::Bool(true))).collect())
}

fn number(value: impl Into<i128>) -> Value {
    Value::Integer(value.into())
}

fn text(value: &str) -> Value {
    Value::Text(value.to_owned())
}
