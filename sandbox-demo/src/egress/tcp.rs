//! TCP: the host connects first, then the guest's handshake is finished, and two pumps move bytes until both sides end.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use hibernet_netstack::Opening;
use hibernet_netstack::StreamError;
use hibernet_netstack::StreamOptions;
use hibernet_netstack::StreamState;
use hibernet_netstack::Unreached;
use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpSocket;
use tokio::net::TcpStream as HostStream;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::host;
use crate::runtime::Net;
use crate::runtime::TcpStream;

/// All TCP flows: each is a task.
#[derive(Clone)]
pub(super) struct TcpFlows {
    net: Net,
    most: usize,
    patience: Duration,
    live: Rc<RefCell<BTreeMap<Opening, Rc<Notify>>>>,
}

/// Which side of a flow does not go on.
enum Failed {
    Reading,
    Writing,
}

impl TcpFlows {
    /// No flows. `patience` is how long a host socket may connect.
    pub(super) fn new(net: &Net, most: usize, patience: Duration) -> Self {
        Self { net: net.clone(), most, patience, live: Rc::default() }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.live.borrow().len()
    }

    /// Connects to where a guest wants to go.
    pub(super) fn open(&self, opening: Opening, own: bool) {
        let to = match host::destination(opening.to, own) {
            Ok(to) => to,
            Err(why) => return self.refuse(opening, why),
        };
        // The guest has given an earlier one up, and asks again for the same.
        if let Some(earlier) = self.live.borrow_mut().remove(&opening) {
            earlier.notify_one();
        }
        if self.len() >= self.most {
            return self.refuse(opening, Unreached::NoPlace);
        }
        let cut = self.enter(opening);
        let flows = self.clone();
        tokio::task::spawn_local(async move {
            flows.run(opening, to, &cut).await;
            flows.leave(&opening, &cut);
        });
    }

    /// Goes on with a stream that came out of an image and a host socket that still has its other end.
    pub(super) fn adopt(&self, stream: TcpStream, opening: Opening, host: HostStream) {
        let cut = self.enter(opening);
        let flows = self.clone();
        tokio::task::spawn_local(async move {
            splice(&flows.net, stream, host, &cut).await;
            flows.leave(&opening, &cut);
        });
    }

    /// Ends the flows that may not be any more: both sides are reset.
    pub(super) fn retain(&self, may: impl Fn(SocketAddr) -> bool) -> usize {
        let live = self.live.borrow();
        let ended = live.iter().filter(|(opening, _)| !may(opening.to));
        ended.map(|(_, cut)| cut.notify_one()).count()
    }

    fn enter(&self, opening: Opening) -> Rc<Notify> {
        let cut = Rc::new(Notify::new());
        self.live.borrow_mut().insert(opening, Rc::clone(&cut));
        cut
    }

    fn is_current(&self, opening: &Opening, cut: &Rc<Notify>) -> bool {
        self.live.borrow().get(opening).is_some_and(|own| Rc::ptr_eq(own, cut))
    }

    fn leave(&self, opening: &Opening, cut: &Rc<Notify>) {
        if self.is_current(opening, cut) {
            self.live.borrow_mut().remove(opening);
        }
    }

    async fn run(&self, opening: Opening, to: SocketAddr, cut: &Rc<Notify>) {
        let connected = tokio::select! {
            () = cut.notified() => {
                // Where a later one has taken its place, the guest has not asked twice.
                if self.is_current(&opening, cut) {
                    self.refuse(opening, Unreached::Prohibited);
                }
                return;
            }
            connected = timeout(self.patience, connect(to)) => connected,
        };
        let host = match connected {
            Ok(Ok(host)) => host,
            Ok(Err(error)) => return self.refuse(opening, host::unreached(&error)),
            Err(_) => return self.refuse(opening, Unreached::TimedOut),
        };
        let accepted = self.net.with_engine(|engine| {
            let (stack, now) = engine.stack();
            stack.tproxy_accept(opening, STREAM, now)
        });
        match accepted {
            Ok(id) => splice(&self.net, TcpStream::of(&self.net, id), host, cut).await,
            // The guest has taken it back, or the stack has no place: a drop, of which it tells.
            Err(_) => host::reset_at_close(&host),
        }
    }

    fn refuse(&self, opening: Opening, why: Unreached) {
        self.net.with_engine(|engine| {
            let (stack, now) = engine.stack();
            stack.tproxy_refuse(opening, why, now);
        });
    }
}

async fn connect(to: SocketAddr) -> io::Result<HostStream> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if to.is_ipv6() {
        rustix::net::sockopt::set_ipv6_v6only(&socket, true)?;
    }
    // The guest's own segments come as it has decided.
    socket.set_nodelay(true)?;
    socket.connect(to).await
}

/// Moves bytes both ways until both sides have ended, or one is gone: then the other is reset.
async fn splice(net: &Net, guest: TcpStream, mut host: HostStream, cut: &Notify) {
    let id = guest.id();
    let mut guest = guest;
    let ends_in_order = {
        let (guest_reads, guest_writes) = tokio::io::split(&mut guest);
        let (host_reads, host_writes) = host.split();
        let mut out = pin!(pump(guest_reads, host_writes));
        let mut back = pin!(pump(host_reads, guest_writes));
        let mut gone = pin!(guest_is_gone(net, id));
        let (mut out_is_over, mut back_is_over, mut host_failed) = (false, false, false);
        loop {
            if out_is_over && back_is_over {
                break !host_failed;
            }
            tokio::select! {
                () = cut.notified() => break false,
                () = &mut gone => break false,
                done = &mut out, if !out_is_over => match done {
                    Err(Failed::Reading) => break false,
                    // What the host has received before its end is still the guest's to read.
                    Err(Failed::Writing) => (out_is_over, host_failed) = (true, true),
                    Ok(()) => out_is_over = true,
                },
                done = &mut back, if !back_is_over => match done {
                    Err(Failed::Reading) => {
                        tokio::select! {
                            () = cut.notified() => {}
                            () = &mut gone => {}
                            _ = timeout(DRAIN, guest_has_all(net, id)) => {}
                        }
                        break false;
                    }
                    Err(Failed::Writing) => break false,
                    Ok(()) => back_is_over = true,
                },
            }
        }
    };
    if !ends_in_order {
        host::reset_at_close(&host);
        guest.abort();
    }
}

/// Moves bytes one way, as fast as they are taken, and passes the end on.
async fn pump(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> Result<(), Failed> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = from.read(&mut buffer).await.map_err(|_| Failed::Reading)?;
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else {
            return to.shutdown().await.map_err(|_| Failed::Writing);
        };
        to.write_all(bytes).await.map_err(|_| Failed::Writing)?;
    }
}

/// Ready once the guest has ended the stream with a reset, or is not heard of any more. Nobody may be reading then.
async fn guest_is_gone(net: &Net, id: hibernet_netstack::TcpStream) {
    poll_fn(|cx| {
        net.with_stack(|stack, now| {
            if !matches!(stack.tcp_state(id), None | Some(StreamState::Closed)) {
                stack.tcp_wake_on_read(id, cx.waker());
                return Poll::Pending;
            }
            // One that has ended in order may still be read, and nothing more will become of it.
            let is_failed = stack.tcp_read(id, &mut [], now).is_err_and(|error| error != StreamError::WouldBlock);
            if is_failed { Poll::Ready(()) } else { Poll::Pending }
        })
    })
    .await;
}

/// Ready once the guest has acknowledged all that was written.
async fn guest_has_all(net: &Net, id: hibernet_netstack::TcpStream) {
    poll_fn(|cx| {
        net.with_stack(|stack, _| {
            if stack.tcp_unacknowledged(id).is_none_or(|bytes| bytes == 0) {
                return Poll::Ready(());
            }
            stack.tcp_wake_on_write(id, cx.waker());
            Poll::Pending
        })
    })
    .await;
}

/// Of each direction of a flow; the sockets' buffers come on top.
const BUFFER: usize = 32 * 1024;
/// How long a reset of the host's waits for the guest to acknowledge what came before it.
const DRAIN: Duration = Duration::from_secs(2);
/// The guest's side: it is a link away, so its buffers are for batching. The host has waited for the handshake already.
const STREAM: StreamOptions = StreamOptions {
    receive_buffer: 262_144,
    send_buffer: 262_144,
    nodelay: true,
    keepalive: None,
    user_timeout: None,
    hop_limit: 64,
    congestion: hibernet_netstack::Congestion::None,
};
