//! Every state has one image: what loads saves back to the same bytes, or it is refused. Nothing of a loaded image is
//! mended, rounded or dropped without a word.

use hibernet_conntrack::proto;
use hibernet_snapshot::image::{Image, Limits};
use hibernet_snapshot::{GenerationId, Instant};
use hibernet_tests::notation::{Fragment, build};
use hibernet_tests::traffic::{Frame, START, Session, Step, play_line, restored, sample, with_body, with_records};
use proptest::prelude::*;

/// The generation of the second image.
const LATER: GenerationId = GenerationId([8; 16]);

/// The sample with what it lacks: a generation before it, datagrams of IPv6 in pieces, an association, a tunnel.
fn rich() -> Vec<u8> {
    let (heir, _) = restored(&sample().image(), 3, START).unwrap();
    let mut session = Session::of(heir, 0, START);
    play_line(&mut session, "in", "tcp [fd00:10::2]:4000 > [2001:db8:1::10]:443 S seq=7 mss=1400");
    for (off, mf) in [(24, true), (64, false)] {
        let fragment = Some(Fragment { off, len: 16, mf });
        let bytes = build("udp [fd00:10::3]:40000 > [2001:db8:1::10]:53 len=72 ipid=9", fragment).unwrap();
        session.play(&Step { at: session.now(), frame: Some(Frame { link: "in", bytes }) });
    }
    let image = session.stack.save(LATER, session.now()).unwrap();
    with_records(&image, |records| {
        let plain = records.iter().find(|it| it.orig.proto == proto::UDP && it.bytes[0] == 0).unwrap();
        let [mut association, mut tunnel] = [plain.clone(), plain.clone()];
        let state = plain.bytes.len() - 4;
        association.bytes[1] = proto::SCTP;
        association.bytes.truncate(state);
        association.bytes.extend([2, 1, 5, 1, 2, 3, 4, 0, 0, 0, 0x80]);
        tunnel.bytes[1] = proto::GRE;
        tunnel.bytes.truncate(state);
        records.extend([association, tunnel]);
    })
}

/// Whether an image loads; if it does, it has to come back as it is.
fn loads(image: &[u8], what: &dyn std::fmt::Debug) -> bool {
    let Ok((stack, report)) = restored(image, 5, START) else { return false };
    // Connections of the gateway itself end with the process that had them.
    if report.reset + report.dropped > 0 {
        return true;
    }
    let generation = Image::parse(image, &Limits::default()).unwrap().header().generation;
    let again = stack.save(generation, START).unwrap();
    let differs = again.iter().zip(image).position(|(one, other)| one != other);
    assert!(again == image, "{what:?} loads and saves otherwise, from byte {differs:?} on");
    true
}

fn sections(image: &[u8]) -> Vec<([u8; 4], usize)> {
    let image = Image::parse(image, &Limits::default()).unwrap();
    image.sections().map(|section| (section.id.0.to_le_bytes(), section.body.len())).collect()
}

/// Puts bytes in the place of those that stand there, as far as the body reaches.
fn put(body: &mut [u8], at: usize, bytes: &[u8]) {
    body.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
}

#[test]
fn the_images_hold_something_of_everything() {
    for image in [sample().image(), rich()] {
        assert!(loads(&image, &"itself"));
        let (stack, _) = restored(&image, 5, START).unwrap();
        let has = |proto, v6| stack.flows(START).iter().any(|flow| flow.orig.proto == proto && flow.orig.is_v6() == v6);
        assert!(has(proto::TCP, false) && has(proto::UDP, true) && has(proto::ICMP, false));
    }
    let (stack, _) = restored(&rich(), 5, START).unwrap();
    let protos: Vec<u8> = stack.flows(START).iter().map(|flow| flow.orig.proto).collect();
    assert!(protos.contains(&proto::SCTP) && protos.contains(&proto::GRE), "{protos:?}");
    assert_eq!(stack.lineage().len(), 2);
}

#[test]
fn every_bit_of_every_section_is_refused_otherwise_or_kept() {
    let image = sample().image();
    let mut loaded = 0;
    for (section, length) in sections(&image) {
        for at in 0..length {
            for bit in 0..8 {
                let changed = with_body(&image, &section, |body| body[at] ^= 1 << bit);
                loaded += u32::from(loads(&changed, &(section, at, bit)));
            }
        }
    }
    assert!(loaded > 5_000, "only {loaded} changes were taken");
}

#[test]
fn extreme_numbers_at_any_place_are_refused_or_kept() {
    let image = rich();
    let numbers: [&[u8]; 3] = [
        &[0xff; 4],
        // A second in nanoseconds.
        &[0x00, 0xca, 0x9a, 0x3b],
        // As many whole seconds as fit an instant.
        &(u64::MAX / 1_000_000_000).to_le_bytes(),
    ];
    let mut loaded = 0;
    for (section, length) in sections(&image) {
        for at in 0..length {
            for number in numbers {
                let changed = with_body(&image, &section, |body| put(body, at, number));
                loaded += u32::from(loads(&changed, &(section, at, number)));
            }
        }
    }
    assert!(loaded > 2_000, "only {loaded} changes were taken");
}

#[test]
fn flows_in_any_order_and_number_keep_it() {
    let image = rich();
    let reversed = with_records(&image, |records| records.reverse());
    assert!(loads(&reversed, &"reversed") && reversed != image);
    assert!(loads(&with_records(&image, |records| records.truncate(1)), &"one flow"));
    assert!(loads(&with_records(&image, Vec::clear), &"no flow"));
}

/// Several changes at once: a place in a section, and what is put there.
fn changes() -> impl Strategy<Value = Vec<(usize, prop::sample::Index, Vec<u8>)>> {
    let byte = prop_oneof![2 => Just(0_u8), 1 => Just(1), 1 => Just(0xff), 1 => Just(0x80), 3 => any::<u8>()];
    let change = (0..7_usize, any::<prop::sample::Index>(), prop::collection::vec(byte, 1..9));
    prop::collection::vec(change, 1..4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn several_changes_at_once_are_refused_or_kept(changes in changes(), rich_one: bool) {
        let mut image = if rich_one { rich() } else { sample().image() };
        for (section, place, bytes) in &changes {
            let (section, length) = sections(&image)[*section];
            image = with_body(&image, &section, |body| put(body, place.index(length), bytes));
        }
        loads(&image, &changes);
    }
}

#[test]
fn a_clock_near_its_end_changes_nothing() {
    let image = rich();
    for now in [Instant::ZERO, Instant::from_secs(500 * 365 * 86_400)] {
        let (stack, _) = restored(&image, 5, now).unwrap();
        assert!(stack.save(LATER, now).unwrap() == image, "restored at {now:?}");
    }
}
