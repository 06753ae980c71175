//! The driver: datagrams between links and stack, and the stack's own deadlines.

use std::future::poll_fn;
use std::os::fd::OwnedFd;
use std::task::Context as Polled;
use std::task::Poll;
use std::time::Duration;

use anyhow::Context;
use tokio::io::unix::AsyncFd;

use super::Net;
use crate::control::RunState;
use crate::link::Link;
use crate::sys;

/// Drives a stack for ever. It sleeps until a link has something, a stream has changed something, or the stack's next
/// deadline has come.
pub(crate) async fn drive(net: Net) -> anyhow::Result<()> {
    let descriptors =
        net.with_engine(|engine| engine.links().filter_map(readable).collect::<anyhow::Result<Vec<_>>>())?;
    loop {
        let (more, held, wait) = {
            let mut engine = net.engine.borrow_mut();
            let more = engine.turn();
            let blocked = engine.links().any(|link| link.is_blocked().is_some());
            let longest = if blocked { BLOCKED_WAIT } else { LONGEST_WAIT };
            (more, engine.state() == RunState::Paused, engine.next_deadline().unwrap_or(longest).min(longest))
        };
        if more {
            // Streams have their turn between two bursts.
            tokio::task::yield_now().await;
            continue;
        }
        tokio::select! {
            read = poll_fn(|cx| poll_readable(&descriptors, cx)), if !held => read.context("waiting for traffic")?,
            () = net.changed.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// A descriptor of the link's own, to wait on.
fn readable(link: &Link) -> Option<anyhow::Result<AsyncFd<OwnedFd>>> {
    let fd = link.fd()?;
    let own = fd.try_clone_to_owned().context("duplicating a link's descriptor");
    Some(own.and_then(|own| sys::wait_readable(own).context("waiting on a link")))
}

/// Ready once any of them can be read. What arrives from then on makes it ready again, so they have to be read empty.
fn poll_readable(descriptors: &[AsyncFd<OwnedFd>], cx: &mut Polled<'_>) -> Poll<std::io::Result<()>> {
    let mut ready = false;
    for descriptor in descriptors {
        if let Poll::Ready(guard) = descriptor.poll_read_ready(cx) {
            guard?.clear_ready();
            ready = true;
        }
    }
    if ready { Poll::Ready(Ok(())) } else { Poll::Pending }
}

/// Even an idle stack looks around now and then.
const LONGEST_WAIT: Duration = Duration::from_millis(500);
/// A device that has no room does not say when it has again.
const BLOCKED_WAIT: Duration = Duration::from_millis(1);
