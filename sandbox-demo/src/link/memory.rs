//! A link within the process: two queues, no system.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use rustix::io::Errno;

use super::Waiting;

/// A wire within the process; it outlives the gateways that open its near end.
#[derive(Clone, Default)]
pub(crate) struct Wire {
    to_gateway: Queue,
    from_gateway: Queue,
}

/// The gateway's end of a wire.
pub(super) struct MemoryLink {
    wire: Wire,
}

type Queue = Rc<RefCell<VecDeque<Vec<u8>>>>;

impl Wire {
    /// The next datagram from the gateway.
    pub(crate) fn receive(&self) -> Option<Vec<u8>> {
        self.from_gateway.borrow_mut().pop_front()
    }

    /// Sends a datagram to the gateway.
    pub(crate) fn send(&self, datagram: Vec<u8>) {
        let mut queue = self.to_gateway.borrow_mut();
        if queue.len() < MAX_QUEUED {
            queue.push_back(datagram);
        }
    }
}

impl MemoryLink {
    /// Opens the near end. What was sent while nobody had it open is lost.
    pub(super) fn open(wire: &Wire) -> Self {
        wire.to_gateway.borrow_mut().clear();
        Self { wire: wire.clone() }
    }

    pub(super) fn receive(&self) -> Option<Vec<u8>> {
        self.wire.to_gateway.borrow_mut().pop_front()
    }

    /// Sends the first of what waits.
    pub(super) fn send(&self, waiting: &Waiting) -> Result<usize, Errno> {
        let Some((datagram, _)) = waiting.front() else { return Ok(0) };
        let mut queue = self.wire.from_gateway.borrow_mut();
        if queue.len() >= MAX_QUEUED {
            return Err(Errno::NOBUFS);
        }
        queue.push_back(datagram.clone());
        Ok(1)
    }
}

/// Datagrams that may wait at an end nobody reads.
const MAX_QUEUED: usize = 1024;
