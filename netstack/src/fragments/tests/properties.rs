//! What holds for all fragments.

use super::*;

fn version() -> impl Strategy<Value = Version> {
    prop::sample::select(&VERSIONS)
}

/// Places of the fragments of that many bytes: all but the last a multiple of eight.
fn places(len: usize, cuts: &[usize]) -> Vec<(usize, usize)> {
    let mut ends: BTreeSet<usize> = cuts.iter().map(|cut| cut % (len / 8) * 8).filter(|end| *end > 0).collect();
    ends.insert(len / 16 * 8);
    ends.insert(len);
    let mut start = 0;
    ends.into_iter()
        .map(|end| {
            let place = (start, end - start);
            start = end;
            place
        })
        .collect()
}

prop_compose! {
    /// A datagram and its fragments in some order, some of them more than once.
    fn shuffled()(
        version in version(),
        len in 32_usize..4000,
        cuts in prop::collection::vec(any::<usize>(), 0..20),
    )(
        order in prop::sample::subsequence((0..60).collect::<Vec<_>>(), 0..20).prop_shuffle(),
        shuffle in Just(places(len, &cuts)).prop_shuffle(),
        version in Just(version),
        len in Just(len),
    ) -> (Vec<u8>, Vec<Vec<u8>>) {
        let whole = datagram(version, len);
        let mut pieces = fragments(&whole, &shuffle);
        for at in order {
            let copy = pieces[at % pieces.len()].clone();
            pieces.insert(at % pieces.len(), copy);
        }
        (whole, pieces)
    }
}

proptest! {
    #[test]
    fn fragments_in_any_order_and_number_are_the_datagram((whole, pieces) in shuffled()) {
        let mut defragmenter = Defragmenter::default();
        let mut complete = Vec::new();
        for bytes in &pieces {
            if let Ingested::Reassembled { datagram, .. } = ingest(&mut defragmenter, bytes, Instant::ZERO).outcome {
                complete.push(datagram);
            }
        }
        prop_assert!(!complete.is_empty());
        prop_assert!(complete.iter().all(|datagram| *datagram == whole));
    }

    #[test]
    fn what_leaves_in_fragments_is_the_datagram_again((whole, pieces) in shuffled(), mtu in 100_usize..2000) {
        let mut defragmenter = Defragmenter::default();
        let mut complete = pieces.iter().filter_map(|bytes| {
            match ingest(&mut defragmenter, bytes, Instant::ZERO).outcome {
                Ingested::Reassembled { datagram, cuts } => Some((datagram, cuts)),
                _ => None,
            }
        });
        let (datagram, cuts) = complete.next().unwrap();
        for cuts in [cuts.as_ref(), None] {
            match refragment(&datagram, &parse(&datagram).unwrap(), cuts, mtu, || 7) {
                Refragmented::Whole => prop_assert!(datagram.len() <= mtu),
                Refragmented::Pieces(pieces) => {
                    prop_assert!(pieces.iter().all(|piece| piece.len() <= mtu));
                    prop_assert_eq!(&reassembled(&pieces).0, &whole);
                }
                Refragmented::TooBig => prop_assert!(false, "too big"),
            }
        }
    }

    #[test]
    fn a_save_at_any_time_changes_nothing((_, pieces) in shuffled(), at in 0_usize..30, nanos in 0_u64..40_000_000_000) {
        let mut defragmenter = Defragmenter::default();
        for bytes in pieces.iter().take(at) {
            ingest(&mut defragmenter, bytes, Instant::ZERO);
        }
        let now = Instant::from_nanos(nanos);
        let section = defragmenter.section(now);
        let saved = section.save();
        let later = Instant::from_secs(1_000_000);
        let restored = FragmentsSection::restore(saved.clone(), (), &mut Entropy::from_test_seed(1)).unwrap();
        let mut heir = restored.into_defragmenter(later).unwrap();
        heir.check_books();
        prop_assert_eq!(heir.section(later).save(), saved);
        defragmenter.expire(now);
        for bytes in pieces.iter().skip(at) {
            let (left, right) = (ingest(&mut defragmenter, bytes, now), ingest(&mut heir, bytes, later));
            prop_assert_eq!(left, right);
        }
    }

    #[test]
    fn a_flood_stays_within_bounds(
        flood in prop::collection::vec((any::<u8>(), 0_u16..64, 0_usize..100, any::<bool>(), 0_u64..3), 0..400),
        version in version(),
    ) {
        let limits = FragmentLimits { ipfrag_high_thresh: 10_000, ..FragmentLimits::default() };
        let bounds = Bounds { high_thresh: 10_000, ..V6 };
        let mut defragmenter = Defragmenter::new(limits);
        let whole = datagram(version, 8000);
        let mut now = 0;
        for (id, offset, len, more, seconds) in flood {
            now += seconds;
            let mut bytes = fragment(&whole, usize::from(offset) * 8, len, more);
            bytes[if version == Version::V4 { 5 } else { 47 }] = id;
            fill_header_checksum(&mut bytes);
            defragmenter.expire(Instant::from_secs(now));
            defragmenter.ingest(&bytes, &parse(&bytes).unwrap(), SITE, bounds, Instant::from_secs(now));
            defragmenter.check_books();
            prop_assert!(defragmenter.v4_memory.max(defragmenter.v6_memory) <= 12_500);
        }
        defragmenter.expire(Instant::from_secs(now + 61));
        prop_assert_eq!((defragmenter.v4_memory, defragmenter.v6_memory, defragmenter.queues.len()), (0, 0, 0));
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        packets in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..150), 0_u8..4), 1..30),
        mtu in 0_usize..2000,
    ) {
        let mut defragmenter = Defragmenter::default();
        for (mut bytes, kind) in packets {
            shape(&mut bytes, kind);
            let Ok(parsed) = parse(&bytes) else { continue };
            let outcome = ingest(&mut defragmenter, &bytes, Instant::ZERO).outcome;
            refragment(&bytes, &parsed, None, mtu, || 0);
            if let Ingested::Reassembled { datagram, cuts } = outcome {
                // An odd option may still make the datagram none.
                if let Ok(parsed) = parse(&datagram) {
                    refragment(&datagram, &parsed, cuts.as_ref(), mtu, || 0);
                }
            }
        }
        let section = defragmenter.section(Instant::ZERO);
        section.into_defragmenter(Instant::ZERO).unwrap();
    }
}

/// Makes bytes likely to be fragments of few datagrams.
fn shape(bytes: &mut [u8], kind: u8) {
    let len = bytes.len() as u16;
    if kind < 2 && len > 24 {
        bytes[0] = 0x45 + kind;
        bytes[2..4].copy_from_slice(&len.to_be_bytes());
        bytes[4..6].fill(0);
        bytes[6..8].iter_mut().for_each(|byte| *byte &= 0x23);
        bytes[9] = 17;
        bytes[12..20].fill(9);
        fill_header_checksum(bytes);
    } else if kind == 2 && len > 60 {
        bytes[0] = 0x60;
        bytes[4..6].copy_from_slice(&(len - 40).to_be_bytes());
        bytes[6] = 44;
        bytes[8..40].fill(9);
        bytes[40] %= 61;
        bytes[42] &= 1;
        bytes[44..48].fill(0);
    }
}
