//! The flow table under measurement.

use std::hint::black_box;

use anyhow::{Context, Result, ensure};
use hibernet_conntrack::{
    Attachment, BURST, Config, Conntrack, ConntrackSaved, Direction, Incoming, Manip, NatRange, Origin, Parsed,
    Refusal, Tuple, Validated, Zone, parse,
};
use hibernet_snapshot::codec::{decode, encode};
use hibernet_snapshot::image::Limits;
use hibernet_snapshot::{Entropy, Instant, Snapshot};

use crate::figures::Ours;
use crate::machine::{ROUNDS, cpu_time, median, median_ms, timed, together};
use crate::packets::{self, ACK, Content, SYN, SYN_ACK};
use crate::tuples::{Family, shuffle, tuples};
use crate::{Plan, own, progress};

/// Bytes that the packets of one thread walk over: index and entries of its table.
pub(crate) fn bytes_walked<F: Family>(plan: Plan) -> usize {
    plan.share() * (16 + if F::NAME == "ipv4" { 128 } else { 192 })
}

pub(crate) fn measured<F: Family>(plan: Plan) -> Result<Ours> {
    progress("our table: memory");
    let bytes_per_flow = own::bytes::<F>(plan, "ours")?;
    let all = flows::<F>(plan);
    progress("our table: new flows");
    let insert_batch_ns = inserts::<F>(plan, true)?;
    let insert_single_ns = inserts::<F>(plan, false)?;
    progress("our table: look-ups");
    let mut workers = shares::<F, _>(plan, |part| Ok(Seekers { table: filled::<F>(&part), order: part }))?;
    let lookup_batch_ns = lookups(&mut workers, true);
    let lookup_single_ns = lookups(&mut workers, false);
    drop(workers);
    progress("our table: save, restore, rehash");
    let mut table = filled::<F>(&all);
    drop(all);
    let rehash_ms = median_ms(|| timed(|| table.reseed()).0);
    let save_pause_ms = median_ms(|| timed(|| table.save()).0);
    let save_ms = median_ms(|| timed(|| encode(&table.save())).0);
    let image = encode(&table.save())?;
    drop(table);
    let restored = || -> Result<Conntrack> {
        let entropy = &mut Entropy::from_test_seed(9);
        let limits = Limits { section_bytes: 1 << 30, ..Limits::default() };
        let saved: ConntrackSaved = decode(&image, &limits)?;
        Ok(Validated::check(saved, NOW, entropy)?.rehash(entropy)?)
    };
    ensure!(restored()?.len() as usize == plan.flows, "the restored table lacks flows");
    let restore_ms = median_ms(|| timed(restored).0);
    let image_bytes_per_flow = image.len() as f64 / plan.flows as f64;
    drop(image);
    progress("our table: connections for the whole path");
    let mut workers = shares::<F, _>(plan, Router::new::<F>)?;
    progress("our table: the whole path");
    let track_batch_ns = tracks(&mut workers, BURST);
    let track_single_ns = tracks(&mut workers, 1);
    for worker in &workers {
        ensure!(worker.astray == 0, "{} packets of known flows found none", worker.astray);
    }
    Ok(Ours {
        lookup_batch_ns,
        lookup_single_ns,
        track_batch_ns,
        track_single_ns,
        insert_batch_ns,
        insert_single_ns,
        bytes_per_flow,
        save_pause_ms,
        save_ms,
        restore_ms,
        rehash_ms,
        image_bytes_per_flow,
    })
}

/// All flows.
pub(crate) fn flows<F: Family>(plan: Plan) -> Vec<Tuple> {
    tuples::<F>(0, plan.flows)
}

/// Makes a worker for each thread, of its share of the flows.
fn shares<F: Family, W>(plan: Plan, make: impl Fn(Vec<Tuple>) -> Result<W>) -> Result<Vec<W>> {
    (0..plan.threads).map(|thread| make(tuples::<F>(thread * plan.share(), plan.share()))).collect()
}

/// An empty table whose memory is there.
fn empty<F: Family>(flows: usize) -> Conntrack {
    let (entropy, capacity) = (&mut Entropy::from_test_seed(7), flows as u32);
    let mut config = Config { capacity, ..Config::default() };
    config.sysctls.max = capacity;
    #[expect(clippy::unwrap_used, reason = "the number of flows was checked")]
    let mut table = Conntrack::new(config, entropy, NOW).unwrap();
    let (v4, v6) = if F::NAME == "ipv4" { (capacity, 0) } else { (0, capacity) };
    table.prefault(v4, v6);
    table
}

/// A table with these flows, which entered it in random order.
pub(crate) fn filled<F: Family>(flows: &[Tuple]) -> Conntrack {
    let mut order = flows.to_vec();
    shuffle(&mut order, 1);
    let mut table = empty::<F>(flows.len());
    for part in order.chunks(1024) {
        let mut opened = opened(&mut table, part);
        table.confirm_burst(&mut opened, NOW, |_, _| {});
        silence(&mut table);
    }
    table
}

/// Packets that open flows, tracked and not confirmed.
fn opened(table: &mut Conntrack, flows: &[Tuple]) -> Vec<Attachment> {
    let mut bytes = Vec::new();
    let open = |tuple| {
        packets::write(&mut bytes, tuple, Content { flags: SYN, seq: 1, ack: 0, payload: 0 });
        track(table, &bytes)
    };
    flows.iter().map(open).collect::<Result<_>>().unwrap_or_default()
}

fn track(table: &mut Conntrack, datagram: &[u8]) -> Result<Attachment> {
    let parsed = parse(datagram)?;
    Ok(table.track(datagram, &parsed, Zone::default(), Origin::Link, NOW)?)
}

/// Throws away what the table has to tell.
fn silence(table: &mut Conntrack) {
    while table.next_event().is_some() {}
}

/// New flows of all threads, each into a table of its own, from the first to the last.
fn inserts<F: Family>(plan: Plan, batch: bool) -> Result<f64> {
    let mut all = Vec::new();
    for round in 0..ROUNDS {
        let mut workers = shares::<F, _>(plan, |mut part| {
            shuffle(&mut part, round as u64);
            Ok((empty::<F>(part.len()), part))
        })?;
        let ns = together(&mut workers, |(table, flows)| {
            let mut taken = 0;
            for part in flows.chunks(OPENED) {
                let mut attachments = opened(table, part);
                let (ns, refused) = timed(|| confirm(table, &mut attachments, batch));
                taken += ns;
                if refused != 0 || attachments.len() != part.len() {
                    return f64::NAN;
                }
            }
            taken as f64 / flows.len() as f64
        });
        ensure!(ns.is_finite(), "a new flow did not enter the table");
        all.push(ns);
    }
    Ok(median(ROUNDS, |round| all[round]))
}

/// How many were refused.
fn confirm(table: &mut Conntrack, attachments: &mut [Attachment], batch: bool) -> usize {
    let mut refused = 0;
    if batch {
        for burst in attachments.chunks_mut(BURST) {
            table.confirm_burst(burst, NOW, |_, result| refused += usize::from(result.is_err()));
        }
        return refused;
    }
    for attachment in attachments {
        refused += usize::from(table.confirm(attachment, NOW).is_err());
    }
    refused
}

/// Who looks flows up in a table of their own.
struct Seekers {
    table: Conntrack,
    order: Vec<Tuple>,
}

fn lookups(workers: &mut [Seekers], batch: bool) -> f64 {
    median(ROUNDS, |round| {
        for worker in workers.iter_mut() {
            shuffle(&mut worker.order, 100 + round as u64);
        }
        together(workers, |Seekers { table, order }| {
            let times = LEAST_LOOKUPS.div_ceil(order.len());
            let (ns, found) = timed(|| (0..times).map(|_| lookup(table, order, batch)).sum::<usize>());
            if found == times * order.len() { ns as f64 / found as f64 } else { f64::NAN }
        })
    })
}

/// How many were found; the end of each is put off.
fn lookup(table: &mut Conntrack, order: &[Tuple], batch: bool) -> usize {
    let mut found = 0;
    if batch {
        for burst in order.chunks(BURST) {
            table.refresh_burst(burst, Zone::default(), TIMEOUT, NOW, |_, flow| {
                found += usize::from(black_box(flow).is_some());
            });
        }
        return found;
    }
    for tuple in order {
        found += usize::from(black_box(table.refresh(tuple, Zone::default(), TIMEOUT, NOW)).is_some());
    }
    found
}

/// A table whose flows are masqueraded TCP connections, and who sends packets through it.
struct Router {
    table: Conntrack,
    /// Both directions of each connection, as its packets arrive.
    flows: Vec<[Tuple; 2]>,
    /// Payload bytes that each side of each connection has sent so far.
    sent: u32,
    /// Packets that were not part of an established connection.
    astray: usize,
    bytes: Vec<Vec<u8>>,
}

impl Router {
    fn new<F: Family>(flows: Vec<Tuple>) -> Result<Self> {
        let mut table = empty::<F>(flows.len());
        let outside = NatRange { masquerade: true, ..NatRange::address(F::address(false, 0xff_ff01)) };
        let mut bytes = Vec::new();
        let mut both = Vec::with_capacity(flows.len());
        for orig in flows {
            packets::write(&mut bytes, &orig, Content { flags: SYN, seq: 0, ack: 0, payload: 0 });
            let mut attachment = track(&mut table, &bytes)?;
            table.nat_null_bind(&mut attachment, Manip::Destination);
            table.nat_bind(&mut attachment, Manip::Source, &outside);
            table.confirm(&mut attachment, NOW)?;
            let flow = attachment.handle().and_then(|handle| table.flow(handle)).context("a flow is gone")?;
            packets::write(&mut bytes, &flow.reply, Content { flags: SYN_ACK, seq: 0, ack: 1, payload: 0 });
            track(&mut table, &bytes)?;
            packets::write(&mut bytes, &orig, Content { flags: ACK, seq: 1, ack: 1, payload: 0 });
            track(&mut table, &bytes)?;
            silence(&mut table);
            both.push([orig, flow.reply]);
        }
        let bytes = (0..BLOCK).map(|_| Vec::with_capacity(128)).collect();
        Ok(Self { table, flows: both, sent: 0, astray: 0, bytes })
    }

    /// A packet of each connection in random order, `at_once` together: what one takes.
    fn round(&mut self, seed: u64, at_once: usize) -> f64 {
        let Self { table, flows, sent, astray, bytes } = self;
        shuffle(flows, seed);
        let (mut taken, mut count) = (0, 0);
        for direction in [Direction::Original, Direction::Reply] {
            let (seq, ack) = match direction {
                Direction::Original => (*sent, *sent),
                Direction::Reply => (*sent, *sent + PAYLOAD),
            };
            let content = Content { flags: ACK, seq: 1 + seq, ack: 1 + ack, payload: PAYLOAD as usize };
            for block in flows.chunks(BLOCK) {
                for (flow, bytes) in block.iter().zip(bytes.iter_mut()) {
                    packets::write(bytes, &flow[direction.index()], content);
                }
                let begun = cpu_time();
                for burst in bytes[..block.len()].chunks_mut(at_once) {
                    *astray += pass(table, burst);
                }
                taken += cpu_time() - begun;
                count += block.len();
                silence(table);
            }
        }
        *sent += PAYLOAD;
        taken as f64 / count as f64
    }
}

/// Parses, tracks and translates packets as prerouting and postrouting do; how many were not part of a connection.
fn pass(table: &mut Conntrack, burst: &mut [Vec<u8>]) -> usize {
    let mut parsed: [Option<Parsed>; BURST] = [None; BURST];
    for (bytes, parsed) in burst.iter().zip(&mut parsed) {
        *parsed = parse(bytes).ok();
    }
    let mut attachments: [Attachment; BURST] = Default::default();
    let mut incoming = Vec::new();
    if let ([bytes], [Some(parsed), ..]) = (&*burst, &parsed) {
        if let Ok(attachment) = table.track(bytes, parsed, Zone::default(), Origin::Link, NOW) {
            attachments[0] = attachment;
        }
    } else {
        incoming.extend(burst.iter().zip(&parsed).filter_map(|(bytes, parsed)| {
            let parsed = parsed.as_ref()?;
            Some(Incoming { datagram: bytes, parsed, zone: Zone::default(), origin: Origin::Link })
        }));
        table.track_burst(&incoming, NOW, |_, number, tracked: Result<Attachment, Refusal>| {
            if let (Some(place), Ok(attachment)) = (attachments.get_mut(number), tracked) {
                *place = attachment;
            }
        });
    }
    let mut astray = 0;
    for ((bytes, attachment), parsed) in burst.iter_mut().zip(&attachments).zip(&parsed) {
        let Some(parsed) = parsed else { continue };
        let there = table.nat_translate_parsed(attachment, Manip::Destination, bytes, parsed);
        let back = table.nat_translate_parsed(attachment, Manip::Source, bytes, parsed);
        let translated = matches!((there, back), (Ok(there), Ok(back)) if there != back);
        astray += usize::from(!translated || attachment.remark().is_some());
    }
    astray
}

fn tracks(workers: &mut [Router], at_once: usize) -> f64 {
    median(ROUNDS, |round| together(workers, |worker| worker.round(200 + round as u64, at_once)))
}

/// The moment at which everything happens: what is measured does not wait.
const NOW: Instant = Instant::from_secs(1000);
/// Seconds until a flow goes that was looked up.
const TIMEOUT: u32 = 432_000;
/// New flows whose packets wait at once.
const OPENED: usize = 1 << 20;
/// Look-ups in a round at least: small tables are gone through several times.
const LEAST_LOOKUPS: usize = 200_000;
/// Packets that are made, apart from the measurement, and then go through.
const BLOCK: usize = 2048;
/// Payload of a segment.
const PAYLOAD: u32 = 8;
