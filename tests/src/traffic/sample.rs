//! A small stack with one flow of each kind, for what has to be looked at byte by byte.

use std::time::Duration;

use super::gateway::{Gateway, START};
use super::network::{Frame, Step};
use super::session::Session;
use crate::notation::{Fragment, build};

/// A gateway that has seen a masqueraded TCP connection, a plain datagram and a plain ping, a datagram with mark and zone, one
/// of IPv6 that was answered, a packet that it dropped, and a fragment that waits for the rest.
pub fn sample() -> Session {
    let mut session = Session::of(Gateway::with_room_for(16).open(1), 0, START);
    for (link, line) in [
        ("in", "tcp 10.0.0.2:40000 > 198.51.100.10:80 S seq=100 mss=1460 sackok wscale=7"),
        ("out", "tcp 198.51.100.10:80 > 203.0.113.1:40000 SA seq=900 ack=101 mss=1460 sackok wscale=7"),
        ("in", "tcp 10.0.0.2:40000 > 198.51.100.10:80 PA seq=101 ack=901 len=20"),
        ("dmz", "udp 198.18.0.2:5000 > 198.51.100.10:53 len=5"),
        ("dmz", "icmp 198.18.0.2 > 198.51.100.10 echo id=5 seq=1 len=8"),
        ("in", "udp 10.0.0.33:40001 > 198.51.100.10:443 len=5"),
        ("dmz", "udp [2001:db8:18::2]:5000 > [2001:db8:1::10]:53 len=5"),
        ("out", "udp [2001:db8:1::10]:53 > [2001:db8:18::2]:5000 len=9"),
        ("out", "tcp 198.51.100.10:80 > 203.0.113.1:22 S seq=1"),
    ] {
        play_line(&mut session, link, line);
    }
    let first = Fragment { off: 0, len: 24, mf: true };
    let bytes = build("udp 10.0.0.3:40000 > 198.51.100.10:53 len=40 ipid=7", Some(first));
    play_frame(&mut session, Frame { link: "in", bytes: bytes.expect("the line is of the notation") });
    session
}

/// Lets a packet come in, three milliseconds after the last.
pub fn play_line(session: &mut Session, link: &'static str, line: &str) -> Vec<Frame> {
    let bytes = build(line, None).expect("the line is of the notation");
    play_frame(session, Frame { link, bytes })
}

fn play_frame(session: &mut Session, frame: Frame) -> Vec<Frame> {
    let at = session.now().saturating_add(Duration::from_millis(3));
    session.play(&Step { at, frame: Some(frame) })
}
