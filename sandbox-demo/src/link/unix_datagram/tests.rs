use super::*;

fn bound(peer: Option<&str>) -> (DatagramLink, LinkCounts, tempfile::TempDir) {
    let directory = tempfile::tempdir().expect("a directory");
    let peer = peer.map(|name| directory.path().join(name));
    let link = DatagramLink::bind(&directory.path().join("net"), peer.as_deref()).expect("a link");
    (link, LinkCounts::default(), directory)
}

fn peer_at(directory: &tempfile::TempDir, name: &str) -> UnixDatagram {
    let peer = UnixDatagram::bind(directory.path().join(name)).expect("a peer");
    peer.set_nonblocking(true).expect("a socket");
    peer
}

fn received(peer: &UnixDatagram) -> Option<Vec<u8>> {
    let mut room = vec![0; MAX_FRAME];
    let read = peer.recv(&mut room).ok()?;
    room.truncate(read);
    Some(room)
}

#[test]
fn frames_go_to_where_the_last_one_came_from() {
    let (mut link, mut counts, directory) = bound(None);
    assert_eq!(link.send(&[0; 60], &mut counts), Err(Errno::NOTCONN));
    for name in ["one", "two"] {
        let peer = peer_at(&directory, name);
        peer.send_to(&[1; 60], directory.path().join("net")).expect("room");
        assert_eq!(link.receive(&mut counts), Some(vec![1; 60]));
        link.send(&[2; 1514], &mut counts).expect("room");
        assert_eq!(received(&peer), Some(vec![2; 1514]));
    }
    assert_eq!((counts.connects, counts.disconnects), (2, 1));
}

#[test]
fn the_hello_of_vfkit_is_no_frame_but_tells_where_it_is() {
    let (mut link, mut counts, directory) = bound(None);
    let peer = peer_at(&directory, "vfkit");
    peer.send_to(b"VFKT", directory.path().join("net")).expect("room");
    assert_eq!(link.receive(&mut counts), None);
    link.send(&[3; 60], &mut counts).expect("it is known");
    assert_eq!(received(&peer), Some(vec![3; 60]));
    assert_eq!(counts.unreadable, 0);
}

#[test]
fn a_peer_that_is_given_need_not_speak_first_and_others_do_not_take_its_place() {
    let (mut link, mut counts, directory) = bound(Some("qemu"));
    let other = peer_at(&directory, "other");
    other.send_to(&[1; 60], directory.path().join("net")).expect("room");
    assert_eq!(link.receive(&mut counts), Some(vec![1; 60]));
    assert!(matches!(link.send(&[2; 60], &mut counts), Err(Errno::NOENT)));
    assert!(!link.is_up());
    let qemu = peer_at(&directory, "qemu");
    assert!(link.is_up());
    link.send(&[2; 60], &mut counts).expect("it has come");
    assert_eq!((received(&qemu), received(&other)), (Some(vec![2; 60]), None));
}

#[test]
fn a_peer_that_is_gone_takes_the_link_down_until_it_speaks_again() {
    let (mut link, mut counts, directory) = bound(None);
    let peer = peer_at(&directory, "qemu");
    peer.send_to(&[1; 60], directory.path().join("net")).expect("room");
    assert!(link.receive(&mut counts).is_some());
    drop(peer);
    assert_eq!(link.send(&[2; 60], &mut counts), Err(Errno::CONNREFUSED));
    assert!(!link.is_up());
    std::fs::remove_file(directory.path().join("qemu")).expect("a file");
    let peer = peer_at(&directory, "qemu");
    peer.send_to(&[1; 60], directory.path().join("net")).expect("room");
    assert!(link.receive(&mut counts).is_some());
    link.send(&[3; 60], &mut counts).expect("room");
    assert_eq!(received(&peer), Some(vec![3; 60]));
}

#[test]
fn a_peer_that_does_not_read_is_full_and_datagrams_that_are_too_long_or_empty_are_counted() {
    let (mut link, mut counts, directory) = bound(Some("qemu"));
    let peer = peer_at(&directory, "qemu");
    let mut sent = 0;
    let error = loop {
        match link.send(&[0; 60], &mut counts) {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
        assert!(sent < 100_000, "there is no bound");
    };
    assert_eq!(error, Errno::AGAIN);
    peer.send_to(&vec![0; MAX_FRAME + 1], directory.path().join("net")).expect("room");
    peer.send_to(&[], directory.path().join("net")).expect("room");
    assert_eq!(link.receive(&mut counts), None);
    assert_eq!(counts.unreadable, 2);
}
