//! UDP, ICMP and SCTP flows.

use crate::dice::Dice;
use crate::path::{Path, Sent, Side};

/// Questions, answers, errors about them, and damage.
pub(crate) fn udp(dice: &mut Dice, path: Path) -> Vec<Sent> {
    let mut sent = vec![path.with_ports(Side::Client, "udp", "len=5")];
    for _ in 0..3 + dice.below(8) {
        let side = Side::any(dice);
        sent.push(match dice.below(16) {
            0 => {
                let (_, src, dst) = path.ends(side);
                path.error(dice, side, &format!("udp {dst} > {src} len=5"))
            }
            1 => {
                let words =
                    dice.pick(&["len=5 badsum", "len=5 nosum", "udplen=3 len=9", "udplen=90 len=9", "udplen=12 len=9"]);
                path.with_ports(side, "udp", words)
            }
            _ => path.with_ports(side, "udp", &format!("len={}", dice.below(200))),
        });
    }
    sent
}

/// Echo requests and answers, errors about them, other messages.
pub(crate) fn icmp(dice: &mut Dice, path: Path) -> Vec<Sent> {
    let proto = if path.ipv6 { "icmp6" } else { "icmp" };
    let id = path.port;
    let query = if !path.ipv6 && dice.one_in(4) {
        dice.pick(&[("timestamp", "timestampreply"), ("mask", "maskreply"), ("inforeq", "inforeply")])
    } else {
        ("echo", "echoreply")
    };
    let mut sent = Vec::new();
    for seq in 0..2 + dice.below(5) {
        sent.push(path.without_ports(Side::Client, proto, &format!("{} id={id} seq={seq} len=12", query.0)));
        if !dice.one_in(4) {
            sent.push(path.without_ports(Side::Server, proto, &format!("{} id={id} seq={seq} len=12", query.1)));
        }
        match dice.below(12) {
            0 => {
                let (_, src, dst) = path.ends(Side::Server);
                let quoted = format!("{proto} {} > {} {} id={id} seq={seq} len=12", dst.ip(), src.ip(), query.0);
                sent.push(path.error(dice, Side::Server, &quoted));
            }
            1 => {
                let words = dice.pick(&["code=1", "badsum", "type=3", "type=42", "type=130"]);
                let line = format!("{} id={id} seq={seq} len=12 {words}", query.1);
                let line = if words.starts_with("type") { format!("{words} id={id} seq={seq} len=12") } else { line };
                let side = Side::any(dice);
                sent.push(path.without_ports(side, proto, &line));
            }
            _ => {}
        }
    }
    sent
}

/// An association: set up, used, closed or aborted, with chunks that come twice, at the wrong time or under a wrong tag.
pub(crate) fn sctp(dice: &mut Dice, path: Path) -> Vec<Sent> {
    let mut talk = Association { tags: [dice.roll() as u32 | 1, dice.roll() as u32 | 1], path, sent: Vec::new() };
    let (client, server) = (Side::Client, Side::Server);
    if dice.one_in(6) {
        talk.chunk(dice, client, Chunk::Heartbeat);
        talk.chunk(dice, server, Chunk::HeartbeatAck);
    }
    for _ in 0..=u32::from(dice.one_in(5)) {
        talk.chunk(dice, client, Chunk::Init);
    }
    if dice.one_in(10) {
        talk.chunk(dice, server, Chunk::Abort);
        talk.chunk(dice, client, Chunk::Init);
    }
    talk.chunk(dice, server, Chunk::InitAck);
    talk.chunk(dice, client, Chunk::CookieEcho);
    talk.chunk(dice, server, Chunk::CookieAck);
    for _ in 0..dice.below(7) {
        let chunk =
            dice.pick(&[Chunk::Data, Chunk::Sack, Chunk::Data, Chunk::Heartbeat, Chunk::HeartbeatAck, Chunk::Error]);
        let side = Side::any(dice);
        talk.chunk(dice, side, chunk);
    }
    let side = Side::any(dice);
    match dice.below(4) {
        0 => talk.chunk(dice, side, Chunk::Abort),
        1 => {}
        _ => {
            talk.chunk(dice, side, Chunk::Shutdown);
            talk.chunk(dice, side.peer(), Chunk::ShutdownAck);
            talk.chunk(dice, side, Chunk::ShutdownComplete);
        }
    }
    talk.sent
}

struct Association {
    /// What the packets to each side must bear.
    tags: [u32; 2],
    path: Path,
    sent: Vec<Sent>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Chunk {
    Data = 0,
    Init = 1,
    InitAck = 2,
    Sack = 3,
    Heartbeat = 4,
    HeartbeatAck = 5,
    Abort = 6,
    Shutdown = 7,
    ShutdownAck = 8,
    Error = 9,
    CookieEcho = 10,
    CookieAck = 11,
    ShutdownComplete = 14,
}

impl Association {
    fn chunk(&mut self, dice: &mut Dice, side: Side, chunk: Chunk) {
        if dice.one_in(12) {
            let other = dice.pick(&[
                Chunk::Data,
                Chunk::Init,
                Chunk::InitAck,
                Chunk::Heartbeat,
                Chunk::Abort,
                Chunk::Shutdown,
                Chunk::ShutdownAck,
                Chunk::CookieEcho,
                Chunk::CookieAck,
                Chunk::ShutdownComplete,
            ]);
            let tag = if dice.one_in(2) { dice.roll() as u32 } else { self.tag(side, other) };
            let side = if dice.one_in(4) { side.peer() } else { side };
            self.write(side, other, tag, u8::from(dice.one_in(4)), dice.one_in(8));
        }
        self.write(side, chunk, self.tag(side, chunk), 0, false);
    }

    /// The tag that a side's packet bears.
    const fn tag(&self, side: Side, chunk: Chunk) -> u32 {
        if matches!(chunk, Chunk::Init) { 0 } else { self.tags[side.peer() as usize] }
    }

    fn write(&mut self, side: Side, chunk: Chunk, tag: u32, flags: u8, bad_checksum: bool) {
        let value: Vec<u8> = match chunk {
            Chunk::Init | Chunk::InitAck => {
                let own = self.tags[side as usize].to_be_bytes();
                [&own[..], &[0, 0, 0xff, 0xff, 0, 1, 0, 1, 0, 0, 3, 0xe8]].concat()
            }
            Chunk::Data => vec![0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4],
            Chunk::Sack => vec![0, 0, 0, 1, 0, 0, 0xff, 0xff, 0, 0, 0, 0],
            Chunk::Heartbeat | Chunk::HeartbeatAck | Chunk::Error => vec![0, 1, 0, 8, 9, 9, 9, 9],
            Chunk::Shutdown => vec![0, 0, 0, 1],
            Chunk::CookieEcho => vec![7, 7, 7, 7],
            _ => Vec::new(),
        };
        let (_, src, dst) = self.path.ends(side);
        let mut packet = [src.port().to_be_bytes(), dst.port().to_be_bytes()].concat();
        packet.extend(tag.to_be_bytes());
        packet.extend([0; 4]);
        packet.extend([chunk as u8, flags]);
        packet.extend((4 + value.len() as u16).to_be_bytes());
        packet.extend(value);
        let sum = crc32c(&packet) ^ u32::from(bad_checksum);
        packet[8..12].copy_from_slice(&sum.to_le_bytes());
        let words = format!("data={}", hibernet_tests::notation::hex_of(&packet));
        self.sent.push(self.path.without_ports(side, "proto132", &words));
    }
}

/// CRC32c (RFC 9260, appendix A), bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 })
    })
}
