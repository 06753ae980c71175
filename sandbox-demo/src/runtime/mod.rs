//! An async runtime on the sans-IO stack: a driver task moves datagrams and time, and streams are tokio's `AsyncRead` and
//! `AsyncWrite`, listeners and UDP sockets have async calls.
//!
//! One thread: [`Net`] is not `Send`, so everything that uses it runs in a tokio `LocalSet`. A call never keeps the stack
//! over an `.await`, so whoever looks at the stack between two polls, as a save does, finds each stream in one piece with what
//! its task has noted about it in the same poll.

mod driver;
mod stop;
mod tcp;
mod udp;

use std::cell::RefCell;
use std::rc::Rc;

use hibernet_netstack::Stack;
use hibernet_snapshot::Instant;
use tokio::sync::Notify;

pub(crate) use self::driver::drive;
pub(crate) use self::stop::Stop;
pub(crate) use self::tcp::TcpListener;
pub(crate) use self::tcp::TcpStream;
pub(crate) use self::udp::UdpSocket;
use crate::gateway::Engine;

/// A stack with its links, shared by the driver and all streams.
#[derive(Clone)]
pub(crate) struct Net {
    engine: Rc<RefCell<Engine>>,
    changed: Rc<Notify>,
}

impl Net {
    pub(crate) fn new(engine: Engine) -> Self {
        Self { engine: Rc::new(RefCell::new(engine)), changed: Rc::new(Notify::new()) }
    }

    /// Does something with the engine, and lets the driver see to what came of it.
    pub(crate) fn with_engine<T>(&self, act: impl FnOnce(&mut Engine) -> T) -> T {
        let done = act(&mut self.engine.borrow_mut());
        self.changed.notify_one();
        done
    }

    /// Does something with the stack. The driver is woken only by [`Net::changed`].
    pub(crate) fn with_stack<T>(&self, act: impl FnOnce(&mut Stack, Instant) -> T) -> T {
        let mut engine = self.engine.borrow_mut();
        let (stack, now) = engine.stack();
        act(stack, now)
    }

    /// Something may have to be sent.
    fn changed(&self) {
        self.changed.notify_one();
    }
}

#[cfg(test)]
mod tests;
