//! What links over unix sockets share: their files, and one descriptor to wait on whoever is connected.

use std::fs::Permissions;
use std::io;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::path::PathBuf;

use anyhow::Context;
use rustix::event::epoll;

use crate::fault::Fault;

/// The file of a bound socket; it goes when this does.
pub(super) struct SocketFile(PathBuf);

/// Ready whenever one of several descriptors is. It stays the same while those come and go.
pub(super) struct Waiter(OwnedFd);

impl Waiter {
    pub(super) fn new() -> anyhow::Result<Self> {
        Ok(Self(epoll::create(epoll::CreateFlags::CLOEXEC).context("making an epoll descriptor")?))
    }

    /// Waits for this one too, until it is taken out or closed.
    pub(super) fn add(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(epoll::add(&self.0, fd, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?)
    }

    pub(super) fn remove(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.0, fd)?)
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Listens at `path`, for this user only. A socket that nobody answers at is replaced.
pub(super) fn listen(path: &Path) -> anyhow::Result<(UnixListener, SocketFile)> {
    let bind = || UnixListener::bind(path);
    let is_dead = || matches!(UnixStream::connect(path), Err(error) if error.kind() == ErrorKind::ConnectionRefused);
    let (listener, file) = bound(path, bind, is_dead)?;
    listener.set_nonblocking(true).context("preparing a link's socket")?;
    Ok((listener, file))
}

/// Binds a datagram socket to `path`, for this user only. A socket that nobody has any more is replaced.
pub(super) fn bind_datagram(path: &Path) -> anyhow::Result<(UnixDatagram, SocketFile)> {
    let is_dead = || {
        let asked = UnixDatagram::unbound().and_then(|socket| socket.connect(path));
        matches!(asked, Err(error) if error.kind() == ErrorKind::ConnectionRefused)
    };
    let (socket, file) = bound(path, || UnixDatagram::bind(path), is_dead)?;
    socket.set_nonblocking(true).context("preparing a link's socket")?;
    Ok((socket, file))
}

fn bound<T>(
    path: &Path,
    bind: impl Fn() -> io::Result<T>,
    is_dead: impl Fn() -> bool,
) -> anyhow::Result<(T, SocketFile)> {
    let socket = match bind() {
        Err(error) if error.kind() == ErrorKind::AddrInUse && is_dead() => {
            drop(std::fs::remove_file(path));
            bind()
        }
        result => result,
    };
    let socket = socket.map_err(|error| {
        let remedy = match error.kind() {
            ErrorKind::AddrInUse => "something is there already: stop it, or name another path",
            _ => "choose a short path in a directory you can write",
        };
        Fault::new(format!("cannot bind the link's socket {}: {error}", path.display()), remedy)
    })?;
    let file = SocketFile(path.to_owned());
    std::fs::set_permissions(path, Permissions::from_mode(0o600)).context("closing a link's socket to others")?;
    Ok((socket, file))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.0));
    }
}

/// The longest frame a peer may send: what QEMU's buffers hold (`NET_BUFSIZE`).
pub(super) const MAX_FRAME: usize = 4096 + 65_536;
