//! Held fragments that come back.

use super::*;

type Change = fn(&mut Section);
type Section = <FragmentsSection as Snapshot>::Saved;

/// Reassembly with two runs of one datagram and the end of another.
fn waiting(version: Version) -> Defragmenter {
    let mut defragmenter = Defragmenter::default();
    let pieces = fragments(&datagram(version, 1808), &[(0, 400), (800, 400)]);
    let mut other = fragment(&datagram(version, 1808), 1200, 608, false);
    other[if version == Version::V4 { 5 } else { 47 }] = 0x99;
    fill_header_checksum(&mut other);
    for bytes in [&pieces[0], &pieces[1], &other] {
        ingest(&mut defragmenter, bytes, Instant::from_secs(5));
    }
    defragmenter
}

fn restored(saved: Section, now: Instant) -> Result<Defragmenter, Invalid> {
    FragmentsSection::restore(saved, (), &mut Entropy::from_test_seed(1))?.into_defragmenter(now)
}

#[test]
fn the_rest_of_a_datagram_may_come_after_a_restore() {
    for version in VERSIONS {
        let saved = waiting(version).section(Instant::from_secs(15)).save();
        let mut heir = restored(saved, Instant::from_secs(1000)).unwrap();
        heir.check_books();
        let wait = if version == Version::V4 { 20 } else { 50 };
        assert_eq!(heir.next_deadline(), Some(Instant::from_secs(1000 + wait)));
        let whole = datagram(version, 1808);
        let rest = fragments(&whole, &[(400, 400), (1200, 608)]);
        let now = Instant::from_secs(1001);
        assert_eq!(ingest(&mut heir, &rest[0], now).outcome, Ingested::Queued);
        let Ingested::Reassembled { datagram, .. } = ingest(&mut heir, &rest[1], now).outcome else {
            panic!("not complete")
        };
        assert_eq!(datagram, whole);
    }
}

#[test]
fn what_has_expired_is_not_written() {
    let saved = waiting(Version::V4).section(Instant::from_secs(35)).save();
    assert_eq!(saved, Defragmenter::default().section(Instant::ZERO).save());
}

#[test]
fn a_section_that_cannot_be_is_refused_with_the_field() {
    let refusal = |version: Version, change: Change| {
        let mut saved = waiting(version).section(Instant::from_secs(15)).save();
        change(&mut saved);
        restored(saved, Instant::ZERO).map(|_| ()).unwrap_err().field
    };
    let cases: [(Change, &str); 16] = [
        (|saved| saved.limits.ipfrag_time = 0, "limits.ipfrag_time"),
        (|saved| saved.queues[0].1.remaining = Duration::ZERO.save(), "queues[0].remaining"),
        (|saved| saved.queues[1].0.dst = IpAddr::from([0; 16]), "queues[1].key"),
        (|saved| saved.queues[0].0.site.link = 3, "queues[0].key"),
        (|saved| saved.queues[0].0.src = IpAddr::from([10, 0, 0, 1]), "queues[0].head"),
        (|saved| saved.queues[0].1.head.clear(), "queues[0].head"),
        (|saved| saved.queues[1].1.head = vec![0x45; 20], "queues[1].head"),
        (|saved| saved.queues[0].1.head[10] ^= 1, "queues[0].head"),
        (|saved| saved.queues[0].1.pieces[1].0 = 808, "queues[0].runs"),
        (|saved| saved.queues[0].1.pieces[1].0 = 392, "queues[0].pieces"),
        (|saved| saved.queues[0].1.pieces[0].1.truncate(399), "queues[0].pieces"),
        (|saved| saved.queues[0].1.runs.truncate(1), "queues[0].runs"),
        (|saved| saved.queues[0].1.runs.push(1600), "queues[0].runs"),
        (|saved| saved.queues[0].1.end = 1600, "queues[0].end"),
        (|saved| saved.queues[0].1.largest = vec![400, 500], "queues[0].largest"),
        (|saved| saved.arrivals.clear(), "arrivals"),
    ];
    for (change, field) in cases {
        assert_eq!(refusal(Version::V4, change), field);
    }
    assert_eq!(refusal(Version::V6, |saved| saved.queues[0].0.proto = 17), "queues[0].key");
    assert_eq!(refusal(Version::V6, |saved| saved.arrivals.push((IpAddr::from([1, 2, 3, 4]), 1))), "arrivals");
}
