//! The behaviour is Linux 6.18's: each case was put to it as packets, the outcome is what left the router.

use core::time::Duration;

use hibernet_conntrack::parse;
use hibernet_snapshot::{Entropy, Instant, Snapshot};
use proptest::prelude::*;

use super::*;
use crate::test_packets::{fill_header_checksum, tcp, udp, unhex};

mod cutting;
mod holding;
mod properties;
mod restoring;

const SITE: Site = Site { hook: Hook::Prerouting, zone: 0, link: 1 };
const V6: Bounds = Bounds { timeout: Duration::from_secs(60), high_thresh: 4 << 20 };

/// The test's end: both families behave alike unless a test says otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Version {
    V4,
    V6,
}

const VERSIONS: [Version; 2] = [Version::V4, Version::V6];

/// A datagram with that much UDP, header included; its bytes differ.
fn datagram(version: Version, segment: usize) -> Vec<u8> {
    let payload: Vec<u8> = (0..segment - 8).map(|at| (at % 251) as u8).collect();
    let mut bytes = match version {
        Version::V4 => udp("10.0.0.2:7000", "198.51.100.10:7001", &payload),
        Version::V6 => udp("[fd00:10::2]:7000", "[2001:db8:1::10]:7001", &payload),
    };
    if version == Version::V4 {
        bytes[4..6].copy_from_slice(&[0x42, 0x42]);
        fill_header_checksum(&mut bytes);
    }
    bytes
}

/// The fragment of a datagram with that part of the payload.
fn fragment(whole: &[u8], offset: usize, len: usize, more: bool) -> Vec<u8> {
    let parsed = parse(whole).unwrap();
    let header = parsed.header_len;
    let piece = &whole[header + offset..header + offset + len];
    if parsed.is_v6() {
        let [high, low] = (offset as u16 | u16::from(more)).to_be_bytes();
        let mut bytes = [&whole[..header], &[parsed.proto, 0, high, low, 0, 0, 0x42, 0x42], piece].concat();
        let len = (bytes.len() - 40) as u16;
        bytes[4..6].copy_from_slice(&len.to_be_bytes());
        bytes[6] = 44;
        return bytes;
    }
    let mut bytes = [&whole[..header], piece].concat();
    let total = bytes.len() as u16;
    bytes[2..4].copy_from_slice(&total.to_be_bytes());
    let flags = (offset / 8) as u16 | u16::from(more) << 13 | u16::from_be_bytes([whole[6], whole[7]]) & 0x4000;
    bytes[6..8].copy_from_slice(&flags.to_be_bytes());
    fill_header_checksum(&mut bytes);
    bytes
}

/// The fragments of a datagram at those places; the one that ends it says so.
fn fragments(whole: &[u8], places: &[(usize, usize)]) -> Vec<Vec<u8>> {
    let payload = whole.len() - parse(whole).unwrap().header_len;
    places.iter().map(|&(offset, len)| fragment(whole, offset, len, offset + len < payload)).collect()
}

fn ingest(defragmenter: &mut Defragmenter, bytes: &[u8], now: Instant) -> Ingest {
    let outcome = defragmenter.ingest(bytes, &parse(bytes).unwrap(), SITE, V6, now);
    defragmenter.check_books();
    outcome
}

/// What becomes of each fragment, as one word.
fn outcomes(pieces: &[Vec<u8>]) -> Vec<String> {
    let mut defragmenter = Defragmenter::default();
    pieces.iter().map(|bytes| word(&ingest(&mut defragmenter, bytes, Instant::ZERO))).collect()
}

fn word(ingest: &Ingest) -> String {
    let lost = if ingest.lost > 0 { format!(" -{}", ingest.lost) } else { String::new() };
    match &ingest.outcome {
        Ingested::Whole => format!("whole{lost}"),
        Ingested::Reassembled { datagram, .. } => format!("{} bytes{lost}", datagram.len()),
        Ingested::Queued => format!("queued{lost}"),
        Ingested::Dropped(reason) => format!("{reason}{lost}"),
    }
}

/// The datagram put together from fragments of which the last completes it.
fn reassembled(pieces: &[Vec<u8>]) -> (Vec<u8>, Option<Cuts>) {
    let mut defragmenter = Defragmenter::default();
    let mut last = None;
    for bytes in pieces {
        last = Some(ingest(&mut defragmenter, bytes, Instant::ZERO).outcome);
    }
    assert_eq!((defragmenter.v4_memory, defragmenter.v6_memory, defragmenter.arrivals.len()), (0, 0, 0));
    match last {
        Some(Ingested::Reassembled { datagram, cuts }) => (datagram, cuts),
        other => panic!("{other:?}"),
    }
}

impl Defragmenter {
    /// What is counted is what is there.
    fn check_books(&self) {
        let memory = |v4: bool| -> usize {
            self.queues.iter().filter(|(key, _)| key.src.is_ipv4() == v4).map(|(_, queue)| queue.memory()).sum()
        };
        assert_eq!((self.v4_memory, self.v6_memory), (memory(true), memory(false)));
        let deadlines: BTreeSet<_> = self.queues.iter().map(|(key, queue)| (queue.deadline(), *key)).collect();
        assert_eq!(self.deadlines, deadlines);
        let sources: BTreeSet<_> = self.queues.keys().map(|key| key.src).filter(IpAddr::is_ipv4).collect();
        assert_eq!(self.arrivals.keys().copied().collect::<BTreeSet<_>>(), sources);
    }
}

#[test]
fn bounds_are_set_by_the_kernels_names() {
    let mut limits = FragmentLimits::default();
    limits.set("net.ipv4.ipfrag_time", "7").unwrap();
    limits.set("ipfrag_high_thresh", "9000").unwrap();
    limits.set("net.ipv4.ipfrag_max_dist", " 0 ").unwrap();
    let set = FragmentLimits { ipfrag_time: 7, ipfrag_high_thresh: 9000, ipfrag_max_dist: 0 };
    assert_eq!(limits, set);
    limits.set("net.ipv4.ipfrag_low_thresh", "1").unwrap();
    for (name, value, told) in [
        ("net.ipv4.ipfrag_time", "0", "ipfrag_time: found \"0\", expected a number from 1 to 86400"),
        ("ipfrag_max_dist", "-1", "ipfrag_max_dist: found \"-1\", expected a number from 0 to 2147483647"),
        (
            "net.ipv4.ip_forward",
            "1",
            "found the name \"net.ipv4.ip_forward\", expected one of net.netfilter.nf_conntrack_* or net.ipv4.ipfrag_*",
        ),
    ] {
        assert_eq!(limits.set(name, value).unwrap_err().to_string(), told);
    }
    assert_eq!(limits, set);
}
