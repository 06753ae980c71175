//! TCP of the stack as tokio knows it.

use std::future::poll_fn;
use std::io;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::Context;
use std::task::Poll;

use hibernet_netstack::StreamError;
use hibernet_netstack::StreamOptions;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;

use super::Net;

/// A port of the stack at which connections are accepted. It stays open when this value goes.
pub(crate) struct TcpListener {
    net: Net,
    id: hibernet_netstack::TcpListener,
}

/// A connection of the stack. The peer gets a FIN when this value goes, or a reset if it has sent what nobody has read.
pub(crate) struct TcpStream {
    net: Net,
    id: hibernet_netstack::TcpStream,
}

impl TcpListener {
    /// A listener of the stack, whether it was just opened or came out of an image.
    pub(crate) fn of(net: &Net, id: hibernet_netstack::TcpListener) -> Self {
        Self { net: net.clone(), id }
    }

    /// Waits for the next connection.
    pub(crate) async fn accept(&self) -> TcpStream {
        let id = poll_fn(|cx| {
            self.net.with_stack(|stack, _| match stack.tcp_accept(self.id) {
                Some(stream) => Poll::Ready(stream),
                None => {
                    stack.tcp_wake_on_accept(self.id, cx.waker());
                    Poll::Pending
                }
            })
        });
        TcpStream::of(&self.net, id.await)
    }
}

impl TcpStream {
    /// A stream of the stack, whether it was just accepted or came out of an image.
    pub(crate) fn of(net: &Net, id: hibernet_netstack::TcpStream) -> Self {
        Self { net: net.clone(), id }
    }

    /// Opens a connection of the stack; it is there before the peer has answered, which the first read or write waits for.
    pub(crate) fn connect(net: &Net, to: SocketAddr, options: StreamOptions) -> io::Result<Self> {
        let id = net.with_stack(|stack, now| stack.tcp_connect(None, to, options, now));
        net.changed();
        id.map(|id| Self::of(net, id)).map_err(io::Error::other)
    }

    /// Resets the peer.
    pub(crate) fn abort(self) {
        self.net.with_stack(|stack, now| stack.tcp_abort(self.id, now));
        self.net.changed();
    }

    /// The stack's id of it, which is the same after a restore.
    pub(crate) fn id(&self) -> hibernet_netstack::TcpStream {
        self.id
    }
}

impl AsyncRead for TcpStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, room: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if room.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let read = self.net.with_stack(|stack, now| {
            let read = stack.tcp_read(self.id, room.initialize_unfilled(), now);
            if read == Err(StreamError::WouldBlock) {
                stack.tcp_wake_on_read(self.id, cx.waker());
            }
            read
        });
        self.done(read).map_ok(|bytes| room.advance(bytes))
    }
}

impl AsyncWrite for TcpStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = self.net.with_stack(|stack, now| {
            let written = stack.tcp_write(self.id, bytes, now);
            if written == Err(StreamError::WouldBlock) {
                stack.tcp_wake_on_write(self.id, cx.waker());
            }
            written
        });
        self.done(written)
    }

    /// What is written is the stack's to send.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = self.net.with_stack(|stack, now| {
            let shut = stack.tcp_shutdown(self.id, now);
            if shut == Err(StreamError::WouldBlock) {
                // The handshake is not over.
                stack.tcp_wake_on_write(self.id, cx.waker());
            }
            shut
        });
        self.done(shut)
    }
}

impl TcpStream {
    fn done<T>(&self, result: Result<T, StreamError>) -> Poll<io::Result<T>> {
        match result {
            Ok(done) => {
                // Room in a window, bytes, or a FIN: something may have to be sent.
                self.net.changed();
                Poll::Ready(Ok(done))
            }
            Err(StreamError::WouldBlock) => Poll::Pending,
            Err(error) => Poll::Ready(Err(io::Error::new(kind(error), error))),
        }
    }
}

impl Drop for TcpStream {
    fn drop(&mut self) {
        self.net.with_stack(|stack, now| stack.tcp_close(self.id, now));
        self.net.changed();
    }
}

fn kind(error: StreamError) -> ErrorKind {
    match error {
        StreamError::WouldBlock => ErrorKind::WouldBlock,
        StreamError::Refused => ErrorKind::ConnectionRefused,
        StreamError::Reset => ErrorKind::ConnectionReset,
        StreamError::TimedOut => ErrorKind::TimedOut,
        StreamError::BrokenPipe => ErrorKind::BrokenPipe,
        StreamError::NoSuchStream => ErrorKind::NotConnected,
        _ => ErrorKind::Other,
    }
}
