//! What two saves have in flows that differs. Linear in memory: records are compared as they are, and only what differs is
//! unpacked.

use core::cmp::Ordering;

use hibernet_snapshot::diff::Value;
use hibernet_snapshot::{Instant, Invalid};
use std::collections::BTreeMap;

use crate::conntrack::{ConntrackSaved, NotRestored};
use crate::pack::{self, KIND_REPLY, KIND_V6, KIND_ZONE, Reader};
use crate::protocol::{ProtocolState, TcpSide};
use crate::record::FlowRecord;
use crate::table::clock::{Clock, Tick};
use crate::table::{Addr, Entry};
use crate::tuple::{Direction, Tuple};

/// What became of one flow between two saves. A flow is known by its original direction and its zone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FlowChange {
    /// It is there now.
    Added(FlowRecord),
    /// It is gone.
    Removed(FlowRecord),
    /// Something of it is another.
    Changed {
        /// What it was.
        before: Box<FlowRecord>,
        /// What it is.
        after: Box<FlowRecord>,
    },
}

/// Tells what turns the flows of one save into those of another, in canonical order: IPv4 before IPv6, then by protocol,
/// addresses, ports and zone.
///
/// # Errors
/// If a record of either cannot be; or those of `each`, with which it ends.
pub fn diff_flows<E: From<NotRestored>>(
    before: &ConntrackSaved,
    after: &ConntrackSaved,
    mut each: impl FnMut(FlowChange) -> Result<(), E>,
) -> Result<(), E> {
    let (before, after) = (before.plain_records()?, after.plain_records()?);
    let (ordered_before, ordered_after) = (ordered(&before)?, ordered(&after)?);
    let (mut old, mut new) = (ordered_before.into_iter().peekable(), ordered_after.into_iter().peekable());
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => return Ok(()),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(one), Some(other)) => key(one).cmp(&key(other)),
        };
        let gone = if order.is_le() { old.next() } else { None };
        let come = if order.is_ge() { new.next() } else { None };
        match (gone, come) {
            (Some(one), Some(other)) if one == other => {}
            (Some(one), Some(other)) => {
                each(FlowChange::Changed { before: Box::new(unpacked(one)?), after: Box::new(unpacked(other)?) })?
            }
            (Some(one), None) => each(FlowChange::Removed(unpacked(one)?))?,
            (None, Some(other)) => each(FlowChange::Added(unpacked(other)?))?,
            (None, None) => return Ok(()),
        }
    }
}

/// The records of a run in canonical order.
fn ordered(run: &[u8]) -> Result<Vec<&[u8]>, NotRestored> {
    let mut records = Vec::with_capacity(run.len() / 96);
    let mut rest = run;
    while !rest.is_empty() {
        let (record, behind) = pack::split(rest)?;
        records.push(record);
        rest = behind;
    }
    records.sort_unstable_by(|one, other| key(one).cmp(&key(other)));
    Ok(records)
}

/// What a flow is known by: family, protocol, addresses, ports, zone.
fn key(record: &[u8]) -> (bool, u8, &[u8], u16, u16, u16) {
    let [kind, protocol, ..] = *record else { return (false, 0, &[], 0, 0, 0) };
    let v6 = kind & KIND_V6 != 0;
    let addresses = if v6 { 32 } else { 8 };
    let ends = addresses + 4;
    let number = |at: usize| record.get(at..).and_then(|it| it.first_chunk()).copied().map_or(0, u16::from_le_bytes);
    let zone_at = 8 + if kind & KIND_REPLY == 0 { ends } else { 2 * ends };
    let zone = if kind & KIND_ZONE == 0 { 0 } else { number(zone_at) };
    let at = record.get(8..8 + addresses).unwrap_or_default();
    (v6, protocol, at, number(8 + addresses), number(10 + addresses), zone)
}

fn unpacked(record: &[u8]) -> Result<FlowRecord, NotRestored> {
    Ok(match record.first() {
        Some(kind) if kind & KIND_V6 != 0 => of_family::<[u8; 16]>(record)?,
        _ => of_family::<[u8; 4]>(record)?,
    })
}

fn of_family<A: Addr>(record: &[u8]) -> Result<FlowRecord, Invalid> {
    let entry = Entry::<A>::read(&mut Reader::new(record), Tick::default())?;
    let (clock, now, core) = (Clock::new(Instant::ZERO, 0), Instant::ZERO, &entry.core);
    Ok(FlowRecord {
        orig: entry.tuple(Direction::Original),
        reply: entry.tuple(Direction::Reply),
        zone: core.zone(),
        status: core.status(),
        remaining: clock.remaining(core.deadline, now),
        protocol: core.protocol(clock, now),
        mark: core.mark,
        counters: core.counters(),
    })
}

impl FlowRecord {
    /// Everything but what the flow is known by, for [`hibernet_snapshot::diff::compare`].
    pub fn fields(&self) -> Value {
        let Self { orig: _, reply, zone: _, status, remaining, protocol, mark, counters } = self;
        let number = |number: u64| Value::Integer(number.into());
        let mut fields = BTreeMap::from([
            ("reply".to_owned(), Value::Text(ends(reply))),
            ("status".to_owned(), Value::Text(format!("{status:?}").replace("Status(", "").replace(')', ""))),
            ("remaining_ms".to_owned(), number(u64::try_from(remaining.as_millis()).unwrap_or(u64::MAX))),
            ("mark".to_owned(), number((*mark).into())),
            ("packets".to_owned(), Value::List(counters.packets.map(number).to_vec())),
            ("bytes".to_owned(), Value::List(counters.bytes.map(number).to_vec())),
        ]);
        let own = match protocol {
            ProtocolState::Tcp(track) => BTreeMap::from([
                ("state".to_owned(), Value::Text(track.state.name().to_owned())),
                ("sides".to_owned(), Value::List(track.sides.iter().map(side).collect())),
                (
                    "last".to_owned(),
                    Value::List(vec![
                        Value::Text(track.last_dir.to_string()),
                        Value::Text(format!("{:?}", track.last_index)),
                        number(track.last_seq.into()),
                        number(track.last_ack.into()),
                        number(track.last_len.into()),
                        number(track.last_win.into()),
                        number(track.last_wscale.into()),
                        number(track.last_flags.into()),
                        number(track.retrans.into()),
                    ]),
                ),
            ]),
            ProtocolState::Udp(track) => {
                BTreeMap::from([("stream_in_ms".to_owned(), number(track.stream_at.as_nanos() / 1_000_000))])
            }
            ProtocolState::Sctp(track) => BTreeMap::from([
                ("state".to_owned(), Value::Text(track.state.name().to_owned())),
                ("tags".to_owned(), Value::List(track.vtag.map(|tag| number(tag.into())).to_vec())),
                ("flags".to_owned(), number(track.flags.into())),
                ("last".to_owned(), Value::Text(track.last_dir.to_string())),
            ]),
            ProtocolState::Other => BTreeMap::new(),
        };
        if !own.is_empty() {
            fields.insert("protocol".to_owned(), Value::Map(own));
        }
        Value::Map(fields)
    }
}

fn side(side: &TcpSide) -> Value {
    let TcpSide { td_end, td_maxend, td_maxwin, td_maxack, scale, flags } = side;
    let number = |number: u32| Value::Integer(number.into());
    Value::Map(BTreeMap::from([
        ("td_end".to_owned(), number(*td_end)),
        ("td_maxend".to_owned(), number(*td_maxend)),
        ("td_maxwin".to_owned(), number(*td_maxwin)),
        ("td_maxack".to_owned(), number(*td_maxack)),
        ("scale".to_owned(), number((*scale).into())),
        ("flags".to_owned(), number(flags.bits().into())),
    ]))
}

fn ends(tuple: &Tuple) -> String {
    let Tuple { src, dst, proto: _, sport, dport } = tuple;
    format!("{src}:{sport} > {dst}:{dport}")
}
