//! A link over a unix datagram socket: one frame to a datagram, as QEMU's `-netdev dgram`, libkrun's
//! `krun_add_net_unixgram` and vfkit have it.

use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::unix::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::path::PathBuf;

use rustix::io::Errno;

use super::LinkCounts;
use super::unix_socket;
use super::unix_socket::MAX_FRAME;
use super::unix_socket::SocketFile;

/// A bound socket, and where the peer's is: given, or where the last datagram came from.
pub(super) struct DatagramLink {
    socket: UnixDatagram,
    _file: SocketFile,
    peer: Option<PathBuf>,
    is_given: bool,
    buffer: Vec<u8>,
}

impl DatagramLink {
    /// Binds to `path`.
    pub(super) fn bind(path: &Path, peer: Option<&Path>) -> anyhow::Result<Self> {
        let (socket, file) = unix_socket::bind_datagram(path)?;
        let peer = peer.map(Path::to_owned);
        Ok(Self { socket, _file: file, is_given: peer.is_some(), peer, buffer: vec![0; MAX_FRAME + 1] })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// It is known where frames go, and somebody is there.
    pub(super) fn is_up(&self) -> bool {
        let is_there = |path: &PathBuf| UnixDatagram::unbound().and_then(|socket| socket.connect(path)).is_ok();
        self.peer.as_ref().is_some_and(is_there)
    }

    pub(super) fn receive(&mut self, counts: &mut LinkCounts) -> Option<Vec<u8>> {
        loop {
            let (read, from) = match self.socket.recv_from(&mut self.buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return None,
            };
            self.meet(&from, counts);
            match self.buffer.get(..read)? {
                VFKIT_HELLO => {}
                frame if frame.is_empty() || frame.len() > MAX_FRAME => counts.unreadable += 1,
                frame => return Some(frame.to_vec()),
            }
        }
    }

    /// Sends a frame. A peer that is not there, or not yet, is like a cable that is not plugged in.
    pub(super) fn send(&mut self, frame: &[u8], counts: &mut LinkCounts) -> Result<(), Errno> {
        let peer = self.peer.as_ref().ok_or(Errno::NOTCONN)?;
        match self.socket.send_to(frame, peer) {
            Ok(_) => Ok(()),
            Err(error) => {
                let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
                if matches!(errno, Errno::CONNREFUSED | Errno::NOENT) && !self.is_given {
                    counts.disconnects += 1;
                    self.peer = None;
                }
                Err(errno)
            }
        }
    }

    /// Notes where a datagram came from. One without an address cannot be answered.
    fn meet(&mut self, from: &SocketAddr, counts: &mut LinkCounts) {
        let Some(path) = from.as_pathname().filter(|_| !self.is_given) else { return };
        if self.peer.as_deref() != Some(path) {
            if self.peer.replace(path.to_owned()).is_some() {
                counts.disconnects += 1;
            }
            counts.connects += 1;
        }
    }
}

/// What vfkit sends first, to tell its address.
const VFKIT_HELLO: &[u8] = b"VFKT";

#[cfg(test)]
mod tests;
