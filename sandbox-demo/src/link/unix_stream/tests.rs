use std::io::Read;
use std::io::Write;

use super::*;

/// A link that listens, and the directory its socket is in.
fn listening() -> (StreamLink, LinkCounts, tempfile::TempDir) {
    let directory = tempfile::tempdir().expect("a directory");
    let link = StreamLink::listen(&path(&directory)).expect("a link");
    (link, LinkCounts::default(), directory)
}

fn path(directory: &tempfile::TempDir) -> PathBuf {
    directory.path().join("net.sock")
}

fn framed(frame: &[u8]) -> Vec<u8> {
    [&u32::try_from(frame.len()).expect("a short frame").to_be_bytes(), frame].concat()
}

#[test]
fn frames_are_found_wherever_the_stream_is_cut() {
    let (mut link, mut counts, directory) = listening();
    let mut peer = UnixStream::connect(path(&directory)).expect("a connection");
    let bytes = [framed(&[1; 60]), framed(&[2; 1514])].concat();
    let mut received = Vec::new();
    for byte in bytes {
        peer.write_all(&[byte]).expect("room");
        received.extend(link.receive(&mut counts));
    }
    assert_eq!(received, [vec![1; 60], vec![2; 1514]]);
    peer.write_all(&[framed(&[3; 14]), framed(&[4; 14])].concat()).expect("room");
    let both: Vec<_> = std::iter::from_fn(|| link.receive(&mut counts)).collect();
    assert_eq!(both, [[3; 14], [4; 14]]);
}

#[test]
fn what_is_sent_is_framed_and_the_largest_frame_passes() {
    let (mut link, mut counts, directory) = listening();
    let mut peer = UnixStream::connect(path(&directory)).expect("a connection");
    assert_eq!(link.receive(&mut counts), None);
    link.send(&[7; MAX_FRAME], &mut counts).expect("room");
    let reader = std::thread::spawn(move || {
        let mut read = vec![0; MAX_FRAME + 4];
        peer.read_exact(&mut read).expect("a frame");
        read
    });
    while link.is_blocked() {
        link.flush(&mut counts);
    }
    assert!(reader.join().expect("no panic") == framed(&[7; MAX_FRAME]));
}

#[test]
fn a_length_that_cannot_be_ends_the_connection_and_the_next_one_is_taken() {
    for length in [0, u32::try_from(MAX_FRAME).expect("it fits") + 1, u32::MAX] {
        let (mut link, mut counts, directory) = listening();
        let mut bad = UnixStream::connect(path(&directory)).expect("a connection");
        bad.write_all(&length.to_be_bytes()).expect("room");
        bad.write_all(&[0; 100]).expect("room");
        let mut good = UnixStream::connect(path(&directory)).expect("a connection");
        good.write_all(&framed(&[1; 60])).expect("room");
        assert_eq!(link.receive(&mut counts), Some(vec![1; 60]));
        assert_eq!((counts.unreadable, counts.connects, counts.disconnects), (1, 2, 1));
        // The bad one has been told.
        let told = bad.read(&mut [0; 1]);
        assert!(told.is_err() || told.is_ok_and(|read| read == 0));
    }
}

#[test]
fn a_peer_that_dies_leaves_the_link_down_until_another_comes() {
    let (mut link, mut counts, directory) = listening();
    assert_eq!(link.send(&[0; 60], &mut counts), Err(Errno::NOTCONN));
    let mut peer = UnixStream::connect(path(&directory)).expect("a connection");
    // Half a frame dies with it.
    peer.write_all(&[0, 0, 0, 60, 1, 2, 3]).expect("room");
    assert_eq!(link.receive(&mut counts), None);
    assert!(link.is_up());
    drop(peer);
    assert_eq!(link.receive(&mut counts), None);
    assert!(!link.is_up());
    let mut next = UnixStream::connect(path(&directory)).expect("a connection");
    next.write_all(&framed(&[9; 20])).expect("room");
    assert_eq!(link.receive(&mut counts), Some(vec![9; 20]));
    assert_eq!((counts.connects, counts.disconnects), (2, 1));
}

#[test]
fn a_peer_that_does_not_read_takes_bounded_memory_and_gets_whole_frames_later() {
    let (mut link, mut counts, directory) = listening();
    let mut peer = UnixStream::connect(path(&directory)).expect("a connection");
    assert_eq!(link.receive(&mut counts), None);
    let mut taken = 0_u32;
    while link.send(&[u8::try_from(taken % 251).expect("small"); 1000], &mut counts).is_ok() {
        taken += 1;
        assert!(taken < 100_000, "there is no bound");
    }
    assert!(link.peer.as_ref().is_some_and(|peer| peer.unsent.len() <= 1004));
    peer.set_nonblocking(true).expect("a socket");
    let mut read = Vec::new();
    loop {
        link.flush(&mut counts);
        match peer.read_to_end(&mut read) {
            Err(error) if error.kind() == ErrorKind::WouldBlock && !link.is_blocked() => break,
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            Ok(_) => panic!("it ended"),
        }
    }
    let frames = (0..taken).map(|at| framed(&[u8::try_from(at % 251).expect("small"); 1000]));
    assert!(read.len() >= usize::try_from(taken).expect("it fits") * 1004 || link.is_blocked());
    assert!(read.starts_with(&frames.take(3).collect::<Vec<_>>().concat()));
    assert_eq!(read.len(), usize::try_from(taken).expect("it fits") * 1004);
}

#[test]
fn a_link_that_connects_finds_a_peer_that_comes_late_and_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut link = StreamLink::connect(&path(&directory)).expect("a link");
    let mut counts = LinkCounts::default();
    assert_eq!(link.receive(&mut counts), None);
    for round in 1..=2 {
        let listener = UnixListener::bind(path(&directory)).expect("a peer");
        while !link.is_up() {
            assert_eq!(link.receive(&mut counts), None);
        }
        let (mut peer, _) = listener.accept().expect("it calls");
        peer.write_all(&framed(&[round; 30])).expect("room");
        assert_eq!(link.receive(&mut counts), Some(vec![round; 30]));
        drop((peer, listener));
        std::fs::remove_file(path(&directory)).expect("a file");
        assert_eq!(link.receive(&mut counts), None);
        assert!(!link.is_up());
    }
}

#[test]
fn the_waiter_wakes_for_a_connection_and_for_its_bytes_and_for_nothing_else() {
    let is_ready = |link: &StreamLink| {
        let mut fds = [rustix::event::PollFd::from_borrowed_fd(link.fd(), rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut fds, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 })).expect("a poll") > 0
    };
    let (mut link, mut counts, directory) = listening();
    assert!(!is_ready(&link));
    let mut peer = UnixStream::connect(path(&directory)).expect("a connection");
    assert!(is_ready(&link));
    assert_eq!(link.receive(&mut counts), None);
    assert!(!is_ready(&link));
    // One that stands in line is no work.
    let _second = UnixStream::connect(path(&directory)).expect("a place in line");
    assert!(!is_ready(&link));
    peer.write_all(&framed(&[1; 60])).expect("room");
    assert!(is_ready(&link));
    assert!(link.receive(&mut counts).is_some());
    drop(peer);
    assert!(is_ready(&link));
}

#[test]
fn a_socket_left_by_the_dead_is_replaced_and_one_of_the_living_is_not() {
    let (link, _, directory) = listening();
    let error = StreamLink::listen(&path(&directory)).err().expect("somebody has it").to_string();
    assert!(error.contains("net.sock") && error.contains("another path"), "{error}");
    // As after a SIGKILL: the file stays.
    let Role::Listens { listener, _file: file } = link.role else { panic!("it listens") };
    std::mem::forget(file);
    drop((listener, link.waiter));
    StreamLink::listen(&path(&directory)).expect("nobody has it");
}
