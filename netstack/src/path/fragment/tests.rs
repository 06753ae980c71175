use hibernet_snapshot::image::Limits;
use hibernet_snapshot::{Entropy, GenerationId};

use super::*;
use crate::test_packets::{fill_header_checksum, text, udp};
use crate::test_stack::stack;
use crate::{Decoded, Egress, RestorePolicy, Supplied};

const OPEN: &str = r#"[{"chain":"forward","action":"accept"},{"chain":"input","action":"accept"}]"#;
const GENERATION: GenerationId = GenerationId([3; 16]);

/// The halves of a datagram, as fragments.
fn halves(src: &str, dst: &str) -> [Vec<u8>; 2] {
    let whole = udp(src, dst, &[7; 1592]);
    let (v6, header) = (whole[0] >> 4 == 6, whole.len() - 1600);
    [(0, 1_u8), (800_u16, 0)].map(|(offset, more)| {
        let piece = &whole[header + usize::from(offset)..header + usize::from(offset) + 800];
        let [high, low] =
            if v6 { offset | u16::from(more) } else { (offset / 8) | (u16::from(more) << 13) }.to_be_bytes();
        let mut bytes = whole[..header].to_vec();
        if v6 {
            bytes[4..6].copy_from_slice(&808_u16.to_be_bytes());
            bytes[6] = 44;
            bytes.extend([17, 0, high, low, 0, 0, 0, 9]);
        } else {
            bytes[2..4].copy_from_slice(&820_u16.to_be_bytes());
            bytes[6..8].copy_from_slice(&[high, low]);
        }
        bytes.extend(piece);
        fill_header_checksum(&mut bytes);
        bytes
    })
}

fn sent(stack: &mut Stack) -> Vec<Egress> {
    core::iter::from_fn(|| stack.egress()).collect()
}

#[test]
fn the_sender_of_a_datagram_that_stays_incomplete_is_told_but_for_one_that_ipv4_routes_on() {
    let cases = [
        ("10.0.0.2:7000", "198.51.100.10:1", 30, None),
        ("10.0.0.2:7000", "10.0.0.1:1", 30, Some("icmp 10.0.0.1 > 10.0.0.2 type=11 code=1")),
        ("[fd00:10::2]:7000", "[2001:db8:1::10]:1", 60, Some("icmp fd00:10::1 > fd00:10::2 type=3 code=1")),
        ("[fd00:10::2]:7000", "[fd00:10::1]:1", 60, Some("icmp fd00:10::1 > fd00:10::2 type=3 code=1")),
    ];
    for (src, dst, seconds, told) in cases {
        for (half, told) in halves(src, dst).into_iter().zip([told, None]) {
            let mut stack = stack(OPEN);
            let link = stack.link("in").unwrap();
            stack.ingress(link, half.clone(), Instant::from_secs(1));
            let deadline = Instant::from_secs(1 + seconds);
            assert_eq!(stack.next_deadline(Instant::from_secs(2)), Some(deadline));
            stack.poll(deadline);
            let sent = sent(&mut stack);
            match told {
                Some(told) => {
                    assert!(sent.len() == 1 && sent[0].link == link, "{dst}");
                    assert!(text(&sent[0].datagram).starts_with(told), "{}", text(&sent[0].datagram));
                    let quoted = &sent[0].datagram[if src.starts_with('[') { 48 } else { 28 }..];
                    assert!(half.starts_with(quoted));
                }
                None => assert_eq!(sent, []),
            }
            assert_eq!(stack.stats().dropped(DropReason::FragmentTimeout), 1);
            assert_eq!(stack.stats().dropped_in_all(), 1);
        }
    }
}

#[test]
fn fragments_wait_through_a_restore() {
    for (src, dst) in [("10.0.0.2:7000", "198.51.100.10:1"), ("[fd00:10::2]:7000", "[2001:db8:1::10]:1")] {
        let [first, last] = halves(src, dst);
        let mut source = stack(OPEN);
        let link = source.link("in").unwrap();
        source.ingress(link, last, Instant::from_secs(1));
        source.poll(Instant::from_secs(3));
        let image = source.save(GENERATION, Instant::from_secs(3)).unwrap();

        let mut entropy = Entropy::from_test_seed(2);
        let now = Instant::from_secs(100);
        let validated = Decoded::open(&image, &Limits::default()).unwrap().validate(&mut entropy, now).unwrap();
        let (mut heir, _) = validated.rehash(entropy, RestorePolicy::default()).unwrap().open(Supplied::default());
        assert_eq!(heir.save(GENERATION, now).unwrap(), image);
        heir.ingress(link, first, now);
        let sent = sent(&mut heir);
        assert_eq!(sent.len(), 2);
        assert_eq!(heir.stats().forwarded, 1);
        assert_eq!(heir.flows(now).len(), 1);
    }
}

#[test]
fn every_fragment_of_a_spoilt_datagram_is_counted() {
    let [first, mut last] = halves("10.0.0.2:7000", "198.51.100.10:1");
    last[7] -= 1;
    fill_header_checksum(&mut last);
    let mut stack = stack(OPEN);
    let link = stack.link("in").unwrap();
    for bytes in [first, last] {
        stack.ingress(link, bytes, Instant::ZERO);
    }
    assert_eq!(stack.stats().dropped(DropReason::FragmentOverlap), 2);
    assert_eq!(stack.stats().received, 2);
}

#[test]
fn local_fragments_are_put_together_on_their_way_out() {
    let [first, last] = halves("203.0.113.1:7000", "198.51.100.10:1");
    let mut stack = stack(r#"[{"chain":"output","match":{"proto":"udp","dport":1},"action":"drop"}]"#);
    stack.local_output(first, Instant::ZERO).unwrap();
    let refused = stack.local_output(last, Instant::ZERO).unwrap_err();
    assert_eq!(refused.reason, DropReason::Rule);
}
