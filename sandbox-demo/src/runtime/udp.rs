//! UDP of the stack, as an async runtime knows it.

use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::task::Poll;

use hibernet_netstack::UdpDatagram;

use super::Net;

/// A UDP socket of the stack. It stays open when this value goes.
pub(crate) struct UdpSocket {
    net: Net,
    id: hibernet_netstack::UdpSocket,
}

impl UdpSocket {
    /// A socket of the stack, whether it was just opened or came out of an image.
    pub(crate) fn of(net: &Net, id: hibernet_netstack::UdpSocket) -> Self {
        Self { net: net.clone(), id }
    }

    /// Waits for the next datagram, or for what an ICMP error says of one that was sent.
    pub(crate) async fn receive(&self) -> io::Result<UdpDatagram> {
        poll_fn(|cx| {
            self.net.with_stack(|stack, _| match stack.udp_recv(self.id) {
                Ok(Some(datagram)) => Poll::Ready(Ok(datagram)),
                Ok(None) => match stack.udp_wake_on_readable(self.id, cx.waker()) {
                    Ok(()) => Poll::Pending,
                    Err(error) => Poll::Ready(Err(io::Error::other(error))),
                },
                Err(error) => Poll::Ready(Err(io::Error::other(error))),
            })
        })
        .await
    }

    /// A new socket on a port nobody can guess, which hears of `peer` alone.
    pub(crate) fn connected(net: &Net, from: IpAddr, peer: SocketAddr) -> io::Result<Self> {
        net.with_stack(|stack, _| {
            let id = stack.udp_bind(from, 0).map_err(io::Error::other)?;
            if let Err(error) = stack.udp_connect(id, peer) {
                stack.udp_close(id);
                return Err(io::Error::other(error));
            }
            Ok(Self { net: net.clone(), id })
        })
    }

    /// Closes it.
    pub(crate) fn close(&self) {
        self.net.with_stack(|stack, _| stack.udp_close(self.id));
    }

    /// Sends a datagram at once.
    pub(crate) fn send(&self, to: SocketAddr, payload: &[u8]) -> io::Result<()> {
        let sent = self.net.with_stack(|stack, now| stack.udp_send(self.id, to, payload, now));
        self.net.changed();
        sent.map_err(io::Error::other)
    }
}
