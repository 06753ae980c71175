use hibernet_conntrack::{FlowRecord, ProtocolState, TcpSegmentKind, parse};
use hibernet_snapshot::Instant;
use proptest::prelude::*;
use smoltcp::wire::Ipv4Packet;

use super::*;
use crate::packet::Packet;
use crate::test_packets::{fill_header_checksum, tcp, text, udp};
use crate::test_stack::{Version, config, outcome, play, stack};
use crate::{Cidr, Egress, LinkId, MacAddr, Medium, Route, Ruleset, Stack, StackConfig, StackEvent};

mod edges;

const VERSIONS: [Version; 2] = [Version::V4, Version::V6];
const MASQUERADE: &str = r#"[{"chain":"srcnat","match":{"oif":"out"},"action":"masquerade"}]"#;

fn end(version: Version, name: &str, port: u16) -> String {
    std::net::SocketAddr::new(version.addr(name), port).to_string()
}

/// What a link says of a datagram whose checksum is missing: with nonsense in the field, as the pseudo header is the stack's.
fn left_out(datagram: &mut [u8], segmentation: Option<Segmentation>) -> Offload {
    let parsed = parse(datagram).unwrap();
    let offset = if parsed.proto == 6 { TCP_CHECKSUM } else { UDP_CHECKSUM };
    let start = u16::try_from(parsed.header_len).unwrap();
    sum::put(datagram, usize::from(start + offset), 0xdead);
    Offload { checksum: ChecksumState::Partial { start, offset }, segmentation }
}

/// A stream's data or a row of datagrams, as one packet and one by one.
#[derive(Clone, Debug)]
struct Run {
    version: Version,
    is_tcp: bool,
    seq: u32,
    flags: &'static str,
    size: u16,
    data: Vec<u8>,
}

impl Run {
    fn datagram(&self, flags: &str, seq: u32, id: u16, data: &[u8]) -> Vec<u8> {
        let [from, to] = [end(self.version, "client", 1000), end(self.version, "server", 80)];
        let mut datagram = match self.is_tcp {
            true => tcp(&from, &to, flags, seq, 1, data),
            false => udp(&from, &to, data),
        };
        if let Version::V4 = self.version {
            Ipv4Packet::new_unchecked(datagram.as_mut_slice()).set_ident(id);
            fill_header_checksum(&mut datagram);
        }
        datagram
    }

    fn whole(&self) -> Ingress {
        let mut frame = self.datagram(self.flags, self.seq, 0xfffe, &self.data);
        let kind = match (self.is_tcp, self.version) {
            (false, _) => SegmentationKind::Udp,
            (true, Version::V4) => SegmentationKind::Tcp4,
            (true, Version::V6) => SegmentationKind::Tcp6,
        };
        let offload = left_out(&mut frame, Some(Segmentation { kind, size: self.size }));
        Ingress { frame, offload }
    }

    fn one_by_one(&self) -> Vec<Vec<u8>> {
        let chunks = self.data.chunks(self.size.into());
        let last = chunks.len() - 1;
        let flags = |at: usize| if at == last { self.flags.to_owned() } else { self.flags.replace(['F', 'P'], "") };
        let seq = |at: usize| self.seq.wrapping_add(u32::try_from(at * usize::from(self.size)).unwrap());
        let id = |at: usize| 0xfffe_u16.wrapping_add(u16::try_from(at).unwrap());
        chunks.enumerate().map(|(at, data)| self.datagram(&flags(at), seq(at), id(at), data)).collect()
    }

    /// A stack in which the run's flow is open.
    fn opened(&self, rules: &str) -> Stack {
        let mut stack = stack(rules);
        let port = if rules == MASQUERADE { "public" } else { "client" };
        let before = self.seq.wrapping_sub(1);
        if self.is_tcp {
            play(&mut stack, self.version, "in", &format!("tcp client:1000 > server:80 S seq={before}"));
            play(&mut stack, self.version, "out", &format!("tcp server:80 > {port}:1000 SA seq=0 ack={}", self.seq));
            play(&mut stack, self.version, "in", &format!("tcp client:1000 > server:80 A seq={} ack=1", self.seq));
        } else {
            play(&mut stack, self.version, "in", "udp client:1000 > server:80 len=1");
            play(&mut stack, self.version, "out", &format!("udp server:80 > {port}:1000 len=1"));
        }
        assert_eq!(drain(&mut stack).len(), if self.is_tcp { 3 } else { 2 });
        stack
    }
}

fn drain(stack: &mut Stack) -> Vec<Egress> {
    std::iter::from_fn(|| stack.egress()).collect()
}

/// What leaves, for a link that takes nothing but whole packets.
fn on_the_wire(stack: &mut Stack) -> Vec<(LinkId, Vec<u8>)> {
    let sent = drain(stack);
    assert!(sent.iter().all(|sent| !sent.offload.is_partial() && sent.offload.segmentation.is_none()));
    sent.into_iter().map(|sent| (sent.link, sent.datagram)).collect()
}

fn drops(stack: &mut Stack) -> Vec<DropReason> {
    let events = std::iter::from_fn(|| stack.next_event());
    events.filter_map(|event| if let StackEvent::Drop(drop) = event { Some(drop.reason) } else { None }).collect()
}

/// Flows without what counts packets or remembers the last one: a super-packet is one, to Linux as to us.
fn flows(stack: &Stack) -> Vec<FlowRecord> {
    let mut flows = stack.flows(Instant::ZERO);
    for flow in &mut flows {
        flow.counters = hibernet_conntrack::Counters::default();
        if let ProtocolState::Tcp(track) = &mut flow.protocol {
            (track.last_seq, track.last_ack, track.last_len, track.last_win) = (0, 0, 0, 0);
            (track.last_index, track.retrans) = (TcpSegmentKind::Ack, 0);
        }
    }
    flows
}

prop_compose! {
    fn run()(
        version in prop::sample::select(&VERSIONS),
        is_tcp in any::<bool>(),
        seq in any::<u32>(),
        flags in prop::sample::select(&["A", "PA", "FA", "FPA"]),
        size in 36_u16..1400,
        count in 2_usize..46,
        rest in any::<prop::sample::Index>(),
        seed in any::<u8>(),
    ) -> Run {
        let len = (usize::from(size) * (count - 1) + 1 + rest.index(size.into())).min(64_000);
        let data = (0..len).map(|at| (at as u8).wrapping_mul(31) ^ seed).collect();
        Run { version, is_tcp, seq, flags, size, data }
    }
}

impl core::fmt::Debug for Version {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(if matches!(self, Self::V4) { "IPv4" } else { "IPv6" })
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_super_packet_leaves_and_is_tracked_as_its_segments_would(run in run(), nat in any::<bool>()) {
        let rules = if nat { MASQUERADE } else { "" };
        let (mut at_once, mut one_by_one) = (run.opened(rules), run.opened(rules));
        let link = at_once.link("in").unwrap();
        at_once.ingress_burst(link, [run.whole()], Instant::ZERO);
        for segment in run.one_by_one() {
            one_by_one.ingress(link, segment, Instant::ZERO);
        }
        prop_assert_eq!(drops(&mut at_once), vec![]);
        prop_assert_eq!(on_the_wire(&mut at_once), on_the_wire(&mut one_by_one));
        prop_assert_eq!(flows(&at_once), flows(&one_by_one));
    }

    #[test]
    fn a_link_that_takes_super_packets_gets_them_whole_and_the_cut_is_the_same(run in run(), nat in any::<bool>()) {
        let rules = if nat { MASQUERADE } else { "" };
        let (mut whole, mut cut) = (run.opened(rules), run.opened(rules));
        let (link, out) = (whole.link("in").unwrap(), whole.link("out").unwrap());
        whole.set_link_offloads(out, LinkOffloads::ALL);
        whole.ingress_burst(link, [run.whole()], Instant::ZERO);
        cut.ingress_burst(link, [run.whole()], Instant::ZERO);
        let left = drain(&mut whole);
        prop_assert_eq!(left.len(), 1);
        let Egress { datagram, offload, .. } = left.into_iter().next().unwrap();
        prop_assert_eq!(offload.segmentation, run.whole().offload.segmentation);
        let packet = Packet::received_in(out, datagram.clone(), 0, offload, None).unwrap();
        prop_assert_eq!(packet.bytes(), datagram.as_slice(), "the pseudo header's sum is right as it left");
        let segments = packet.segments(false).unwrap().unwrap();
        let expected: Vec<_> = drain(&mut cut).into_iter().map(|sent| sent.datagram).collect();
        prop_assert_eq!(segments.into_iter().map(Packet::into_bytes).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_missing_checksum_is_there_when_the_packet_leaves(run in run(), nat in any::<bool>(), to_link in any::<bool>()) {
        let rules = if nat { MASQUERADE } else { "" };
        let run = Run { data: run.data[..run.data.len().min(1400)].to_vec(), ..run };
        let (mut partial, mut complete) = (run.opened(rules), run.opened(rules));
        let (link, out) = (partial.link("in").unwrap(), partial.link("out").unwrap());
        partial.set_link_offloads(out, LinkOffloads { checksum: to_link, ..LinkOffloads::default() });
        let datagram = run.datagram(run.flags, run.seq, 7, &run.data);
        complete.ingress(link, datagram.clone(), Instant::ZERO);
        let mut frame = datagram;
        let offload = left_out(&mut frame, None);
        partial.ingress_burst(link, [Ingress { frame, offload }], Instant::ZERO);
        let Some(Egress { mut datagram, mut offload, .. }) = partial.egress() else { panic!("it leaves") };
        prop_assert_eq!(offload.is_partial(), to_link);
        offload.complete(&mut datagram);
        prop_assert_eq!(datagram, complete.egress().unwrap().datagram);
        prop_assert_eq!(flows(&partial), flows(&complete));
    }

    #[test]
    fn no_words_of_a_link_about_any_bytes_break_anything(
        header in any::<[u8; 10]>(),
        run in run(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        sane in any::<bool>(),
    ) {
        let mut stack = run.opened(MASQUERADE);
        let link = stack.link("in").unwrap();
        let Ingress { mut frame, offload } = run.whole();
        for (at, byte) in damage {
            let at = at.index(80);
            frame[at] = byte;
        }
        let offload = if sane { offload } else { Offload::from_virtio(&header) };
        stack.ingress_burst(link, [Ingress { frame, offload }], Instant::ZERO);
        drain(&mut stack);
    }

    #[test]
    fn a_virtio_header_is_read_back(run in run()) {
        let Ingress { frame, offload } = run.whole();
        let header = offload.to_virtio(&frame);
        prop_assert_eq!(Offload::from_virtio(&header), offload);
        let headers = frame.len() - run.data.len();
        prop_assert_eq!(usize::from(u16::from_ne_bytes([header[2], header[3]])), headers);
    }
}
