//! What is served on each stream, as plain data that is saved with the stack, and the tasks that do it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::LazyLock;
use std::time::Duration;

use hibernet_netstack::TcpStream as StreamId;
use serde::Deserialize;
use serde::Serialize;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio::time::timeout;
use tokio::time::timeout_at;

use super::files::Root;
use super::http::Exchange;
use super::http::Next;
use crate::runtime::TcpListener;
use crate::runtime::TcpStream;
use crate::runtime::UdpSocket;

/// What is offered at a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Service {
    Http,
    Echo,
    Discard,
    Chargen,
}

/// All that a service knows of one stream. A task changes it in the same poll in which it takes bytes from the stream or
/// gives some, so that a save between two polls finds both of one moment.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Session {
    Http(Exchange),
    Echo(Echo),
    Discard,
    /// How far the characters have come.
    Chargen(u64),
}

/// A stream whose bytes go back.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Echo {
    /// Received and not sent back yet.
    unsent: Vec<u8>,
    /// Nothing more will come.
    over: bool,
}

/// All services with their streams.
#[derive(Clone)]
pub(super) struct Sessions {
    root: Rc<Root>,
    by_stream: Rc<RefCell<BTreeMap<StreamId, Session>>>,
    /// How many connections each service may still accept: one cannot take another's places.
    places: [Arc<Semaphore>; 4],
}

impl Sessions {
    pub(super) fn new(root: Root, most: usize) -> Self {
        let places = || Arc::new(Semaphore::new(most));
        Self { root: Rc::new(root), by_stream: Rc::default(), places: [places(), places(), places(), places()] }
    }

    /// Calls `look` with all sessions.
    pub(super) fn look<T>(&self, look: impl FnOnce(&BTreeMap<StreamId, Session>) -> T) -> T {
        look(&self.by_stream.borrow())
    }

    /// Accepts for ever, as long as there are places; who comes meanwhile waits in the stack's backlog.
    pub(super) async fn accept(self, listener: TcpListener, service: Service) -> anyhow::Result<()> {
        loop {
            let place = Arc::clone(self.places(service)).acquire_owned().await?;
            let stream = listener.accept().await;
            let session = match service {
                Service::Http => Session::Http(Exchange::default()),
                Service::Echo => Session::Echo(Echo::default()),
                Service::Discard => Session::Discard,
                Service::Chargen => Session::Chargen(0),
            };
            self.start(stream, session, Some(place));
        }
    }

    /// Goes on with a stream that came out of an image. It counts, though it may not wait for a place.
    pub(super) fn resume(&self, stream: TcpStream, session: Session) {
        let place = Arc::clone(self.places(session.service())).try_acquire_owned().ok();
        self.start(stream, session, place);
    }

    fn places(&self, service: Service) -> &Arc<Semaphore> {
        let [http, echo, discard, chargen] = &self.places;
        match service {
            Service::Http => http,
            Service::Echo => echo,
            Service::Discard => discard,
            Service::Chargen => chargen,
        }
    }

    fn start(&self, mut stream: TcpStream, session: Session, place: Option<OwnedSemaphorePermit>) {
        let service = session.service();
        self.by_stream.borrow_mut().insert(stream.id(), session);
        let sessions = self.clone();
        tokio::task::spawn_local(async move {
            // A peer that breaks off or stalls loses its stream, and nobody has to be told.
            drop(sessions.serve(&mut stream, service).await);
            sessions.by_stream.borrow_mut().remove(&stream.id());
            drop((stream, place));
        });
    }

    async fn serve(&self, stream: &mut TcpStream, service: Service) -> io::Result<()> {
        let mut file = None;
        let mut buffer = vec![0; if service == Service::Discard { BULK } else { READ }];
        let patience = if service == Service::Http { REQUEST_TIME } else { IDLE };
        let mut until = Instant::now() + patience;
        loop {
            match self.change(stream, |session| session.next(&self.root, &mut file))? {
                Next::Send(bytes) => {
                    let sent = timeout(STALL, stream.write(&bytes)).await??;
                    self.change(stream, |session| {
                        session.sent(sent);
                        Ok(())
                    })?;
                    until = Instant::now() + patience;
                }
                Next::Receive => {
                    // The whole request has to come in that time, however small its pieces.
                    let read = timeout_at(until, stream.read(&mut buffer)).await??;
                    let received = buffer.get(..read).unwrap_or_default();
                    if self.change(stream, |session| Ok(session.received(received)))? {
                        break;
                    }
                    if service != Service::Http {
                        until = Instant::now() + patience;
                    }
                }
                Next::Close => break,
            }
        }
        stream.shutdown().await?;
        // What is still on its way must not be answered with a reset, which would overtake what has been sent.
        let farewell = async {
            while stream.read(&mut buffer).await? > 0 {}
            Ok(())
        };
        timeout(FAREWELL, farewell).await?
    }

    fn change<T>(&self, stream: &TcpStream, act: impl FnOnce(&mut Session) -> io::Result<T>) -> io::Result<T> {
        match self.by_stream.borrow_mut().get_mut(&stream.id()) {
            Some(session) => act(session),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

impl Session {
    fn service(&self) -> Service {
        match self {
            Self::Http(_) => Service::Http,
            Self::Echo(_) => Service::Echo,
            Self::Discard => Service::Discard,
            Self::Chargen(_) => Service::Chargen,
        }
    }

    fn next(&mut self, root: &Root, file: &mut Option<std::fs::File>) -> io::Result<Next> {
        match self {
            Self::Http(exchange) => exchange.next(root, file),
            Self::Echo(Echo { unsent, .. }) if !unsent.is_empty() => Ok(Next::Send(unsent.clone())),
            Self::Echo(Echo { over: true, .. }) => Ok(Next::Close),
            Self::Echo(_) | Self::Discard => Ok(Next::Receive),
            Self::Chargen(at) => Ok(Next::Send(characters(*at))),
        }
    }

    fn sent(&mut self, bytes: usize) {
        match self {
            Self::Http(exchange) => exchange.sent(bytes),
            Self::Echo(Echo { unsent, .. }) => drop(unsent.drain(..bytes.min(unsent.len()))),
            Self::Chargen(at) => *at += bytes as u64,
            Self::Discard => {}
        }
    }

    /// Takes what has come. True if the peer has ended the stream.
    fn received(&mut self, bytes: &[u8]) -> bool {
        match self {
            Self::Http(exchange) => exchange.received(bytes),
            Self::Echo(echo) => {
                echo.unsent.extend_from_slice(bytes);
                echo.over = bytes.is_empty();
            }
            Self::Discard | Self::Chargen(_) => {}
        }
        bytes.is_empty()
    }
}

/// The characters of the character generator (RFC 864) from the one at that place on: lines of 72, each begins one further in
/// the 95 that can be printed.
fn characters(at: u64) -> Vec<u8> {
    static LINES: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let line = |first: u8| (0..72).map(move |at| b' ' + (first + at) % 95).chain(*b"\r\n");
        (0..95).flat_map(line).cycle().take(95 * 74 + BULK).collect()
    });
    let at = usize::try_from(at % (95 * 74)).unwrap_or(0);
    LINES.get(at..at + BULK).unwrap_or_default().to_vec()
}

/// Sends every datagram back, for ever. It goes back in the same poll, so that there is nothing to be saved.
pub(super) async fn echo_datagrams(socket: UdpSocket, port: u16) -> anyhow::Result<()> {
    loop {
        // Neither what an ICMP error says of an echo nor an echo that is dropped is anybody's to hear. Two echo servers
        // would go on for ever.
        if let Ok(datagram) = socket.receive().await
            && datagram.from.port() != port
        {
            drop(socket.send(datagram.from, &datagram.payload));
        }
    }
}

/// Taken from a stream at once.
const READ: usize = 4096;
/// Taken or given at once where nothing else is done with it.
const BULK: usize = 1 << 16;
/// For a request to come, and between two of them.
const REQUEST_TIME: Duration = Duration::from_secs(15);
/// Another stream without a word for so long is closed.
const IDLE: Duration = Duration::from_secs(300);
/// For a peer to make room.
const STALL: Duration = Duration::from_secs(60);
/// For a peer to end its side behind ours.
const FAREWELL: Duration = Duration::from_secs(2);
