//! Numbers that others see on the wire, chosen under a secret of their own.
//!
//! What an observer can see must not lead to what it cannot: ports, identifiers and the like come from a keyed function,
//! never from a counter or a general generator. For tests the choices can be recorded and played back, which makes an
//! image a function of the wire alone (DESIGN test "W").

use core::fmt;
use std::collections::VecDeque;

use hibernet_snapshot::{Entropy, Redraw, Secret};

use crate::table::siphash;

/// A keyed source of one kind of wire-visible number.
///
/// The key is a secret, and so is the count of draws: with it an observer could tell how many flows others have opened.
pub struct WireChoices {
    key: Secret<[u8; 16]>,
    draws: u64,
    tape: Tape,
}

enum Tape {
    Off,
    Recording(Vec<u64>),
    Playing(VecDeque<u64>),
}

impl WireChoices {
    /// A number that depends on the key, on `subject`, and on how many were drawn before.
    pub fn draw(&mut self, subject: [u64; 2]) -> u64 {
        let drawn = self.draw_untaped(subject);
        self.taped(drawn)
    }

    /// A number as [`WireChoices::draw`] gives it that is on no tape: what comes of it is to be put there, if anything is.
    pub(crate) fn draw_untaped(&mut self, subject: [u64; 2]) -> u64 {
        self.draws = self.draws.wrapping_add(1);
        self.keyed(subject, self.draws)
    }

    /// Whether choices are recorded or played back.
    pub(crate) const fn is_taped(&self) -> bool {
        !matches!(self.tape, Tape::Off)
    }

    /// A number for the wire that depends on the key and on `subject` alone: equal questions get equal answers.
    pub fn choose(&mut self, subject: [u64; 2]) -> u64 {
        let chosen = self.fixed(subject);
        self.taped(chosen)
    }

    /// A number that depends on the key and on `subject` alone, for what nobody sees: it is a secret, and not on any tape.
    pub fn fixed(&self, subject: [u64; 2]) -> u64 {
        self.keyed(subject, 0)
    }

    /// As [`WireChoices::choose`], for what takes more words to name: the two ends of a connection, and what is asked for.
    pub fn choose_for(&mut self, subject: &[u64; 6]) -> u64 {
        let chosen = self.fixed_for(subject);
        self.taped(chosen)
    }

    /// As [`WireChoices::fixed`], for what takes more words to name.
    pub fn fixed_for(&self, subject: &[u64; 6]) -> u64 {
        let [a, b, c, d, e, f] = *subject;
        siphash::<2, 4, 7>(self.key.expose(), &[a, b, c, d, e, f, LENGTH_FOR])
    }

    /// From now on every choice is remembered.
    pub fn record(&mut self) {
        self.tape = Tape::Recording(Vec::new());
    }

    /// What has been chosen since [`WireChoices::record`].
    pub fn recorded(&self) -> &[u64] {
        match &self.tape {
            Tape::Recording(tape) => tape,
            Tape::Off | Tape::Playing(_) => &[],
        }
    }

    /// Answers the next calls with `choices`, in order.
    pub fn play(&mut self, choices: &[u64]) {
        self.tape = Tape::Playing(choices.iter().copied().collect());
    }

    /// Adds the key to what a canary scan looks for.
    pub fn watch(&self, name: &'static str, scan: &mut crate::canary::CanaryScan) {
        scan.watch_key(name, self.key.expose());
    }

    fn keyed(&self, subject: [u64; 2], number: u64) -> u64 {
        let [first, second] = subject;
        siphash::<2, 4, 4>(self.key.expose(), &[first, second, number, LENGTH])
    }

    /// Puts a choice on the tape; comes back with the one that stands there, where one is played back.
    pub(crate) fn taped(&mut self, chosen: u64) -> u64 {
        match &mut self.tape {
            Tape::Off => chosen,
            Tape::Recording(tape) => {
                tape.push(chosen);
                chosen
            }
            Tape::Playing(tape) => tape.pop_front().unwrap_or(chosen),
        }
    }
}

impl fmt::Debug for WireChoices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WireChoices(..)")
    }
}

impl Redraw for WireChoices {
    fn redraw(entropy: &mut Entropy) -> Self {
        Self { key: entropy.secret(), draws: 0, tape: Tape::Off }
    }
}

/// Three words of message, in SipHash's last word.
const LENGTH: u64 = 24 << 56;
/// Six words of message.
const LENGTH_FOR: u64 = 48 << 56;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_keys_choose_differently_and_one_key_never_twice_the_same() {
        let choices = |seed| WireChoices::redraw(&mut Entropy::from_test_seed(seed));
        let (mut a, mut b) = (choices(1), choices(2));
        let first = a.draw([1, 2]);
        assert_ne!(first, b.draw([1, 2]));
        assert_ne!(first, a.draw([1, 2]));
        assert_eq!(a.fixed([1, 2]), a.fixed([1, 2]));
        assert_ne!(a.fixed([1, 2]), b.fixed([1, 2]));
    }

    #[test]
    fn recorded_choices_play_back_under_another_key() {
        let mut a = WireChoices::redraw(&mut Entropy::from_test_seed(1));
        a.record();
        let chosen = [a.draw([0, 0]), a.choose([1, 1]), a.draw([0, 0])];
        let mut b = WireChoices::redraw(&mut Entropy::from_test_seed(2));
        b.play(a.recorded());
        assert_eq!([b.draw([5, 5]), b.choose([1, 1]), b.draw([6, 6])], chosen);
        assert_ne!(b.draw([7, 7]), chosen[0]);
    }
}
