//! Recorded runs, and the same again under other keys.

use hibernet_netstack::Stack;

use super::gateway::{Gateway, START};
use super::network::{Network, Step};
use super::seen::Seen;
use super::session::Session;

/// A run that was written down: what came in, which numbers were chosen for the wire, what was seen.
#[derive(Debug)]
pub struct Trace {
    /// The stack it was.
    pub gateway: Gateway,
    /// What came in.
    pub steps: Vec<Step>,
    /// What was seen.
    pub seen: Seen,
    tape: Tape,
    /// How far the tape was written after each step.
    marks: Vec<[usize; SOURCES]>,
    checkpoint_every: usize,
}

/// Choices by source, in the order in which a stack names its sources.
type Tape = [Vec<u64>; SOURCES];

const SOURCES: usize = 5;

/// What is done to a stack during a replay that nobody outside may notice.
#[derive(Clone, Copy, Debug, Default)]
pub struct Meddling {
    /// A new hash key after every so many steps; 0 for none.
    pub reseed_every: usize,
    /// Saved, and restored under new keys, after every so many steps; 0 for never.
    pub restore_every: usize,
}

impl Trace {
    /// Random traffic of so many steps.
    pub fn of(gateway: &Gateway, keys: u64, traffic: u64, steps: usize) -> Self {
        let mut recording = Recording::new(gateway, keys, traffic, steps.div_ceil(CHECKPOINTS).max(1));
        recording.carry_on(steps, true);
        recording.finish()
    }

    /// A table filled with `flows` flows; then as many steps of their traffic, with `fresh` of new flows too.
    pub fn filled(gateway: &Gateway, keys: u64, flows: u32, fresh: bool) -> Self {
        let steps = flows as usize;
        let mut recording = Recording::new(gateway, keys, u64::from(flows), steps.div_ceil(CHECKPOINTS / 2).max(1));
        for number in 0..flows {
            let step = recording.network.open(number);
            recording.write(step);
        }
        assert_eq!(recording.session.stack.conntrack().len(), flows, "every opening makes a flow");
        recording.carry_on(steps, fresh);
        recording.finish()
    }

    /// The same again under other keys: equal frames at equal times, and the choices played back.
    pub fn replay(&self, keys: u64, meddling: Meddling) -> Seen {
        self.replay_on(self.gateway.open(keys), keys, meddling)
    }

    /// The same again on a stack of one's own. Restores draw their keys from seeds after `keys`.
    pub fn replay_on(&self, mut stack: Stack, keys: u64, meddling: Meddling) -> Seen {
        self.rewind(&mut stack, 0);
        let mut session = Session::of(stack, 0, START);
        let (mut restore_due, mut heir) = (false, 0);
        for step in &self.steps {
            session.play(step);
            let done = session.step;
            if is_due(done, meddling.reseed_every) {
                session.stack.conntrack_mut().reseed();
            }
            restore_due |= is_due(done, meddling.restore_every);
            if restore_due && session.is_collected() {
                heir += 1;
                session.move_over(keys.wrapping_add(heir << 32));
                self.rewind(&mut session.stack, done);
                restore_due = false;
            }
            if self.is_checkpoint(done) {
                session.checkpoint();
            }
        }
        assert!(meddling.restore_every == 0 || heir > 0, "no moment was right for a restore");
        session.seen
    }

    /// The rest of the run, on a session that has done its first steps, or was restored from it.
    pub fn carry_on(&self, session: &mut Session) {
        for step in &self.steps[session.step..] {
            session.play(step);
            if self.is_checkpoint(session.step) {
                session.checkpoint();
            }
        }
    }

    /// Hands a stack the choices that were made from a step on.
    pub fn rewind(&self, stack: &mut Stack, step: usize) {
        let from = step.checked_sub(1).map_or([0; SOURCES], |last| self.marks[last]);
        for ((source, choices), (tape, from)) in stack.wire_choices().into_iter().zip(self.tape.iter().zip(from)) {
            let rest = tape.get(from..).unwrap_or_else(|| panic!("the tape of {source} ends before step {step}"));
            choices.play(rest);
        }
    }

    /// How many numbers were chosen for the wire.
    pub fn choices(&self) -> usize {
        self.tape.iter().map(Vec::len).sum()
    }

    fn is_checkpoint(&self, done: usize) -> bool {
        is_due(done, self.checkpoint_every) || done == self.steps.len()
    }
}

struct Recording {
    gateway: Gateway,
    network: Network,
    session: Session,
    steps: Vec<Step>,
    marks: Vec<[usize; SOURCES]>,
    checkpoint_every: usize,
}

impl Recording {
    fn new(gateway: &Gateway, keys: u64, traffic: u64, checkpoint_every: usize) -> Self {
        let mut stack = gateway.open(keys);
        for (_, choices) in stack.wire_choices() {
            choices.record();
        }
        Self {
            gateway: gateway.clone(),
            network: Network::new(traffic, gateway.tcp_echo),
            session: Session::of(stack, 0, START),
            steps: Vec::new(),
            marks: Vec::new(),
            checkpoint_every,
        }
    }

    fn carry_on(&mut self, steps: usize, fresh: bool) {
        for _ in 0..steps {
            let step = self.network.next(fresh);
            self.write(step);
        }
    }

    fn write(&mut self, step: Step) {
        for frame in self.session.play(&step) {
            self.network.carry(frame);
        }
        self.steps.push(step);
        self.marks.push(self.session.stack.wire_choices().map(|(_, choices)| choices.recorded().len()));
        if is_due(self.session.step, self.checkpoint_every) {
            self.session.checkpoint();
        }
    }

    fn finish(mut self) -> Trace {
        if !is_due(self.session.step, self.checkpoint_every) {
            self.session.checkpoint();
        }
        let tape = self.session.stack.wire_choices().map(|(_, choices)| choices.recorded().to_vec());
        let Self { gateway, session, steps, marks, checkpoint_every, .. } = self;
        Trace { gateway, steps, seen: session.seen, tape, marks, checkpoint_every }
    }
}

const fn is_due(done: usize, every: usize) -> bool {
    every != 0 && done.is_multiple_of(every)
}

/// Images of a run.
const CHECKPOINTS: usize = 4;
