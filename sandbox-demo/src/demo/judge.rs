//! Whether the demonstration shows what it must, point by point.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::time::Duration;

use hibernet_snapshot::Instant;

use super::broken::Broken;
use super::carried::Carried;
use super::carried::Expected;
use super::figures::Figures;
use crate::control::RestoreSummary;
use crate::peers::DatagramReport;
use crate::peers::KernelCounters;
use crate::peers::StreamReport;

/// The figures, and every point that failed.
pub(super) fn judge(carried: &Carried, control: &Broken) -> (Figures, Vec<String>) {
    let streams = compare_streams(&carried.guest.streams, &carried.world.streams);
    let figures = figures(carried, control, &streams);
    let mut points = Points::default();
    judge_cycles(carried, &mut points);
    judge_streams(&figures, &streams, &mut points);
    let Expected { datagram_flows, pings, .. } = carried.expected;
    judge_datagrams("UDP", datagram_flows, &carried.guest.udp, &carried.world.udp, carried, &mut points);
    judge_datagrams("ping", pings, &carried.guest.ping, &carried.world.ping, carried, &mut points);
    let damaged = counted(carried, |kernel| kernel.bad_checksums);
    points.expect(damaged == 0, || format!("the peers' kernels saw {damaged} damaged segments"));
    points.expect(figures.keys_distinct, || "a key occurs in two processes, or none was shown".to_owned());
    points.expect(control.broken * 100 >= control.streams * 99, || {
        format!(
            "only {} of {} streams broke in the control, so the run proves nothing",
            control.broken, control.streams
        )
    });
    (figures, points.failed)
}

/// How the ends of all streams compare.
#[derive(Debug, Default, PartialEq, Eq)]
struct Streams {
    matched: usize,
    mismatched: usize,
    lost_bytes: u64,
    resets: u64,
    failures: BTreeSet<String>,
}

#[derive(Default)]
struct Points {
    failed: Vec<String>,
}

impl Points {
    fn expect(&mut self, held: bool, point: impl FnOnce() -> String) {
        if !held {
            self.failed.push(point());
        }
    }
}

/// Joins the ends of every forwarded stream by its number. A stream that lacks an end, or did not end in order, is mismatched.
/// Of a stream that ends in the gateway all has to come back.
fn compare_streams(guest: &[StreamReport], world: &[StreamReport]) -> Streams {
    let by_id: BTreeMap<u64, &StreamReport> = world.iter().map(|end| (end.id, end)).collect();
    let mut streams = Streams::default();
    for end in guest.iter().chain(world) {
        streams.resets += u64::from(end.reset);
        streams.failures.extend(end.failure.clone());
    }
    for end in guest.iter().chain(world).filter(|end| end.terminated) {
        streams.lost_bytes += end.sent.abs_diff(end.received);
        if end.sent > 0 && end.sent_hash == end.received_hash && end.closed && end.failure.is_none() {
            streams.matched += 1;
        } else {
            streams.mismatched += 1;
        }
    }
    for near in guest.iter().filter(|end| !end.terminated) {
        let Some(far) = by_id.get(&near.id) else {
            streams.mismatched += 1;
            continue;
        };
        streams.lost_bytes += near.sent.abs_diff(far.received) + far.sent.abs_diff(near.received);
        let equal = near.sent_hash == far.received_hash && far.sent_hash == near.received_hash;
        if equal && near.closed && far.closed && near.failure.is_none() && far.failure.is_none() {
            streams.matched += 1;
        } else {
            streams.mismatched += 1;
        }
    }
    streams
}

fn figures(carried: &Carried, control: &Broken, streams: &Streams) -> Figures {
    let cycles = &carried.cycles;
    let all_keys: Vec<&String> = carried.keys.iter().flatten().collect();
    let distinct: BTreeSet<&String> = all_keys.iter().copied().collect();
    Figures {
        mode: carried.expected.mode,
        links: carried.expected.links,
        why: String::new(),
        connections: carried.expected.streams,
        terminated: carried.expected.terminated,
        udp_flows: carried.world.udp.flows,
        kept: cycles.iter().map(|cycle| cycle.restored.kept).collect(),
        reset: cycles.iter().map(|cycle| cycle.restored.reset).collect(),
        dropped: cycles.iter().map(|cycle| cycle.restored.dropped).collect(),
        streams_kept: cycles.iter().map(|cycle| cycle.restored.streams_kept).collect(),
        streams_reset: cycles.iter().map(|cycle| cycle.restored.streams_reset).collect(),
        cookies_lost: cycles.iter().map(|cycle| cycle.restored.cookies_lost).collect(),
        mismatched_streams: streams.mismatched,
        rsts_seen: counted(carried, |kernel| kernel.resets_sent.max(kernel.resets_seen)).max(streams.resets),
        lost_bytes: streams.lost_bytes,
        save_pause_ms: cycles.iter().map(|cycle| cycle.save.pause_ms).collect(),
        save_ms: cycles.iter().map(|cycle| cycle.save.save_ms).collect(),
        image_bytes: cycles.iter().map(|cycle| cycle.save.bytes).collect(),
        restore_ms: cycles.iter().map(|cycle| cycle.restored.restore_ms).collect(),
        rehash_ms: cycles.iter().map(|cycle| cycle.restored.rehash_ms).collect(),
        list_equal: cycles.iter().map(|cycle| cycle.list_equal).collect(),
        canary_hits: cycles.iter().map(|cycle| cycle.canary.hits).collect(),
        keys_distinct: carried.keys.iter().all(|keys| !keys.is_empty()) && distinct.len() == all_keys.len(),
        control_broken: control.broken,
        seconds: 0.0,
    }
}

fn judge_cycles(carried: &Carried, points: &mut Points) {
    for (number, cycle) in carried.cycles.iter().enumerate().map(|(index, cycle)| (index + 1, cycle)) {
        let Expected { mode: _, links: _, streams, terminated, datagram_flows, pings } = carried.expected;
        let expected = streams + datagram_flows + pings;
        points.expect(cycle.under_traffic == streams, || {
            format!("save {number}: only {} streams were moving", cycle.under_traffic)
        });
        points.expect(cycle.save.flows >= expected, || {
            format!("save {number}: found {} flows, expected at least {expected}", cycle.save.flows)
        });
        points.expect(cycle.restored.kept == cycle.save.flows as u64, || {
            format!("restore {number}: kept {} of {} flows", cycle.restored.kept, cycle.save.flows)
        });
        points.expect(cycle.restored.reset == 0 && cycle.restored.dropped == 0, || {
            format!("restore {number}: reset {}, dropped {}", cycle.restored.reset, cycle.restored.dropped)
        });
        let RestoreSummary { streams_kept, streams_reset, resets, cookies_lost, .. } = &cycle.restored;
        points.expect(*streams_kept == terminated as u64 && *streams_reset == 0 && *cookies_lost == 0, || {
            format!(
                "restore {number}: of {terminated} streams of its own {streams_kept} kept, {streams_reset} reset ({}), \
                 {cookies_lost} cookies lost",
                resets.join("; ")
            )
        });
        points.expect(cycle.list_equal, || format!("restore {number}: the list differs from the saved one"));
        points.expect(cycle.canary.hits == 0, || {
            format!("save {number}: {} traces of keys in the image", cycle.canary.hits)
        });
        points.expect(cycle.canary.planted_found, || {
            format!("save {number}: the scan does not find a planted key, so it proves nothing")
        });
    }
}

fn judge_streams(figures: &Figures, streams: &Streams, points: &mut Points) {
    points.expect(streams.matched == figures.connections, || {
        let why = streams.failures.iter().cloned().collect::<Vec<_>>().join(", ");
        format!("{} of {} streams ended with equal hashes ({why})", streams.matched, figures.connections)
    });
    points.expect(figures.lost_bytes == 0, || format!("{} bytes were lost or repeated", figures.lost_bytes));
    points.expect(figures.rsts_seen == 0, || format!("{} RSTs were seen", figures.rsts_seen));
}

fn judge_datagrams(
    kind: &str,
    flows: usize,
    guest: &DatagramReport,
    world: &DatagramReport,
    carried: &Carried,
    points: &mut Points,
) {
    let outages = carried.cycles.iter().map(|cycle| cycle.outage).collect::<Vec<_>>();
    // What was under way when the gateway stopped is lost with it: on a busy machine a trip takes its time.
    let slack = guest.longest_trip.max(nanos(SLACK));
    let outside: Vec<u64> = guest.lost_at.iter().copied().filter(|sent| !falls_into(*sent, &outages, slack)).collect();
    points.expect(outside.is_empty(), || {
        format!(
            "{kind}: {} of {} lost numbers were lost outside the pauses, {} (the links overran {} times)",
            outside.len(),
            guest.lost_at.len(),
            since_outages(&outside, &outages),
            carried.overruns
        )
    });
    points.expect(world.flows == flows, || format!("{kind}: {} of {flows} flows reached the world", world.flows));
    points.expect(guest.received > 0 || flows == 0, || format!("{kind}: nothing came back"));
    let duplicates = guest.duplicates + world.duplicates;
    points.expect(duplicates == 0, || format!("{kind}: {duplicates} numbers came twice"));
    let moved = guest.moved + world.moved;
    points.expect(moved == 0, || format!("{kind}: {moved} flows changed their external port or id"));
}

/// Whether a datagram sent then could have met a gateway that stood still, on its way out or back.
fn falls_into(sent: u64, outages: &[(Instant, Instant)], slack: u64) -> bool {
    outages
        .iter()
        .any(|(from, to)| (from.as_nanos().saturating_sub(slack)..=to.as_nanos().saturating_add(slack)).contains(&sent))
}

/// When the losses were, counted from the end of the last pause before each.
fn since_outages(lost: &[u64], outages: &[(Instant, Instant)]) -> String {
    let since = |sent: &u64| {
        let ends = outages.iter().map(|(_, to)| to.as_nanos());
        match ends.enumerate().rfind(|(_, to)| to < sent) {
            Some((index, to)) => format!("{} ms after pause {}", (sent - to) / 1_000_000, index + 1),
            None => "before the first pause".to_owned(),
        }
    };
    let places: BTreeSet<String> = lost.iter().map(since).collect();
    places.into_iter().take(SHOWN_LOSSES).collect::<Vec<_>>().join(", ")
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// How far a counter of both kernels moved while the streams were carried.
fn counted(carried: &Carried, counter: fn(&KernelCounters) -> u64) -> u64 {
    let sum = |counters: &[KernelCounters; 2]| counters.iter().map(counter).sum::<u64>();
    sum(&carried.after).saturating_sub(sum(&carried.before))
}

/// Losses described one by one.
const SHOWN_LOSSES: usize = 5;
/// How long a datagram may at least be under way.
const SLACK: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    fn end(id: u64, sent: u64, received: u64) -> StreamReport {
        StreamReport {
            id,
            terminated: false,
            sent,
            sent_hash: sent.to_string(),
            received,
            received_hash: received.to_string(),
            reset: false,
            failure: None,
            closed: true,
        }
    }

    #[test]
    fn a_stream_matches_when_both_ends_saw_the_same() {
        let streams = compare_streams(&[end(1, 10, 20)], &[end(1, 20, 10)]);
        assert_eq!(streams, Streams { matched: 1, ..Streams::default() });
    }

    #[test]
    fn a_missing_byte_a_missing_end_and_a_reset_are_seen() {
        let lost = compare_streams(&[end(1, 10, 20)], &[end(1, 20, 9)]);
        assert_eq!((lost.mismatched, lost.lost_bytes), (1, 1));
        assert_eq!(compare_streams(&[end(1, 0, 0)], &[]).mismatched, 1);
        let reset = StreamReport { reset: true, failure: Some("reset".to_owned()), ..end(1, 0, 0) };
        let streams = compare_streams(&[reset], &[end(1, 0, 0)]);
        assert_eq!((streams.mismatched, streams.resets), (1, 1));
    }

    #[test]
    fn of_a_stream_that_ends_in_the_gateway_all_has_to_come_back() {
        let ending = |sent, received| StreamReport { terminated: true, ..end(1, sent, received) };
        assert_eq!(compare_streams(&[ending(9, 9)], &[]), Streams { matched: 1, ..Streams::default() });
        assert_eq!(compare_streams(&[], &[ending(9, 9)]), Streams { matched: 1, ..Streams::default() });
        let lost = compare_streams(&[ending(9, 8)], &[]);
        assert_eq!((lost.mismatched, lost.lost_bytes), (1, 1));
        assert_eq!(compare_streams(&[ending(0, 0)], &[]).mismatched, 1);
    }

    #[test]
    fn a_loss_counts_as_in_the_pause_only_near_one() {
        let outages = [(Instant::from_millis(1000), Instant::from_millis(1050))];
        let at = |millis| Instant::from_millis(millis).as_nanos();
        assert!(falls_into(at(1020), &outages, nanos(SLACK)));
        assert!(falls_into(at(950), &outages, nanos(SLACK)));
        assert!(!falls_into(at(800), &outages, nanos(SLACK)));
        assert!(!falls_into(at(1300), &outages, nanos(SLACK)));
    }
}
