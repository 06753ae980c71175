//! What is held, put together and thrown away.

use super::*;

/// 1808 bytes at these places.
fn check(version: Version, places: &[(usize, usize)], expected: &[&str]) {
    assert_eq!(outcomes(&fragments(&datagram(version, 1808), places)), expected, "{version:?}");
}

/// The answer when all of it is there.
fn complete(version: Version) -> &'static str {
    match version {
        Version::V4 => "1828 bytes",
        Version::V6 => "1848 bytes",
    }
}

#[test]
fn any_order_gives_the_datagram() {
    for version in VERSIONS {
        let whole = datagram(version, 1808);
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0], [2, 0, 1]] {
            let pieces = fragments(&whole, &[(0, 400), (400, 800), (1200, 608)]);
            let (datagram, cuts) = reassembled(&order.map(|at| pieces[at].clone()));
            assert_eq!(datagram, whole);
            let cuts = cuts.unwrap();
            let header = whole.len() - 1808;
            assert_eq!(cuts.ends, [header + 400, header + 1200, header + 1808]);
            assert_eq!(cuts.largest, pieces[1].len());
        }
    }
}

#[test]
fn a_repeated_fragment_is_ignored_whatever_it_says() {
    for version in VERSIONS {
        let dup = "fragment_duplicate";
        check(version, &[(0, 400), (400, 800), (400, 800), (1200, 608)], &["queued", "queued", dup, complete(version)]);
        check(version, &[(0, 400), (400, 800), (480, 80), (1200, 608)], &["queued", "queued", dup, complete(version)]);
        check(
            version,
            &[(0, 400), (1400, 408), (1600, 208), (400, 1000)],
            &["queued", "queued", dup, complete(version)],
        );
        let whole = datagram(version, 1808);
        let mut other = whole.clone();
        other[1000] ^= 0xff;
        let mut pieces = fragments(&whole, &[(0, 400), (400, 800), (1200, 608)]);
        pieces.insert(2, fragment(&other, 400, 800, true));
        assert_eq!(reassembled(&pieces).0, whole);
    }
}

#[test]
fn a_fragment_within_what_came_in_one_run_is_a_repetition() {
    for version in VERSIONS {
        let words = ["queued", "queued", "fragment_duplicate", complete(version)];
        check(version, &[(0, 400), (400, 800), (320, 400), (1200, 608)], &words);
    }
}

#[test]
fn a_fragment_over_two_runs_is_an_overlap_even_where_they_touch() {
    for version in VERSIONS {
        let words = ["queued", "queued", "fragment_overlap -2", "queued"];
        check(version, &[(400, 400), (0, 400), (200, 400), (800, 1008)], &words);
        let words = ["queued", "queued", "queued", "fragment_overlap -3", "queued"];
        check(version, &[(800, 400), (0, 400), (400, 400), (200, 400), (1200, 608)], &words);
        check(version, &[(800, 400), (0, 400), (400, 400), (600, 400), (1200, 608)], &words);
    }
}

#[test]
fn an_overlap_ends_the_whole_datagram() {
    for version in VERSIONS {
        check(version, &[(0, 400), (320, 880), (1200, 608)], &["queued", "fragment_overlap -1", "queued"]);
        let words = ["queued", "queued", "fragment_overlap -2", "queued", "queued"];
        check(version, &[(0, 400), (800, 400), (400, 800), (1200, 608), (400, 400)], &words);
    }
}

#[test]
fn an_empty_fragment_ends_the_datagram_in_ipv4_alone() {
    let places = [(0, 400), (400, 0), (400, 1408)];
    check(Version::V4, &places, &["queued", "fragment_invalid -1", "queued"]);
    check(Version::V6, &places, &["queued", "fragment_invalid", "1848 bytes"]);
}

#[test]
fn an_empty_last_fragment_of_ipv6_says_where_the_end_is() {
    let whole = datagram(Version::V6, 1808);
    let pieces = [fragment(&whole, 400, 0, false), fragment(&whole, 0, 400, true)];
    assert_eq!(outcomes(&pieces), ["fragment_invalid", "440 bytes"]);
}

#[test]
fn a_second_end_ends_the_datagram_in_ipv4_alone() {
    for (version, refused, after) in
        [(Version::V4, "fragment_invalid -2", "queued"), (Version::V6, "fragment_invalid", "1848 bytes")]
    {
        let whole = datagram(version, 3000);
        let first = fragment(&whole, 0, 400, true);
        let middle = fragment(&whole, 400, 800, true);
        let last = fragment(&whole, 1200, 608, false);
        for odd in
            [fragment(&whole, 1200, 408, false), fragment(&whole, 1200, 708, false), fragment(&whole, 1808, 200, true)]
        {
            let pieces = [first.clone(), last.clone(), odd, middle.clone()];
            assert_eq!(outcomes(&pieces), ["queued", "queued", refused, after]);
        }
        let early = fragment(&whole, 400, 200, false);
        let pieces = [first, fragment(&whole, 800, 400, true), early, middle.clone(), last];
        let words = outcomes(&pieces);
        assert_eq!(words[2], refused);
    }
}

#[test]
fn an_odd_length_is_cut_in_ipv4_and_ends_the_datagram_in_ipv6() {
    let whole = datagram(Version::V4, 1808);
    let mut pieces = vec![fragment(&whole, 0, 404, true), fragment(&whole, 400, 1408, false)];
    assert_eq!(reassembled(&pieces).0, whole);
    pieces[0] = fragment(&whole, 0, 4, true);
    assert_eq!(outcomes(&pieces), ["fragment_invalid", "queued"]);

    let whole = datagram(Version::V6, 1808);
    let odd = fragment(&whole, 400, 804, true);
    let mut pieces = fragments(&whole, &[(0, 400), (0, 400), (400, 800), (1200, 608)]);
    pieces.insert(1, odd);
    assert_eq!(outcomes(&pieces), ["queued", "whole -1", "queued", "queued", "1848 bytes"]);
}

#[test]
fn more_than_a_datagram_can_hold_is_refused() {
    let whole = datagram(Version::V4, 65_515);
    let mut last = fragment(&whole, 65_408, 107, false);
    assert_eq!(outcomes(&[fragment(&whole, 0, 400, true), last.clone()]), ["queued", "queued"]);
    last[6..8].copy_from_slice(&(0x1ff8_u16).to_be_bytes());
    fill_header_checksum(&mut last);
    assert_eq!(outcomes(&[fragment(&whole, 0, 400, true), last]), ["queued", "fragment_invalid -1"]);

    let whole = datagram(Version::V6, 1808);
    let mut last = fragment(&whole, 0, 100, false);
    last[42..44].copy_from_slice(&65_528_u16.to_be_bytes());
    let mut pieces = fragments(&whole, &[(0, 400), (400, 1408)]);
    pieces.insert(1, last);
    assert_eq!(outcomes(&pieces), ["queued", "fragment_invalid", "1848 bytes"]);
}

#[test]
fn the_largest_datagram_of_the_smallest_fragments_is_put_together() {
    for version in VERSIONS {
        let whole = datagram(version, 16_384);
        let places: Vec<_> = (0..2048).map(|at| (at * 8, 8)).collect();
        assert_eq!(reassembled(&fragments(&whole, &places)).0, whole);
        let whole = datagram(version, 16_392);
        let places: Vec<_> = (0..2049).map(|at| (at * 8, 8)).collect();
        assert_eq!(outcomes(&fragments(&whole, &places)).last().unwrap(), "fragment_memory -2048");
    }
}

#[test]
fn congestion_notification_is_merged_or_refused() {
    for version in VERSIONS {
        let whole = datagram(version, 1808);
        let with = |bytes: &[u8], ecn: u8| {
            let mut bytes = bytes.to_vec();
            bytes[1] |= if version == Version::V4 { ecn } else { ecn << 4 };
            fill_header_checksum(&mut bytes);
            bytes
        };
        let pieces = fragments(&whole, &[(0, 400), (400, 1408)]);
        for (first, last, merged) in [
            (1, 3, Some(3)),
            (2, 3, Some(3)),
            (3, 1, Some(3)),
            (3, 3, Some(3)),
            (1, 2, Some(1)),
            (2, 1, Some(2)),
            (0, 0, Some(0)),
        ] {
            let pieces = [with(&pieces[0], first), with(&pieces[1], last)];
            assert_eq!(Some(reassembled(&pieces).0), merged.map(|ecn| with(&whole, ecn)));
        }
        for (first, last) in [(0, 3), (3, 0), (0, 1), (1, 0), (0, 2)] {
            let pieces = [with(&pieces[0], first), with(&pieces[1], last)];
            assert_eq!(outcomes(&pieces), ["queued", "fragment_invalid -1"]);
        }
    }
}

#[test]
fn the_first_fragment_gives_the_header() {
    let whole = datagram(Version::V4, 1808);
    let mut pieces = fragments(&whole, &[(400, 1408), (0, 400)]);
    (pieces[0][1], pieces[0][8]) = (0x20, 20);
    (pieces[1][1], pieces[1][8]) = (0x10, 30);
    pieces.iter_mut().for_each(|bytes| fill_header_checksum(bytes));
    let (datagram, _) = reassembled(&pieces);
    assert_eq!((datagram[1], datagram[8]), (0x10, 30));
}

#[test]
fn dont_fragment_stays_if_one_of_the_largest_had_it() {
    let plain = datagram(Version::V4, 1808);
    let mut kept = plain.clone();
    kept[6] = 0x40;
    fill_header_checksum(&mut kept);
    for (which, dont_fragment) in [([0, 0, 0], false), ([1, 1, 1], true), ([0, 1, 0], true), ([1, 0, 1], false)] {
        let places = [(0, 400), (400, 800), (1200, 608)];
        let pieces: Vec<_> = places
            .iter()
            .zip(which)
            .map(|(&(offset, len), kind)| fragment([&plain, &kept][kind], offset, len, offset < 1200))
            .collect();
        let (datagram, cuts) = reassembled(&pieces);
        assert_eq!((datagram[6] == 0x40, cuts.unwrap().dont_fragment), (dont_fragment, dont_fragment));
    }
}

#[test]
fn a_datagram_is_known_by_ends_and_identification_and_in_ipv4_by_protocol() {
    for version in VERSIONS {
        let whole = datagram(version, 1808);
        let [first, last] = fragments(&whole, &[(0, 400), (400, 1408)]).try_into().unwrap();
        let id = if version == Version::V4 { 5 } else { 47 };
        let proto = if version == Version::V4 { 9 } else { 40 };
        let changed = |at: usize, value: u8| {
            let mut bytes: Vec<u8> = last.clone();
            bytes[at] = value;
            fill_header_checksum(&mut bytes);
            bytes
        };
        assert_eq!(outcomes(&[first.clone(), changed(id, 1), last.clone()]), ["queued", "queued", complete(version)]);
        let by_protocol = if version == Version::V4 { "queued" } else { complete(version) };
        assert_eq!(outcomes(&[first, changed(proto, 6)]), ["queued", by_protocol]);
    }
}

#[test]
fn a_zone_or_hook_of_its_own_is_a_datagram_of_its_own_and_a_link_only_for_its_own_addresses() {
    for (addr, links_differ) in [("[2001:db8:1::10]:1", false), ("[fe80::1]:1", true), ("[ff02::1]:1", true)] {
        let whole = udp("[fd00:10::2]:7000", addr, &[7; 1000]);
        let [first, last] = fragments(&whole, &[(0, 400), (400, 608)]).try_into().unwrap();
        let other = |change: fn(&mut Site)| {
            let mut site = SITE;
            change(&mut site);
            let mut defragmenter = Defragmenter::default();
            ingest(&mut defragmenter, &first, Instant::ZERO);
            let met = defragmenter.ingest(&last, &parse(&last).unwrap(), site, V6, Instant::ZERO);
            met.outcome == Ingested::Queued
        };
        assert!(other(|site| site.zone = 1));
        assert!(other(|site| site.hook = Hook::Output));
        assert_eq!(other(|site| site.link = 2), links_differ);
        assert!(!other(|_| {}));
    }
}

#[test]
fn an_ipv6_first_fragment_without_its_headers_is_not_held() {
    let whole = tcp("[fd00:10::2]:1", "[2001:db8:1::10]:80", "S", 1, 0, &[7; 100]);
    let words = |place| outcomes(&fragments(&whole, &[place])).remove(0);
    assert_eq!(words((0, 8)), "whole");
    assert_eq!(words((0, 16)), "whole");
    assert_eq!(words((0, 24)), "queued");
    assert_eq!(words((8, 112)), "queued");
}

#[test]
fn an_atomic_fragment_is_a_whole_datagram() {
    let whole = datagram(Version::V6, 100);
    let atomic = fragment(&whole, 0, 100, false);
    assert_eq!(reassembled(core::slice::from_ref(&atomic)), (whole.clone(), None));
    // It has nothing to do with fragments that wait under the same identification (RFC 6946).
    let pieces = [fragment(&datagram(Version::V6, 1808), 0, 400, true), atomic];
    assert_eq!(outcomes(&pieces), ["queued", "140 bytes"]);
}

#[test]
fn time_counts_from_the_first_to_come_and_is_not_prolonged() {
    for (version, seconds) in [(Version::V4, 30), (Version::V6, 60)] {
        let pieces = fragments(&datagram(version, 1808), &[(0, 400), (400, 800), (1200, 608)]);
        let mut defragmenter = Defragmenter::default();
        ingest(&mut defragmenter, &pieces[0], Instant::from_secs(1));
        ingest(&mut defragmenter, &pieces[1], Instant::from_secs(20));
        let deadline = Instant::from_secs(1 + seconds);
        assert_eq!(defragmenter.next_deadline(), Some(deadline));
        assert_eq!(defragmenter.expire(Instant::from_nanos(deadline.as_nanos() - 1)), []);
        let expired = defragmenter.expire(deadline);
        assert_eq!(expired, [Expired { first: Some(pieces[0].clone()), lost: 2, site: SITE }]);
        assert_eq!((defragmenter.next_deadline(), defragmenter.v4_memory, defragmenter.v6_memory), (None, 0, 0));
        assert_eq!(ingest(&mut defragmenter, &pieces[2], deadline).outcome, Ingested::Queued);
        assert_eq!(defragmenter.expire(Instant::from_secs(1000))[0].first, None);
    }
}

#[test]
fn ipv4_fragments_far_apart_do_not_belong_together() {
    for (between, words) in [(63, ["queued", "1828 bytes"]), (64, ["queued -1", "queued"])] {
        let pieces = fragments(&datagram(Version::V4, 1808), &[(0, 400), (400, 800), (1200, 608)]);
        let mut defragmenter = Defragmenter::default();
        ingest(&mut defragmenter, &pieces[0], Instant::ZERO);
        for id in 0..between {
            let mut other = pieces[0].clone();
            other[4] = id;
            fill_header_checksum(&mut other);
            ingest(&mut defragmenter, &other, Instant::ZERO);
        }
        let rest = pieces[1..].iter().map(|bytes| word(&ingest(&mut defragmenter, bytes, Instant::ZERO)));
        assert_eq!(rest.collect::<Vec<_>>(), words);
        // The datagram may still be completed by what was thrown away, when it comes again.
        let again = word(&ingest(&mut defragmenter, &pieces[0], Instant::ZERO));
        assert_eq!(again, if between == 64 { "1828 bytes" } else { "queued" });
    }
}

#[test]
fn a_full_memory_begins_no_datagram_and_lets_those_begun_go_on() {
    let limits = FragmentLimits { ipfrag_high_thresh: 20_000, ipfrag_max_dist: 0, ..FragmentLimits::default() };
    let bounds = Bounds { high_thresh: 20_000, ..V6 };
    for version in VERSIONS {
        let mut defragmenter = Defragmenter::new(limits);
        let pieces = fragments(&datagram(version, 1808), &[(0, 400), (400, 1408)]);
        let with_id = |bytes: &[u8], id: u8| {
            let mut bytes = bytes.to_vec();
            bytes[if version == Version::V4 { 5 } else { 47 }] = id;
            fill_header_checksum(&mut bytes);
            bytes
        };
        let mut take = |bytes: Vec<u8>| {
            let outcome = defragmenter.ingest(&bytes, &parse(&bytes).unwrap(), SITE, bounds, Instant::ZERO);
            assert!(defragmenter.v4_memory.max(defragmenter.v6_memory) <= 25_000);
            word(&outcome)
        };
        let begun = (0..=255).filter(|id| take(with_id(&pieces[0], *id)) == "queued").count();
        assert!((15..30).contains(&begun), "{begun}");
        assert_eq!(take(with_id(&pieces[0], 255)), "fragment_memory");
        assert_eq!(take(with_id(&pieces[1], 0)), complete(version));
        assert_eq!(take(with_id(&pieces[0], 255)), "queued");
    }
}
