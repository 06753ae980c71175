//! A stack, step by step, with everything it shows written down.

use std::time::Duration;

use hibernet_conntrack::ProtocolState;
use hibernet_netstack::{Stack, StackEvent};
use hibernet_snapshot::Instant;

use super::gateway::{GENERATION, restored};
use super::network::{Frame, Step};
use super::seen::Seen;

/// The names of the links, by which frames are remembered.
const LINKS: [&str; 3] = ["in", "out", "dmz"];

/// A stack under observation.
#[derive(Debug)]
pub struct Session {
    /// The stack.
    pub stack: Stack,
    /// What it has shown so far.
    pub seen: Seen,
    /// Number of the next step.
    pub step: usize,
    /// How much later than the steps say the stack's clock stands: what is seen is put back by it.
    pub later: Duration,
    now: Instant,
}

impl Session {
    /// Observes a stack from the step of that number on.
    pub fn of(stack: Stack, step: usize, now: Instant) -> Self {
        Self { stack, seen: Seen::default(), step, later: Duration::ZERO, now }
    }

    /// Lets one thing happen, and returns the frames that came of it.
    pub fn play(&mut self, step: &Step) -> Vec<Frame> {
        self.now = step.at.saturating_add(self.later);
        match &step.frame {
            Some(frame) => {
                let link = self.stack.link(frame.link).expect("a link of the gateway");
                self.stack.ingress(link, frame.bytes.clone(), self.now);
            }
            None => self.stack.poll(self.now),
        }
        while let Some(event) = self.stack.next_event() {
            self.seen.events.push((self.step, put_back(event, self.later)));
        }
        let mut frames = Vec::new();
        while let Some(sent) = self.stack.egress() {
            let name = self.stack.link_name(sent.link).expect("a link of the stack");
            let link = LINKS.into_iter().find(|link| *link == name).expect("a link of the gateway");
            self.seen.frames.push((self.step, (name.to_owned(), sent.datagram.clone())));
            frames.push(Frame { link, bytes: sent.datagram });
        }
        self.step += 1;
        frames
    }

    /// Lists the flows, saves, and searches the image for the keys the stack has now.
    pub fn checkpoint(&mut self) {
        let step = self.step.saturating_sub(1);
        let list = self.stack.flows(self.now).iter().map(ToString::to_string).collect();
        self.seen.lists.push((step, list));
        let image = self.image();
        let report = self.stack.canary_scan(&image);
        self.seen.hits.extend(report.hits.into_iter().map(|hit| (step, hit)));
        self.seen.looked_for.0 += report.key_windows;
        self.seen.looked_for.1 += report.hashes;
        self.seen.images.push((step, image));
    }

    /// The stack as an image.
    pub fn image(&self) -> Vec<u8> {
        self.stack.save(GENERATION, self.now).expect("the stack is at its time")
    }

    /// The time of the last step, by the stack's clock.
    pub const fn now(&self) -> Instant {
        self.now
    }

    /// Whether every flow in the table still counts. One whose time has come is not saved, but holds its place in the source
    /// until it is collected: at most an eighth of a second later.
    pub fn is_collected(&self) -> bool {
        self.stack.flows(self.now).len() == self.stack.conntrack().len() as usize
    }

    /// Puts in the place of the stack what its own image restores to, under keys of `seed`.
    pub fn move_over(&mut self, seed: u64) {
        let (heir, report) = restored(&self.image(), seed, self.now).expect("a stack restores from its image");
        assert_eq!((report.reset, report.dropped), (0, 0), "every flow goes on");
        self.stack = heir;
    }
}

/// Takes the shift of the clock out of the one instant that an event holds.
fn put_back(mut event: StackEvent, later: Duration) -> StackEvent {
    if let StackEvent::Conntrack(event) = &mut event
        && let ProtocolState::Udp(track) = &mut event.flow.protocol
    {
        let nanos = u64::try_from(later.as_nanos()).expect("less than five hundred years");
        track.stream_at = Instant::from_nanos(track.stream_at.as_nanos() - nanos);
    }
    event
}
