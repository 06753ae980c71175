//! How an image becomes a stack: who else may live, and what the time in between counts for.

use core::time::Duration;

use super::fork_rules::ForkRules;

/// How an image becomes a stack. The default is for a stack that moves: nobody else lives, no time has passed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RestorePolicy {
    /// Whether the saved stack may still live.
    pub clone: ClonePolicy,
    /// What the time between save and restore counts for.
    pub time: TimePolicy,
    /// How long ago the image was saved. The libraries read no clock and images hold no instant: the embedder measures it, by
    /// a wall clock it has written down beside the image.
    pub elapsed: Duration,
    /// Names of the links that lead to the guest. All others, and whoever is behind them, are outside. This host's own sockets
    /// are inside.
    pub inside: Vec<String>,
}

/// Whether the saved stack may still live.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum ClonePolicy {
    /// It is gone: this stack is the only heir, and every flow goes on.
    #[default]
    Move,
    /// It may live, and so may any number of other heirs. The rules say which flows go on here.
    Fork(ForkRules),
}

/// What the time between save and restore counts for.
///
/// It is about timers that face the outside: how long flows are remembered (with their NAT bindings), fragments are waited for
/// and neighbours are trusted, and the timers of this host's own TCP connections. Whatever faces an inside link stands still
/// under every policy, because the guest at its other end stood still.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum TimePolicy {
    /// Nothing: timers go on where they were, as if the sleep had not happened.
    #[default]
    Freeze,
    /// All of it: as if the stack had run all the while and no packet had come.
    Elapse,
    /// At most so much of it.
    Cap(Duration),
}

impl TimePolicy {
    /// What counts of the time that has passed.
    pub fn counted(self, elapsed: Duration) -> Duration {
        match self {
            Self::Freeze => Duration::ZERO,
            Self::Elapse => elapsed,
            Self::Cap(most) => elapsed.min(most),
        }
    }
}
