//! Fixed pieces of work on a small table: what instruction counts are taken of. Nothing in them waits for memory.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hibernet_conntrack::{
    Attachment, BURST, Config, Conntrack, Direction, Incoming, Manip, NatRange, Origin, Parsed, Tuple, Zone, parse,
    proto,
};
use hibernet_snapshot::{Entropy, Instant};

use crate::packets::{self, ACK, Content, SYN, SYN_ACK};

/// Masqueraded TCP connections, established, and packets of theirs.
pub(crate) struct Connections {
    table: Conntrack,
    flows: Vec<[Tuple; 2]>,
    sent: u32,
    packets: Vec<Vec<u8>>,
}

impl Connections {
    /// So many connections, a multiple of 32.
    pub(crate) fn new(count: u16, v6: bool) -> Self {
        let mut table = empty(count.into());
        let outside = NatRange { masquerade: true, ..NatRange::address(address(v6, 0xfffd)) };
        let mut bytes = Vec::new();
        let mut flows = Vec::new();
        for orig in tuples(count, v6) {
            let mut attachment = opened(&mut table, &mut bytes, &orig);
            table.nat_null_bind(&mut attachment, Manip::Destination);
            table.nat_bind(&mut attachment, Manip::Source, &outside);
            table.confirm(&mut attachment, NOW).unwrap();
            let reply = table.flow(attachment.handle().unwrap()).unwrap().reply;
            packets::write(&mut bytes, &reply, Content { flags: SYN_ACK, seq: 0, ack: 1, payload: 0 });
            track(&mut table, &bytes);
            packets::write(&mut bytes, &orig, Content { flags: ACK, seq: 1, ack: 1, payload: 0 });
            track(&mut table, &bytes);
            flows.push([orig, reply]);
        }
        silence(&mut table);
        Self { table, flows, sent: 0, packets: Vec::new() }
    }

    /// Makes a packet of 8 bytes for each connection.
    pub(crate) fn prepare(&mut self, direction: Direction) {
        let Self { flows, sent, packets, .. } = self;
        packets.resize(flows.len(), Vec::new());
        let ack = *sent + if direction == Direction::Reply { 8 } else { 0 };
        let content = Content { flags: ACK, seq: 1 + *sent, ack: 1 + ack, payload: 8 };
        for (flow, bytes) in flows.iter().zip(packets) {
            packets::write(bytes, &flow[direction.index()], content);
        }
        *sent += if direction == Direction::Reply { 8 } else { 0 };
    }

    /// Reads, tracks and translates them in bursts.
    #[inline(never)]
    pub(crate) fn pass_in_bursts(&mut self) {
        let Self { table, packets, .. } = self;
        for burst in packets.chunks_mut(BURST) {
            let parsed: [Option<Parsed>; BURST] =
                std::array::from_fn(|at| burst.get(at).and_then(|bytes| parse(bytes).ok()));
            let incoming: [Incoming<'_>; BURST] = std::array::from_fn(|at| Incoming {
                datagram: &burst[at],
                parsed: parsed[at].as_ref().unwrap(),
                zone: Zone::default(),
                origin: Origin::Link,
            });
            let mut attachments: [Attachment; BURST] = Default::default();
            table.track_burst(&incoming, NOW, |_, number, tracked| attachments[number] = tracked.unwrap());
            for ((bytes, attachment), parsed) in burst.iter_mut().zip(&attachments).zip(parsed.iter().flatten()) {
                translate(table, attachment, bytes, parsed);
            }
        }
    }

    /// Reads, tracks and translates them one by one.
    #[inline(never)]
    pub(crate) fn pass_one_by_one(&mut self) {
        let Self { table, packets, .. } = self;
        for bytes in packets {
            let parsed = parse(bytes).unwrap();
            let attachment = table.track(bytes, &parsed, Zone::default(), Origin::Link, NOW).unwrap();
            translate(table, &attachment, bytes, &parsed);
        }
    }
}

fn translate(table: &Conntrack, attachment: &Attachment, bytes: &mut [u8], parsed: &Parsed) {
    let there = table.nat_translate_parsed(attachment, Manip::Destination, bytes, parsed).unwrap();
    let back = table.nat_translate_parsed(attachment, Manip::Source, bytes, parsed).unwrap();
    assert!(there != back, "one of the two is translated");
}

/// Plain flows that are looked up.
pub(crate) struct Seekers(Conntrack, Vec<Tuple>);

impl Seekers {
    /// So many flows.
    pub(crate) fn new(count: u16, v6: bool) -> Self {
        let mut table = empty(count.into());
        let mut bytes = Vec::new();
        let tuples: Vec<_> = tuples(count, v6).collect();
        for tuple in &tuples {
            let mut attachment = opened(&mut table, &mut bytes, tuple);
            table.confirm(&mut attachment, NOW).unwrap();
        }
        silence(&mut table);
        Self(table, tuples)
    }

    /// Looks each up and puts off its end, in bursts.
    #[inline(never)]
    pub(crate) fn refresh_in_bursts(&mut self) {
        let Self(table, tuples) = self;
        for burst in tuples.chunks(BURST) {
            table.refresh_burst(burst, Zone::default(), 600, NOW, |_, flow| assert!(black_box(flow).is_some()));
        }
    }
}

/// New flows that wait to be confirmed.
pub(crate) struct Newcomers(Conntrack, Vec<Attachment>);

impl Newcomers {
    /// So many flows.
    pub(crate) fn new(count: u16, v6: bool) -> Self {
        let mut table = empty(count.into());
        let mut bytes = Vec::new();
        let attachments = tuples(count, v6).map(|tuple| opened(&mut table, &mut bytes, &tuple)).collect();
        Self(table, attachments)
    }

    /// Confirms all, in bursts.
    #[inline(never)]
    pub(crate) fn confirm_in_bursts(&mut self) {
        let Self(table, attachments) = self;
        table.confirm_burst(attachments, NOW, |_, entered| entered.unwrap());
    }
}

fn empty(capacity: u32) -> Conntrack {
    Conntrack::new(Config { capacity, ..Config::default() }, &mut Entropy::from_test_seed(7), NOW).unwrap()
}

fn opened(table: &mut Conntrack, bytes: &mut Vec<u8>, tuple: &Tuple) -> Attachment {
    packets::write(bytes, tuple, Content { flags: SYN, seq: 0, ack: 0, payload: 0 });
    track(table, bytes)
}

fn track(table: &mut Conntrack, datagram: &[u8]) -> Attachment {
    let parsed = parse(datagram).unwrap();
    table.track(datagram, &parsed, Zone::default(), Origin::Link, NOW).unwrap()
}

fn silence(table: &mut Conntrack) {
    while table.next_event().is_some() {}
}

fn tuples(count: u16, v6: bool) -> impl Iterator<Item = Tuple> {
    (0..count).map(move |number| Tuple {
        src: address(v6, number),
        dst: address(v6, 0xfffe),
        proto: proto::TCP,
        sport: 30_000 ^ number,
        dport: 443,
    })
}

fn address(v6: bool, host: u16) -> IpAddr {
    match v6 {
        true => Ipv6Addr::from(0x2001_0db8 << 96 | u128::from(host)).into(),
        false => Ipv4Addr::from(10 << 24 | u32::from(host)).into(),
    }
}

const NOW: Instant = Instant::from_secs(1000);
