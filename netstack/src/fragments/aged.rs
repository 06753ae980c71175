//! Held fragments after a time without traffic, and in a fork.

use core::time::Duration;

use hibernet_snapshot::Instant;

use super::{Defragmenter, Key};
use crate::restore::nearer;

impl Defragmenter {
    /// Lets `gone` pass for what came in on the links, by number, for which `passes` says so. What is over then is due at `now`.
    pub(crate) fn elapse(&mut self, gone: Duration, now: Instant, passes: impl Fn(u16) -> bool) {
        for key in self.keys_on(passes) {
            if let Some(queue) = self.queues.get_mut(&key) {
                self.deadlines.remove(&(queue.deadline, key));
                queue.deadline = nearer(queue.deadline, gone, now);
                self.deadlines.insert((queue.deadline, key));
            }
        }
    }

    /// Forgets what came in on the links, by number, for which `forgets` says so. Comes back with how many fragments they were.
    pub(crate) fn forget(&mut self, forgets: impl Fn(u16) -> bool) -> usize {
        let mut forgotten = 0_usize;
        for key in self.keys_on(forgets) {
            forgotten = forgotten.saturating_add(self.discard(&key));
            self.forget_source(key.src);
        }
        forgotten
    }

    fn keys_on(&self, chosen: impl Fn(u16) -> bool) -> Vec<Key> {
        self.queues.iter().filter(|(_, queue)| chosen(queue.link())).map(|(key, _)| *key).collect()
    }
}
