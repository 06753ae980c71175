//! Where key material comes from, and the ids that are not key material.

use core::fmt;

use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

use crate::Secret;

/// A ChaCha20 generator that hands out key material as [`Secret`] and nothing else.
///
/// Its state is itself a secret: no serde, no `Clone`, nothing in `Debug`, wiped on drop.
pub struct Entropy(Secret<Generator>);

impl Entropy {
    /// The generator that `seed` determines.
    pub fn from_seed(seed: Secret<[u8; 32]>) -> Self {
        Self(Secret::new(Generator(ChaCha20Rng::from_seed(*seed.expose()))))
    }

    /// A generator anyone can repeat. For tests and recorded runs, never for a live stack.
    pub fn from_test_seed(seed: u64) -> Self {
        let mut bytes = [0; 32];
        for (byte, value) in bytes.iter_mut().zip(seed.to_le_bytes()) {
            *byte = value;
        }
        Self::from_seed(Secret::new(bytes))
    }

    /// A generator seeded by the operating system.
    ///
    /// # Errors
    /// If the operating system has no entropy to give.
    #[cfg(feature = "os")]
    #[expect(clippy::disallowed_methods, reason = "the one place where the operating system is asked for randomness")]
    pub fn from_os() -> Result<Self, OsEntropyError> {
        let mut seed = Secret::new([0; 32]);
        getrandom::fill(seed.expose_mut())?;
        Ok(Self::from_seed(seed))
    }

    /// Draws `N` bytes of key material.
    pub fn secret<const N: usize>(&mut self) -> Secret<[u8; N]> {
        let mut drawn = Secret::new([0; N]);
        self.0.expose_mut().0.fill_bytes(drawn.expose_mut());
        drawn
    }

    /// The seed: all that is secret of the state. For a search that proves that it is in no image, and nothing else.
    pub fn seed(&self) -> Secret<[u8; 32]> {
        Secret::new(self.0.expose().0.get_seed())
    }

    /// Draws an id that may be shown, written and sent.
    pub fn public_id(&mut self) -> GenerationId {
        GenerationId(*self.secret().expose())
    }

    /// Splits off an independent generator, for a part that keeps its own.
    pub fn fork(&mut self) -> Self {
        Self::from_seed(self.secret())
    }
}

impl fmt::Debug for Entropy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Entropy(..)")
    }
}

/// The operating system gave no entropy.
#[cfg(feature = "os")]
#[derive(Debug, thiserror::Error)]
#[error("the operating system gave no entropy: {0}")]
pub struct OsEntropyError(#[from] getrandom::Error);

/// Names one saved or restored instance. Random, and public: two restores of one image differ in it.
///
/// Random and not a time, because two restores can happen within one tick of any clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct GenerationId(pub [u8; 16]);

impl fmt::Display for GenerationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A type that is drawn afresh on restore: the type of a `redrawn` field.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be redrawn",
    label = "this field is `redrawn`, but its type does not say how it is drawn",
    note = "implement `Redraw` for `{Self}`; `Secret<[u8; N]>` has it"
)]
pub trait Redraw: Sized {
    /// Draws a value that shares nothing with any earlier one.
    fn redraw(entropy: &mut Entropy) -> Self;
}

impl<const N: usize> Redraw for Secret<[u8; N]> {
    fn redraw(entropy: &mut Entropy) -> Self {
        entropy.secret()
    }
}

impl Redraw for Entropy {
    fn redraw(entropy: &mut Entropy) -> Self {
        entropy.fork()
    }
}

/// The generator's state, with a way to wipe it: `rand_chacha` has none.
struct Generator(ChaCha20Rng);

impl Zeroize for Generator {
    fn zeroize(&mut self) {
        self.0 = ChaCha20Rng::from_seed([0; 32]);
        // Without this the compiler may drop the store, since nothing reads it before the memory is freed.
        core::hint::black_box(&mut self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_gives_one_stream_and_two_seeds_give_two() {
        let draw = |seed| *Entropy::from_test_seed(seed).secret::<32>().expose();
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn a_generator_knows_its_seed_whatever_it_has_drawn() {
        let mut entropy = Entropy::from_seed(Secret::new([7; 32]));
        drop(entropy.secret::<100>());
        assert_eq!(*entropy.seed().expose(), [7; 32]);
    }

    #[test]
    fn no_draw_repeats_and_a_fork_goes_its_own_way() {
        let mut entropy = Entropy::from_test_seed(1);
        let mut fork = entropy.fork();
        let mut drawn = vec![*entropy.secret::<16>().expose(), *fork.secret::<16>().expose()];
        drawn.push(entropy.public_id().0);
        drawn.push(*<Secret<[u8; 16]>>::redraw(&mut entropy).expose());
        drawn.push(*Entropy::redraw(&mut entropy).secret::<16>().expose());
        drawn.sort_unstable();
        drawn.dedup();
        assert_eq!(drawn.len(), 5);
    }

    #[test]
    fn a_wiped_generator_is_that_of_the_zero_seed() {
        let mut used = Generator(ChaCha20Rng::from_seed([7; 32]));
        used.0.next_u32();
        used.zeroize();
        assert!(used.0 == ChaCha20Rng::from_seed([0; 32]));
    }

    #[test]
    fn entropy_prints_nothing_of_its_state() {
        assert_eq!(format!("{:?}", Entropy::from_test_seed(1)), "Entropy(..)");
    }

    #[test]
    fn a_generation_id_prints_as_hex() {
        assert_eq!(GenerationId([0xa5; 16]).to_string(), "a5".repeat(16));
    }

    #[cfg(feature = "os")]
    #[test]
    fn the_operating_system_seeds_two_generators_differently() {
        let draw = || *Entropy::from_os().unwrap().secret::<32>().expose();
        assert_ne!(draw(), draw());
    }
}
