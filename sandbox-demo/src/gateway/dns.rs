//! A DNS forwarder at the gateway's addresses: questions of the guest go to the host's resolvers, answers come back.
//!
//! Each question leaves by a socket of its own, with an identifier of its own (RFC 5452), so that an answer has to guess both.
//! Nothing of it is saved: a guest that had no answer asks again.

use std::cell::Cell;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use hibernet_snapshot::Entropy;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream as HostStream;
use tokio::net::UdpSocket as HostSocket;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::runtime::TcpListener;
use crate::runtime::TcpStream;
use crate::runtime::UdpSocket;

/// The forwarder; its clones are one.
#[derive(Clone)]
pub(crate) struct DnsForwarder {
    resolvers: Rc<[SocketAddr]>,
    /// Questions that may be under way at once, and streams.
    places: Arc<Semaphore>,
    /// Questions without an answer yet.
    pending: Rc<Cell<u32>>,
}

/// A question that is under way.
struct Pending(Rc<Cell<u32>>);

impl DnsForwarder {
    pub(crate) fn new(resolvers: &[SocketAddr]) -> Self {
        Self { resolvers: resolvers.into(), places: Arc::new(Semaphore::new(MOST_QUESTIONS)), pending: Rc::default() }
    }

    /// Questions without an answer yet.
    pub(crate) fn pending(&self) -> u32 {
        self.pending.get()
    }

    /// Answers datagrams, for ever.
    pub(crate) async fn answer_datagrams(self, socket: UdpSocket) -> anyhow::Result<()> {
        let socket = Rc::new(socket);
        loop {
            // What an ICMP error says of an answer is nobody's to hear.
            let Ok(asked) = socket.receive().await else { continue };
            if !is_question(&asked.payload) {
                continue;
            }
            let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
                // The guest asks again.
                continue;
            };
            let (forwarder, socket) = (self.clone(), Rc::clone(&socket));
            tokio::task::spawn_local(async move {
                let answer = forwarder.ask(&asked.payload, Transport::Udp).await;
                // If it cannot be sent it is lost, as datagrams are.
                drop(socket.send(asked.from, &answer));
                drop(place);
            });
        }
    }

    /// Serves streams, for ever.
    pub(crate) async fn answer_streams(self, listener: TcpListener) -> anyhow::Result<()> {
        loop {
            let place = Arc::clone(&self.places).acquire_owned().await?;
            let stream = listener.accept().await;
            let forwarder = self.clone();
            tokio::task::spawn_local(async move {
                // A guest that goes away wants nothing more.
                drop(forwarder.converse(stream).await);
                drop(place);
            });
        }
    }

    /// Answers the questions of a stream one after the other, each behind its length (RFC 7766).
    async fn converse(self, mut stream: TcpStream) -> anyhow::Result<()> {
        loop {
            let mut length = [0; 2];
            timeout(IDLE, stream.read_exact(&mut length)).await??;
            let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
            timeout(IDLE, stream.read_exact(&mut question)).await??;
            anyhow::ensure!(is_question(&question), "no question");
            let answer = self.ask(&question, Transport::Tcp).await;
            timeout(IDLE, stream.write_all(&framed(&answer)?)).await??;
        }
    }

    /// The answer to a question: of the first resolver that gives one, else that there is none (SERVFAIL).
    async fn ask(&self, question: &[u8], transport: Transport) -> Vec<u8> {
        let _pending = Pending::new(&self.pending);
        for resolver in self.resolvers.iter() {
            let asked = async {
                let id = fresh_id()?;
                let mut message = question.to_vec();
                set_id(&mut message, id);
                let mut answer = match transport {
                    Transport::Udp => over_udp(*resolver, &message).await?,
                    Transport::Tcp => over_tcp(*resolver, &message).await?,
                };
                set_id(&mut answer, own_id(question));
                anyhow::Ok(answer)
            };
            if let Ok(Ok(answer)) = timeout(PATIENCE, asked).await {
                return answer;
            }
        }
        failure(question)
    }
}

#[derive(Clone, Copy)]
enum Transport {
    Udp,
    Tcp,
}

impl Pending {
    fn new(pending: &Rc<Cell<u32>>) -> Self {
        pending.set(pending.get() + 1);
        Self(Rc::clone(pending))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

async fn over_udp(resolver: SocketAddr, message: &[u8]) -> anyhow::Result<Vec<u8>> {
    let any: IpAddr = if resolver.is_ipv4() { [0, 0, 0, 0].into() } else { [0_u16; 8].into() };
    let socket = HostSocket::bind((any, 0)).await.context("a socket to ask by")?;
    socket.connect(resolver).await?;
    socket.send(message).await?;
    let mut room = vec![0; MOST_MESSAGE];
    loop {
        let read = socket.recv(&mut room).await?;
        let answer = room.get(..read).unwrap_or_default();
        // Whatever else comes is somebody's guess.
        if answers(answer, message) {
            return Ok(answer.to_vec());
        }
    }
}

async fn over_tcp(resolver: SocketAddr, message: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut stream = HostStream::connect(resolver).await?;
    stream.write_all(&framed(message)?).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    anyhow::ensure!(answers(&answer, message), "the answer to another question");
    Ok(answer)
}

fn framed(message: &[u8]) -> anyhow::Result<Vec<u8>> {
    let length = u16::try_from(message.len()).context("a message of more than 65535 bytes")?;
    Ok([&length.to_be_bytes(), message].concat())
}

/// Name servers of the host, from the text of its `resolv.conf`.
pub(crate) fn resolvers_of(resolv_conf: &str) -> Vec<SocketAddr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        let address = words.next().filter(|word| *word == "nameserver").and_then(|_| words.next())?;
        // One that means something on one link alone has the link's name behind a `%`; those are left out.
        address.parse().ok().map(|addr: IpAddr| SocketAddr::new(addr, PORT))
    };
    resolv_conf.lines().filter_map(server).take(MOST_RESOLVERS).collect()
}

/// A message with a header that asks one thing (RFC 1035, section 4.1.1).
fn is_question(message: &[u8]) -> bool {
    message.len() > HEADER && message.get(2).is_some_and(|flags| flags & RESPONSE == 0) && asked(message).is_some()
}

/// Whether a message is the answer to a question: the identifier and what was asked are the same.
fn answers(answer: &[u8], question: &[u8]) -> bool {
    let is_response = answer.get(2).is_some_and(|flags| flags & RESPONSE != 0);
    let same_name = match (asked(answer), asked(question)) {
        (Some(one), Some(other)) => one.eq_ignore_ascii_case(other),
        // A server that could not read the question may leave it out (FORMERR, and older ones).
        (None, _) => answer.get(4..6) == Some(&[0, 0]),
        _ => false,
    };
    is_response && answer.get(..2) == question.get(..2) && same_name
}

/// Name, type and class of the one question in a message.
fn asked(message: &[u8]) -> Option<&[u8]> {
    if message.get(4..6)? != [0, 1] {
        return None;
    }
    let mut at = HEADER;
    loop {
        let label = usize::from(*message.get(at)?);
        // A question stands first, so there is nothing a pointer could lead back to.
        if label > MOST_LABEL {
            return None;
        }
        at += 1 + label;
        if label == 0 {
            return message.get(HEADER..at + 4);
        }
    }
}

/// That there is no answer to be had.
fn failure(question: &[u8]) -> Vec<u8> {
    let end = asked(question).map_or(HEADER, |asked| HEADER + asked.len());
    let mut answer = question.get(..end).unwrap_or_default().to_vec();
    if let [_, _, flags, codes, _, _, counts @ ..] = answer.as_mut_slice() {
        *flags |= RESPONSE;
        *codes = SERVFAIL;
        counts.iter_mut().take(HEADER - 6).for_each(|count| *count = 0);
    }
    answer
}

fn own_id(message: &[u8]) -> [u8; 2] {
    message.first_chunk().copied().unwrap_or_default()
}

fn set_id(message: &mut [u8], id: [u8; 2]) {
    if let Some(room) = message.first_chunk_mut() {
        *room = id;
    }
}

/// An identifier nobody can guess.
fn fresh_id() -> anyhow::Result<[u8; 2]> {
    let [high, low, ..] = Entropy::from_os().context("drawing an identifier")?.public_id().0;
    Ok([high, low])
}

/// Where questions are asked.
pub(crate) const PORT: u16 = 53;
/// Bytes of a message's header.
const HEADER: usize = 12;
/// The bit of an answer.
const RESPONSE: u8 = 0x80;
/// The server could not process the question.
const SERVFAIL: u8 = 2;
/// Longest label of a name.
const MOST_LABEL: usize = 63;
/// Longest message.
const MOST_MESSAGE: usize = 65_535;
/// Resolvers that are asked one after the other: as many as glibc reads.
const MOST_RESOLVERS: usize = 3;
/// Questions and streams at once.
const MOST_QUESTIONS: usize = 256;
/// For a resolver to answer: two of them within the five seconds that a client waits.
const PATIENCE: Duration = Duration::from_millis(2400);
/// For the next question of a stream, and for an answer to be taken.
const IDLE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    /// `A` of `example.org`, as a stub resolver asks, with what is behind the question.
    fn question(more: &[u8]) -> Vec<u8> {
        let head = [0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(!more.is_empty())];
        [&head[..], b"\x07example\x03org\x00\x00\x01\x00\x01", more].concat()
    }

    #[test]
    fn name_servers_are_read_as_resolv_conf_has_them() {
        let text = "# nameserver 1.1.1.1\nsearch x\nnameserver 192.0.2.1\n nameserver\t2001:db8::1 # second\n\
                    nameserver fe80::1%eth0\nnameserver\nnameserver 192.0.2.2\nnameserver 192.0.2.3\n";
        let expected = ["192.0.2.1:53", "[2001:db8::1]:53", "192.0.2.2:53"];
        assert_eq!(resolvers_of(text), expected.map(|end| end.parse().expect("an end")));
    }

    #[test]
    fn only_a_question_is_a_question() {
        assert!(is_question(&question(b"")) && is_question(&question(&[0; 11])));
        let mut answer = question(b"");
        answer[2] |= RESPONSE;
        assert!(!is_question(&answer));
        for at in 0..question(b"").len() {
            assert!(!is_question(&question(b"")[..at]), "{at}");
        }
        let mut pointer = question(b"");
        pointer[HEADER] = 0xc0;
        assert!(!is_question(&pointer));
    }

    #[test]
    fn an_answer_has_the_identifier_and_the_name_of_its_question() {
        let asked = question(b"");
        let mut answer = asked.clone();
        assert!(!answers(&answer, &asked));
        answer[2] |= RESPONSE;
        assert!(answers(&answer, &asked));
        answer[13] = b'E';
        assert!(answers(&answer, &asked), "names have no case");
        answer[13] = b'x';
        assert!(!answers(&answer, &asked));
        answer = asked.clone();
        answer[2] |= RESPONSE;
        answer[1] ^= 1;
        assert!(!answers(&answer, &asked));
    }

    #[test]
    fn where_no_answer_is_to_be_had_the_guest_is_told_so() {
        let asked = question(&[0; 11]);
        let answer = failure(&asked);
        assert!(answers(&answer, &asked));
        assert_eq!((answer[3] & 0xf, answer.len()), (SERVFAIL, question(b"").len()));
        assert_eq!(&answer[6..12], [0; 6]);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_question_goes_out_under_another_identifier_and_a_silent_resolver_is_passed_over() {
        let silent = HostSocket::bind("127.0.0.1:0").await.expect("a socket");
        let server = HostSocket::bind("127.0.0.1:0").await.expect("a socket");
        let resolvers = [silent.local_addr().expect("it is bound"), server.local_addr().expect("it is bound")];
        let forwarder = DnsForwarder::new(&resolvers);
        let asked = question(b"");
        let serve = async {
            let mut room = [0; 512];
            let (read, from) = server.recv_from(&mut room).await.expect("a question");
            let mut answer = room[..read].to_vec();
            answer[2] |= RESPONSE;
            let mut guess = answer.clone();
            guess[0] ^= 0xff;
            server.send_to(&guess, from).await.expect("room");
            server.send_to(&answer, from).await.expect("room");
            (own_id(&answer), forwarder.pending())
        };
        let (answer, (sent, pending)) = tokio::join!(forwarder.ask(&asked, Transport::Udp), serve);
        assert!(answers(&answer, &asked) && answer[3] & 0xf == 0);
        assert_eq!((pending, forwarder.pending()), (1, 0));
        let mut first = [0; 512];
        let (read, _) = silent.recv_from(&mut first).await.expect("it was asked first");
        // Each is drawn; that all three are the same is one chance in 2^32.
        assert!(own_id(&first[..read]) != sent || sent != own_id(&asked));
    }
}
