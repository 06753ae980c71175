//! The control socket on an async runtime: a task per client, as many as there are permits.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixListener;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::http;
use super::http::Read;
use super::protocol::Request;
use super::server;
use super::server::Answer;
use super::server::SocketFile;

/// A listening control socket.
pub(crate) struct ControlTasks {
    listener: UnixListener,
    _file: SocketFile,
}

impl ControlTasks {
    /// Listens at `path`, for this user only. A socket left by a dead process is replaced, a live one is not.
    pub(crate) fn bind(path: &Path) -> anyhow::Result<Self> {
        let (listener, file) = server::listen(path)?;
        let listener = UnixListener::from_std(listener).context("preparing the control socket")?;
        Ok(Self { listener, _file: file })
    }

    /// Answers for ever, in tasks of the present `LocalSet`. As many clients at once as have a place.
    pub(crate) async fn serve(self, answer: impl Fn(Request) -> Answer + Clone + 'static) -> anyhow::Result<()> {
        let places = Arc::new(Semaphore::new(server::MAX_CLIENTS));
        loop {
            let place = Arc::clone(&places).acquire_owned().await.context("taking a place")?;
            let (client, _) = self.listener.accept().await.context("accepting at the control socket")?;
            let answer = answer.clone();
            tokio::task::spawn_local(async move {
                // A client that goes away wants nothing more.
                drop(converse(client, answer).await);
                drop(place);
            });
        }
    }
}

/// Answers one request at a time, until the client goes.
async fn converse(mut client: UnixStream, mut answer: impl FnMut(Request) -> Answer) -> anyhow::Result<()> {
    let mut unread = Vec::new();
    loop {
        let (length, request, close) = loop {
            if let Read::Whole { length, request, close } = http::read(&unread) {
                break (length, request, close);
            }
            if client.read_buf(&mut unread).await? == 0 {
                return Ok(());
            }
        };
        unread.drain(..length);
        let result = match request.map_or_else(|refused| Answer::Now(Err(refused)), &mut answer) {
            Answer::Now(result) => result,
            Answer::Later(pending) => tokio::task::spawn_blocking(move || pending.recv()).await??,
        };
        timeout(server::STALL, client.write_all(&http::answer(&result, close))).await??;
        if close {
            return Ok(());
        }
    }
}
