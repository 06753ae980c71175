//! Flows and events of the stack in the oracle's words.

use hibernet_conntrack::{self as conntrack, ConntrackEvent, FlowRecord, ProtocolState, Status, Tuple, Zone, proto};

use crate::record::{ByDirection, Entry, Event, EventKind, SctpRecord, TcpRecord, TupleRecord};

/// The table, sorted.
pub(super) fn entries(flows: &[FlowRecord]) -> Vec<Entry> {
    let mut entries: Vec<_> = flows.iter().map(entry).collect();
    Entry::sort(&mut entries);
    entries
}

fn entry(flow: &FlowRecord) -> Entry {
    let FlowRecord { orig, reply, zone, status, remaining, protocol, mark, counters } = flow;
    let Zone { id, orig_only } = *zone;
    let shared = (id != 0 && !orig_only).then_some(id);
    let directed = (id != 0 && orig_only).then_some(id);
    let by_direction = |[orig, reply]: [u64; 2]| counters.are_kept().then_some(ByDirection { orig, reply });
    Entry {
        orig: TupleRecord { zone: directed, ..tuple(orig) },
        reply: tuple(reply),
        status: status_names(*status),
        tcp: tcp(protocol),
        sctp: match protocol {
            ProtocolState::Sctp(track) => Some(SctpRecord { state: track.state.name().to_owned() }),
            _ => None,
        },
        timeout: remaining.as_secs(),
        mark: (*mark != 0).then_some(*mark),
        packets: by_direction(counters.packets),
        bytes: by_direction(counters.bytes),
        zone: shared,
    }
}

/// One event of the stack's queue.
pub(super) fn event(event: &ConntrackEvent) -> Event {
    let ConntrackEvent { kind, flow } = event;
    let directed = (flow.zone.id != 0 && flow.zone.orig_only).then_some(flow.zone.id);
    Event {
        kind: match kind {
            conntrack::EventKind::New => EventKind::New,
            conntrack::EventKind::Update => EventKind::Update,
            conntrack::EventKind::Destroy => EventKind::Destroy,
        },
        orig: TupleRecord { zone: directed, ..tuple(&flow.orig) },
        tcp: tcp(&flow.protocol).map(|tcp| tcp.state),
        status: status_names(flow.status),
    }
}

fn tuple(tuple: &Tuple) -> TupleRecord {
    let Tuple { src, dst, proto, sport, dport } = *tuple;
    let has_ports = PROTOCOLS_WITH_PORTS.contains(&proto);
    let is_icmp = tuple.is_icmp();
    TupleRecord {
        src: src.to_string(),
        dst: dst.to_string(),
        proto,
        sport: has_ports.then_some(sport),
        dport: has_ports.then_some(dport),
        icmp_id: is_icmp.then_some(sport),
        icmp_type: is_icmp.then_some(tuple.icmp_type()),
        icmp_code: is_icmp.then_some(tuple.icmp_code()),
        zone: None,
    }
}

fn tcp(protocol: &ProtocolState) -> Option<TcpRecord> {
    let ProtocolState::Tcp(track) = protocol else { return None };
    let [orig, reply] = &track.sides;
    Some(TcpRecord {
        state: track.state.name().to_owned(),
        wscale_orig: orig.scale,
        wscale_reply: reply.scale,
        flags_orig: orig.flags.bits(),
        flags_reply: reply.flags.bits(),
    })
}

/// Names of the set bits, in the order of the kernel's numbers; bits that the kernel does not show are left out.
fn status_names(status: Status) -> Vec<String> {
    STATUS_NAMES.iter().filter(|(bit, _)| status.contains(*bit)).map(|(_, name)| (*name).to_owned()).collect()
}

const STATUS_NAMES: [(Status, &str); 9] = [
    (Status::SEEN_REPLY, "SEEN_REPLY"),
    (Status::ASSURED, "ASSURED"),
    (Status::CONFIRMED, "CONFIRMED"),
    (Status::SRC_NAT, "SRC_NAT"),
    (Status::DST_NAT, "DST_NAT"),
    (Status::SRC_NAT_DONE, "SRC_NAT_DONE"),
    (Status::DST_NAT_DONE, "DST_NAT_DONE"),
    (Status::DYING, "DYING"),
    (Status::NAT_CLASH, "NAT_CLASH"),
];

const PROTOCOLS_WITH_PORTS: [u8; 5] = [proto::TCP, proto::UDP, proto::GRE, proto::SCTP, proto::UDP_LITE];
