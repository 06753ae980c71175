//! When a program on the runtime ends.

use std::io;

use anyhow::Context;
use tokio::signal::unix::Signal;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;
use tokio::task::JoinSet;

/// SIGINT and SIGTERM, watched for from the moment it is made.
pub(crate) struct Stop([Signal; 2]);

impl Stop {
    pub(crate) fn watch() -> io::Result<Self> {
        Ok(Self([signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?]))
    }

    /// Waits for one of them. None of the services ends by itself: one that does has failed, and its error is the program's.
    pub(crate) async fn wait(self, services: &mut JoinSet<anyhow::Result<()>>) -> anyhow::Result<()> {
        let [mut interrupted, mut terminated] = self.0;
        tokio::select! {
            _ = interrupted.recv() => {}
            _ = terminated.recv() => {}
            ended = services.join_next() => if let Some(ended) = ended { ended.context("a service")?? }
        }
        Ok(())
    }
}
