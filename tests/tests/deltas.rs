//! A base and its deltas are the save that a full one would have been, whatever has happened in between.

use std::time::Duration;

use hibernet_netstack::{
    Decoded, DeltaChain, Packing, RestoreError, RestorePolicy, SaveBuffer, SaveError, Stack, Supplied,
};
use hibernet_snapshot::digest::ImageDigest;
use hibernet_snapshot::image::{Limits, StoredImage};
use hibernet_snapshot::{Entropy, GenerationId, Instant};
use hibernet_tests::traffic::{Gateway, START, Session, Trace};
use proptest::prelude::*;

/// A running stack that is checkpointed, and its files.
struct Checkpointed {
    session: Session,
    trace: Trace,
    files: Vec<Vec<u8>>,
}

impl Checkpointed {
    fn new(room: u32, traffic: u64, steps: usize) -> Self {
        let trace = Trace::of(&Gateway::with_room_for(room), 1, traffic, steps);
        let mut stack = trace.gateway.open(1);
        trace.rewind(&mut stack, 0);
        Self { session: Session::of(stack, 0, START), trace, files: Vec::new() }
    }

    fn play(&mut self, steps: usize) {
        let from = self.session.step;
        for step in self.trace.steps.iter().skip(from).take(steps) {
            self.session.play(step);
        }
    }

    fn generation(&self) -> GenerationId {
        GenerationId([self.files.len() as u8 + 1; 16])
    }

    fn save_base(&mut self) {
        let (generation, now) = (self.generation(), self.session.now());
        let mut frozen = self.session.stack.freeze_base(generation, now, SaveBuffer::default()).unwrap();
        let mut file = Vec::new();
        frozen.write(&Packing::default(), into(&mut file)).unwrap();
        self.session.stack.written(frozen.checkpoint(), ImageDigest::of(&file));
        self.files = vec![file];
    }

    /// Saves what has changed; `kept` says whether the file got where it should.
    fn save_delta(&mut self, kept: bool) {
        let (generation, now) = (self.generation(), self.session.now());
        let frozen = self.session.stack.freeze_changes(generation, now).unwrap();
        let mut file = Vec::new();
        let (_, checkpoint) = frozen.write(into(&mut file)).unwrap();
        if kept {
            self.session.stack.written(checkpoint, ImageDigest::of(&file));
            self.files.push(file);
        }
    }

    /// What a full save of this moment is, by the generation of the last file.
    fn full(&self) -> Vec<u8> {
        let generation = GenerationId([self.files.len() as u8; 16]);
        self.session.stack.save(generation, self.session.now()).unwrap()
    }
}

fn into(file: &mut Vec<u8>) -> impl FnMut(&[u8]) -> Result<(), ()> {
    |bytes| {
        file.extend_from_slice(bytes);
        Ok(())
    }
}

fn stored(file: &[u8]) -> StoredImage {
    StoredImage::read(&mut &file[..], &Limits::default()).unwrap()
}

fn decoded(files: &[&[u8]]) -> Result<Decoded, RestoreError> {
    let limits = Limits::default();
    let mut files = files.iter();
    let base = files.next().unwrap();
    let mut chain = DeltaChain::begin(stored(base), ImageDigest::of(base), &limits)?;
    for delta in files {
        chain = chain.apply(stored(delta), ImageDigest::of(delta), &limits)?;
    }
    chain.finish()
}

/// The stack that files restore to.
fn heir(files: &[Vec<u8>], now: Instant) -> Stack {
    let files: Vec<&[u8]> = files.iter().map(Vec::as_slice).collect();
    let mut entropy = Entropy::from_test_seed(9);
    let validated = decoded(&files).unwrap().validate(&mut entropy, now).unwrap();
    validated.rehash(entropy, RestorePolicy::default()).unwrap().open(Supplied::default()).0
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_base_and_its_deltas_restore_to_the_bytes_of_a_full_save(
        room in prop_oneof![Just(48_u32), Just(128), Just(512)],
        traffic in 0u64..1000,
        before in 0usize..300,
        legs in prop::collection::vec((0usize..120, any::<bool>()), 1..8),
    ) {
        let mut running = Checkpointed::new(room, traffic, 1500);
        running.play(before);
        running.save_base();
        for (steps, kept) in legs {
            running.play(steps);
            running.save_delta(kept);
            if kept {
                let now = running.session.now();
                let full = running.full();
                let again = heir(&running.files, now).save(GenerationId([running.files.len() as u8; 16]), now).unwrap();
                prop_assert!(again == full, "after {} files", running.files.len());
            }
        }
    }
}

#[test]
fn a_checkpointed_stack_shows_what_one_shows_that_is_not() {
    let mut running = Checkpointed::new(96, 3, 1200);
    let mut other = Checkpointed::new(96, 3, 1200);
    running.save_base();
    for _ in 0..12 {
        running.play(100);
        other.play(100);
        running.save_delta(true);
        assert!(running.session.image() == other.session.image());
    }
    assert_eq!(hibernet_tests::traffic::difference(&running.session.seen, &other.session.seen), None);
}

#[test]
fn flows_that_nobody_touched_expire_in_a_chain_as_they_do_in_the_stack() {
    let mut running = Checkpointed::new(64, 4, 400);
    running.play(400);
    running.save_base();
    let many = running.session.stack.flows(running.session.now()).len();
    let later = running.session.now().saturating_add(Duration::from_secs(200));
    running.session.stack.poll(later);
    let generation = GenerationId([2; 16]);
    let frozen = running.session.stack.freeze_changes(generation, later).unwrap();
    let mut file = Vec::new();
    frozen.write(into(&mut file)).unwrap();
    running.files.push(file);
    let heir = heir(&running.files, later);
    assert!(heir.flows(later).len() < many);
    assert!(heir.save(generation, later).unwrap() == running.session.stack.save(generation, later).unwrap());
}

#[test]
fn a_link_that_is_missing_wrong_or_in_another_place_is_refused() {
    let mut running = Checkpointed::new(64, 1, 600);
    running.save_base();
    for _ in 0..3 {
        running.play(100);
        running.save_delta(true);
    }
    let mut other = Checkpointed::new(64, 2, 600);
    other.play(40);
    other.save_base();
    other.play(50);
    other.save_delta(true);
    let [base, one, two, three] = [0, 1, 2, 3].map(|at| running.files[at].as_slice());
    let refused = |files: &[&[u8]]| decoded(files).unwrap_err();
    assert!(decoded(&[base, one, two, three]).is_ok());
    for files in [&[base, two][..], &[base, one, three], &[base, two, one], &[base, one, one], &[&other.files[0], one]]
    {
        let error = refused(files);
        assert!(matches!(error, RestoreError::WrongBase { .. }), "{error}");
        assert!(error.to_string().contains("hibernet-netstack 0.1.0"), "{error}");
    }
    assert!(matches!(refused(&[base, &other.files[0]]), RestoreError::NotADelta { .. }));
    let error = refused(&[one, two]);
    assert!(matches!(error, RestoreError::Delta { base, .. } if base.number == 0), "{error}");
    assert!(error.to_string().contains(&ImageDigest::of(base).to_string()), "{error}");
    // The delta of another stack under the right name: its flows do not fit.
    let mut forged = stored(&other.files[1]);
    forged.take(hibernet_snapshot::image::SectionId::new(*b"DIFF"));
    assert!(
        DeltaChain::begin(stored(base), ImageDigest::of(base), &Limits::default())
            .unwrap()
            .apply(forged, ImageDigest::of(&other.files[1]), &Limits::default())
            .is_err()
    );
}

#[test]
fn without_a_base_there_is_no_delta_and_a_save_that_was_not_written_is_none() {
    let mut running = Checkpointed::new(64, 1, 100);
    let now = running.session.now();
    let refused = running.session.stack.freeze_changes(GenerationId([1; 16]), now).unwrap_err();
    assert_eq!(refused, SaveError::NoBase);
    running.session.stack.freeze_base(GenerationId([1; 16]), now, SaveBuffer::default()).unwrap();
    let refused = running.session.stack.freeze_changes(GenerationId([2; 16]), now).unwrap_err();
    assert_eq!(refused, SaveError::NoBase);
}

#[test]
fn a_delta_with_any_bit_changed_and_right_checksums_is_refused_or_restores() {
    let mut running = Checkpointed::new(48, 5, 400);
    running.play(200);
    running.save_base();
    running.play(60);
    running.save_delta(true);
    let now = running.session.now();
    let script = stored(&running.files[1]).take(hibernet_snapshot::image::SectionId::new(*b"DIFF")).remove(0).body;
    for at in 0..script.len() {
        for bit in [0, 3, 7] {
            let changed = hibernet_tests::traffic::with_body(&running.files[1], b"DIFF", |body| body[at] ^= 1 << bit);
            if let Ok(decoded) = decoded(&[&running.files[0], &changed]) {
                drop(decoded.validate(&mut Entropy::from_test_seed(1), now).map(|validated| {
                    validated.rehash(Entropy::from_test_seed(2), RestorePolicy::default()).map(|_| ())
                }));
            }
        }
    }
}
