//! The gateway's end of its control socket: never waits for a client, never lets one grow.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::io::Read as _;
use std::io::Write as _;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::path::PathBuf;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::TryRecvError;
use std::time::Duration;

use anyhow::Context;
use hibernet_snapshot::Instant;
use serde_json::Value;

use super::http;
use super::http::Read;
use super::http::Refused;
use super::protocol::Request;
use crate::fault::Fault;

/// What a request came to.
pub(crate) enum Answer {
    /// The answer is here.
    Now(Result<Value, Refused>),
    /// Someone else is at work on it and will send it.
    Later(Receiver<Result<Value, Refused>>),
}

/// The listening socket and its clients.
pub(crate) struct ControlServer {
    listener: UnixListener,
    _file: SocketFile,
    clients: VecDeque<Client>,
}

/// The file of a listening socket; it goes when this does.
pub(crate) struct SocketFile(PathBuf);

struct Client {
    stream: UnixStream,
    unread: Vec<u8>,
    unsent: Vec<u8>,
    pending: Option<Receiver<Result<Value, Refused>>>,
    /// Nothing follows the present answer.
    close: bool,
    /// When it last took or gave a byte.
    active: Instant,
    gone: bool,
}

impl ControlServer {
    /// Listens at `path`, for this user only. A socket left by a dead gateway is replaced, a live one is not.
    pub(crate) fn bind(path: &Path) -> anyhow::Result<Self> {
        let (listener, file) = listen(path)?;
        Ok(Self { listener, _file: file, clients: VecDeque::new() })
    }

    /// What to wait on: each descriptor, and whether for writing (else for reading).
    pub(crate) fn waits(&self) -> impl Iterator<Item = (BorrowedFd<'_>, bool)> {
        let clients = self.clients.iter().filter(|client| client.pending.is_none());
        std::iter::once((self.listener.as_fd(), false))
            .chain(clients.map(|client| (client.stream.as_fd(), !client.unsent.is_empty())))
    }

    /// An answer is still being worked on: come back soon.
    pub(crate) fn has_pending(&self) -> bool {
        self.clients.iter().any(|client| client.pending.is_some())
    }

    /// Takes new clients, answers whole requests, sends what can be sent. Never waits.
    pub(crate) fn serve(&mut self, now: Instant, mut answer: impl FnMut(Request) -> Answer) {
        while let Ok((stream, _)) = self.listener.accept() {
            if stream.set_nonblocking(true).is_ok() {
                if self.clients.len() >= MAX_CLIENTS {
                    self.clients.pop_front();
                }
                self.clients.push_back(Client::new(stream, now));
            }
        }
        for client in &mut self.clients {
            client.serve(now, &mut answer);
        }
        self.clients.retain(|client| !client.gone);
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.0));
    }
}

impl Client {
    fn new(stream: UnixStream, now: Instant) -> Self {
        Self { stream, unread: Vec::new(), unsent: Vec::new(), pending: None, close: false, active: now, gone: false }
    }

    /// One request at a time: the next is taken once the last answer is on its way.
    fn serve(&mut self, now: Instant, answer: &mut impl FnMut(Request) -> Answer) {
        self.collect_pending();
        self.send(now);
        if self.is_idle() {
            self.read(now);
        }
        while self.is_idle() && !self.gone && self.answer_request(answer) {
            self.send(now);
        }
        let stalled = now.saturating_since(self.active) > STALL && !self.unsent.is_empty();
        self.gone |= stalled;
    }

    fn is_idle(&self) -> bool {
        self.unsent.is_empty() && self.pending.is_none()
    }

    fn collect_pending(&mut self) {
        if let Some(pending) = &self.pending {
            match pending.try_recv() {
                Ok(result) => self.reply(result),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => self.reply(Err("the work was given up".to_owned().into())),
            }
            self.pending = None;
        }
    }

    fn read(&mut self, now: Instant) {
        let mut buffer = [0; 4096];
        while self.unread.len() <= http::MAX_HEAD + http::MAX_BODY {
            match self.stream.read(&mut buffer) {
                Ok(0) => {
                    self.gone = true;
                    return;
                }
                Ok(read) => {
                    self.unread.extend_from_slice(buffer.get(..read).unwrap_or_default());
                    self.active = now;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => {
                    self.gone = true;
                    return;
                }
            }
        }
    }

    /// Answers the first whole request; false if there is none.
    fn answer_request(&mut self, answer: &mut impl FnMut(Request) -> Answer) -> bool {
        let Read::Whole { length, request, close } = http::read(&self.unread) else { return false };
        self.unread.drain(..length);
        self.close = close;
        match request.map_or_else(|refused| Answer::Now(Err(refused)), answer) {
            Answer::Now(result) => self.reply(result),
            Answer::Later(pending) => self.pending = Some(pending),
        }
        true
    }

    fn reply(&mut self, result: Result<Value, Refused>) {
        self.unsent = http::answer(&result, self.close);
    }

    fn send(&mut self, now: Instant) {
        while !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(0) => {
                    self.gone = true;
                    return;
                }
                Ok(sent) => {
                    self.unsent.drain(..sent);
                    self.active = now;
                    self.gone |= self.close && self.unsent.is_empty();
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => {
                    self.gone = true;
                    return;
                }
            }
        }
    }
}

/// Listens at `path`, for this user only, without waiting. A socket left by a dead gateway is replaced, a live one is not.
pub(super) fn listen(path: &Path) -> anyhow::Result<(UnixListener, SocketFile)> {
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            replace_dead(path)?;
            UnixListener::bind(path)
        }
        result => result,
    }
    .map_err(|error| {
        Fault::new(
            format!("cannot listen at {}: {error}", path.display()),
            "choose a short path in a directory you can write with --control",
        )
    })?;
    let file = SocketFile(path.to_owned());
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .context("closing the control socket to others")?;
    listener.set_nonblocking(true).context("preparing the control socket")?;
    Ok((listener, file))
}

/// Removes a socket nobody answers at; refuses to take a live gateway's.
fn replace_dead(path: &Path) -> Result<(), Fault> {
    match UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            drop(std::fs::remove_file(path));
            Ok(())
        }
        _ => Err(Fault::new(
            format!("address in use: something answers at {} already", path.display()),
            "stop that gateway, or choose another socket with --control",
        )),
    }
}

/// More than a person and their scripts need; the longest-connected gives way.
pub(super) const MAX_CLIENTS: usize = 16;
/// A client that takes no byte of its answer for so long is dropped.
pub(super) const STALL: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests;
