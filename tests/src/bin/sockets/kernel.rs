//! The kernel's ends of streams.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use super::flow::{Flow, Pipe, Sender};
use super::lab::{kernel_addr, stack_addr};

/// One end.
pub(super) struct End {
    socket: Place,
    pub(super) flow: Flow,
    /// The kernel's port, by which both ends name the stream.
    pub(super) port: u16,
}

impl End {
    /// Begins to connect to a port of the stack, from a port of the kernel's choice if `from` is 0.
    pub(super) fn connect(v6: bool, from: u16, to: u16) -> Result<Self> {
        let family = if v6 { AddressFamily::INET6 } else { AddressFamily::INET };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None).context("a kernel's socket")?;
        if from != 0 {
            sockopt::set_socket_reuseaddr(&socket, true)?;
            rustix::net::bind(&socket, &SocketAddr::new(kernel_addr(v6), from)).context("binding a kernel's socket")?;
        }
        match rustix::net::connect(&socket, &SocketAddr::new(stack_addr(v6), to)) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(errno) => return Err(errno).context("a kernel's connect"),
        }
        let socket = TcpStream::from(socket);
        let port = socket.local_addr().context("a kernel's port")?.port();
        Ok(Self { socket: Place::Born(socket), ..Self::nowhere(port) })
    }

    /// An end that a listener will accept; the port is for this stream alone.
    pub(super) fn unborn(listener: TcpListener, port: u16) -> Self {
        Self { socket: Place::Unborn(listener), ..Self::nowhere(port) }
    }

    /// An end without a socket.
    pub(super) fn nowhere(port: u16) -> Self {
        Self { socket: Place::Nowhere, flow: Flow::new(port.into(), Sender::Kernel), port }
    }

    /// It has a socket.
    pub(super) fn is_born(&self) -> bool {
        matches!(self.socket, Place::Born(_))
    }

    /// Does what can be done now. True if anything moved.
    pub(super) fn pump(&mut self) -> Result<bool> {
        if let Place::Unborn(listener) = &self.socket {
            match listener.accept() {
                Ok((socket, _)) => {
                    socket.set_nonblocking(true)?;
                    self.socket = Place::Born(socket);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error).context("a kernel's accept"),
            }
        }
        let Place::Born(socket) = &self.socket else { return Ok(false) };
        let moved = self.flow.pump(&mut Socket(socket));
        match &self.flow.failure {
            None => Ok(moved),
            Some(failure) => anyhow::bail!("the kernel's end of stream {}: {failure}", self.port),
        }
    }

    /// Waits until something can be done, some milliseconds at most.
    pub(super) fn wait(&self) -> Result<()> {
        let Place::Born(socket) = &self.socket else { return Ok(()) };
        let unsent = self.flow.sent.bytes < self.flow.goal;
        let flags = if unsent { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let mut fds = [PollFd::new(socket, flags)];
        rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 5_000_000 }))?;
        Ok(())
    }
}

/// Where an end is.
enum Place {
    Nowhere,
    /// Still to be accepted.
    Unborn(TcpListener),
    Born(TcpStream),
}

/// Accepts at a port of the kernel, both families; 0: at one of its choice.
pub(super) fn listen(v6: bool, port: u16) -> Result<TcpListener> {
    let listener = TcpListener::bind(SocketAddr::new(kernel_addr(v6), port)).context("a kernel's listener")?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// The states of the kernel's connections at a local port, by the numbers of `/proc/net/tcp`.
pub(super) fn states_at(port: u16) -> Result<Vec<u8>> {
    let mut states = Vec::new();
    each_at(port, |words| {
        states.push(u8::from_str_radix(words.get(3).unwrap_or(&""), 16).context("a kernel's state")?);
        Ok(())
    })?;
    Ok(states)
}

fn each_at(port: u16, mut see: impl FnMut(&[&str]) -> Result<()>) -> Result<()> {
    let suffix = format!(":{port:04X}");
    for file in ["tcp", "tcp6"] {
        let table = std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).context("the kernel's sockets")?;
        for line in table.lines().skip(1) {
            let words: Vec<&str> = line.split_whitespace().collect();
            if words.get(1).is_some_and(|local| local.ends_with(&suffix)) {
                see(&words)?;
            }
        }
    }
    Ok(())
}

/// Bytes of connections at a local port that are sent and not acknowledged.
pub(super) fn unacked_at(port: u16) -> Result<u64> {
    let mut unacked = 0;
    each_at(port, |words| {
        let (queued, _) = words.get(4).and_then(|queues| queues.split_once(':')).context("a kernel's queues")?;
        unacked += u64::from_str_radix(queued, 16).context("a kernel's queue")?;
        Ok(())
    })?;
    Ok(unacked)
}

/// LISTEN in `/proc/net/tcp`.
pub(super) const LISTEN: u8 = 0x0a;
/// TIME-WAIT in `/proc/net/tcp`.
pub(super) const TIME_WAIT: u8 = 0x06;

struct Socket<'a>(&'a TcpStream);

impl Pipe for Socket<'_> {
    fn read(&mut self, room: &mut [u8]) -> Result<Option<usize>, String> {
        ready(self.0.read(room))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<Option<usize>, String> {
        ready(self.0.write(bytes))
    }

    fn shut(&mut self) -> Result<(), String> {
        self.0.shutdown(Shutdown::Write).map_err(|error| error.to_string())
    }
}

fn ready(result: std::io::Result<usize>) -> Result<Option<usize>, String> {
    match result {
        Ok(count) => Ok(Some(count)),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}
