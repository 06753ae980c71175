//! Frames that a link has received together.
//!
//! Before the first of them goes its way, the headers of all are read, their tuples hashed, and what the flow table holds for
//! them is fetched into the cache: the waits of up to 32 packets are one. All this changes nothing. Then each goes through
//! everything else by itself and in order, since what becomes of one may depend on every one before it: so what comes of a
//! burst is what would have come of its frames one by one.

use hibernet_conntrack::{Ahead, BURST, Parsed, parse};
use hibernet_snapshot::Instant;

use crate::ethernet::HEADER;
use crate::link::{LinkId, Medium};
use crate::offload::{Coalesced, Ingress, Merged, Offload};
use crate::route::is_own;
use crate::stack::Stack;

/// A frame that waits for its turn.
pub(super) struct Waiting {
    pub(super) frame: Vec<u8>,
    /// How many it was before it was put together.
    frames: u64,
    pub(super) offload: Offload,
    /// Where the datagram in it begins, and what its header says, if it is sound.
    pub(super) read: Option<(usize, Parsed)>,
    pub(super) ahead: Ahead,
}

impl Stack {
    /// Takes frames all the way.
    pub(crate) fn accept_burst(&mut self, link: LinkId, burst: impl IntoIterator<Item = Ingress>, now: Instant) {
        let mut frames = Coalesced::new(burst.into_iter().fuse());
        let coalesces = self.links.coalesces(link);
        // No packet changes what a link is made of, nor how many bytes its headers have.
        let at = match self.links.link(link).map(|link| link.medium) {
            Some(Medium::Ethernet { .. }) => HEADER,
            _ => 0,
        };
        loop {
            let mut burst: [Option<Waiting>; BURST] = core::array::from_fn(|_| {
                let next = match coalesces {
                    true => frames.next(at, |addr| is_own(&self.links, addr)),
                    false => frames.next_alone(),
                };
                next.map(|merged| self.read_ahead(merged, at))
            });
            if let [None, ..] = burst {
                return;
            }
            if let [_, Some(_), ..] = burst {
                burst.iter().flatten().for_each(|waiting| self.conntrack.fetch_ahead(&waiting.ahead));
            }
            for waiting in burst.iter_mut().map_while(Option::take) {
                self.tell(now);
                self.expire_fragments(now);
                self.attend_neighbours(now);
                self.stats.received = self.stats.received.saturating_add(waiting.frames);
                self.accept_from_link(link, waiting, now);
                self.settle(now);
            }
        }
    }

    fn read_ahead(&self, Merged { ingress: Ingress { frame, offload }, frames }: Merged, at: usize) -> Waiting {
        let datagram = frame.get(at..).unwrap_or_default();
        let read = parse(datagram).ok().map(|parsed| (at, parsed));
        let ahead = read.map_or_else(Ahead::default, |(_, parsed)| self.conntrack.look_ahead(datagram, &parsed));
        Waiting { frame, frames, offload, read, ahead }
    }
}
