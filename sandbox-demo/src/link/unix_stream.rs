//! A link over a unix stream socket: each frame behind its length, 32 bits in network order.
//!
//! So speak QEMU's `-netdev stream`, libkrun's `krun_add_net_unixstream`, and what is made for passt. Whoever is at the other
//! end may go and come back, stop reading, or send nonsense: the link is then down, or full, and nothing else suffers.

use std::io::ErrorKind;
use std::io::IoSlice;
use std::io::Read;
use std::io::Write;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use hibernet_snapshot::Instant;
use rustix::io::Errno;

use super::LinkCounts;
use super::unix_socket;
use super::unix_socket::MAX_FRAME;
use super::unix_socket::SocketFile;
use super::unix_socket::Waiter;
use crate::clock;

/// The link's end of the stream.
pub(super) struct StreamLink {
    role: Role,
    waiter: Waiter,
    peer: Option<Peer>,
}

/// Who calls whom.
enum Role {
    /// We wait for one peer at a time; the next waits until the last is gone.
    Listens { listener: UnixListener, _file: SocketFile },
    /// We call, and call again, not more often than [`RETRY`].
    Connects(PathBuf, Instant),
}

struct Peer {
    stream: UnixStream,
    /// Read and not handed out yet, from `start` on.
    unread: Vec<u8>,
    start: usize,
    /// The rest of a frame that is half sent.
    unsent: Vec<u8>,
}

/// What is in front of `unread`.
enum Front {
    Frame(Vec<u8>),
    Unfinished,
    Nonsense,
}

impl StreamLink {
    /// Listens at `path`.
    pub(super) fn listen(path: &Path) -> anyhow::Result<Self> {
        let (listener, file) = unix_socket::listen(path)?;
        let waiter = Waiter::new()?;
        waiter.add(&listener)?;
        Ok(Self { role: Role::Listens { listener, _file: file }, waiter, peer: None })
    }

    /// Connects to `path`, now or as soon as somebody is there.
    pub(super) fn connect(path: &Path) -> anyhow::Result<Self> {
        Ok(Self { role: Role::Connects(path.to_owned(), Instant::ZERO), waiter: Waiter::new()?, peer: None })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.waiter.fd()
    }

    /// Somebody is at the other end.
    pub(super) fn is_up(&self) -> bool {
        self.peer.is_some()
    }

    /// A frame is half sent.
    pub(super) fn is_blocked(&self) -> bool {
        self.peer.as_ref().is_some_and(|peer| !peer.unsent.is_empty())
    }

    pub(super) fn receive(&mut self, counts: &mut LinkCounts) -> Option<Vec<u8>> {
        loop {
            if self.peer.is_none() && !self.meet(counts) {
                return None;
            }
            let peer = self.peer.as_mut()?;
            match peer.front() {
                Front::Frame(frame) => return Some(frame),
                // Where the next frame starts is not known any more.
                Front::Nonsense => {
                    counts.unreadable += 1;
                    self.part(counts);
                }
                Front::Unfinished => match peer.read() {
                    Ok(true) => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Ok(false) | Err(_) => self.part(counts),
                },
            }
        }
    }

    /// Sends a frame, in part if there is room for a part: the rest goes first the next time.
    pub(super) fn send(&mut self, frame: &[u8], counts: &mut LinkCounts) -> Result<(), Errno> {
        self.flush(counts);
        if self.is_blocked() {
            return Err(Errno::AGAIN);
        }
        let peer = self.peer.as_mut().ok_or(Errno::NOTCONN)?;
        let length = u32::try_from(frame.len()).map_err(|_| Errno::MSGSIZE)?.to_be_bytes();
        match peer.stream.write_vectored(&[IoSlice::new(&length), IoSlice::new(frame)]) {
            Ok(sent) => {
                let rest = length.iter().chain(frame).skip(sent);
                if sent < length.len() + frame.len() {
                    peer.unsent.extend(rest);
                }
                Ok(())
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Err(Errno::AGAIN),
            Err(_) => {
                self.part(counts);
                Err(Errno::NOTCONN)
            }
        }
    }

    /// Sends the rest of a frame, as far as there is room.
    pub(super) fn flush(&mut self, counts: &mut LinkCounts) {
        while let Some(peer) = self.peer.as_mut().filter(|peer| !peer.unsent.is_empty()) {
            match peer.stream.write(&peer.unsent) {
                Ok(sent) => drop(peer.unsent.drain(..sent)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => return self.part(counts),
            }
        }
    }

    /// Takes or makes a connection. False if there is none to be had now.
    fn meet(&mut self, counts: &mut LinkCounts) -> bool {
        let met = match &mut self.role {
            Role::Listens { listener, .. } => listener.accept().map(|(stream, _)| stream),
            Role::Connects(path, retry_at) => {
                let now = clock::monotonic();
                if now < *retry_at {
                    return false;
                }
                *retry_at = now.saturating_add(RETRY);
                UnixStream::connect(path)
            }
        };
        let Ok(stream) = met else { return false };
        if stream.set_nonblocking(true).is_err() || self.waiter.add(&stream).is_err() {
            return false;
        }
        let _as_large_as_may_be = rustix::net::sockopt::set_socket_send_buffer_size(&stream, SEND_BUFFER);
        if let Role::Listens { listener, .. } = &self.role {
            // Otherwise the next one in line would look like work.
            drop(self.waiter.remove(listener));
        }
        counts.connects += 1;
        self.peer = Some(Peer { stream, unread: Vec::new(), start: 0, unsent: Vec::new() });
        true
    }

    /// The peer is gone, or has to go.
    fn part(&mut self, counts: &mut LinkCounts) {
        if self.peer.take().is_some() {
            counts.disconnects += 1;
            if let Role::Listens { listener, .. } = &self.role {
                drop(self.waiter.add(listener));
            }
        }
    }
}

impl Peer {
    fn front(&mut self) -> Front {
        let unread = self.unread.get(self.start..).unwrap_or_default();
        let Some((length, rest)) = unread.split_first_chunk() else { return Front::Unfinished };
        let Ok(length) = usize::try_from(u32::from_be_bytes(*length)) else { return Front::Nonsense };
        if length == 0 || length > MAX_FRAME {
            return Front::Nonsense;
        }
        let Some(frame) = rest.get(..length) else { return Front::Unfinished };
        let frame = frame.to_vec();
        self.start += LENGTH + length;
        Front::Frame(frame)
    }

    /// Reads some more; false at the end of the stream.
    fn read(&mut self) -> std::io::Result<bool> {
        self.unread.drain(..self.start);
        self.start = 0;
        let filled = self.unread.len();
        self.unread.resize(filled + READ, 0);
        let read = self.stream.read(self.unread.get_mut(filled..).unwrap_or_default());
        self.unread.truncate(filled + read.as_ref().copied().unwrap_or(0));
        Ok(read? > 0)
    }
}

/// Bytes of a frame's length.
const LENGTH: usize = 4;
/// Bytes read at once.
const READ: usize = 64 * 1024;
/// What the kernel may hold for a peer that does not read.
const SEND_BUFFER: usize = 1 << 20;
/// Between two calls to a peer that is not there.
const RETRY: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests;
