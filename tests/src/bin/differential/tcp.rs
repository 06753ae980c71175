//! Two TCP hosts that talk, and what goes wrong between them.

use crate::dice::Dice;
use crate::path::{Path, Sent, Side, Way};

/// What one host knows.
#[derive(Clone, Copy, Debug)]
struct Host {
    /// The first number not sent yet.
    next: u32,
    /// The first number it has not heard from its peer.
    heard: u32,
    /// What it says of its window.
    window: u16,
    scale: Option<u32>,
    sack: bool,
}

/// One segment, before it is written down.
#[derive(Clone, Copy, Debug)]
struct Segment {
    flags: &'static str,
    seq: u32,
    ack: Option<u32>,
    window: u16,
    len: u32,
    sack: Option<(u32, u32)>,
    /// Whether the options of a SYN go with it.
    opening: bool,
    bad_checksum: bool,
}

/// A connection, and all that was sent for it.
pub(crate) struct Talk<'a> {
    dice: &'a mut Dice,
    path: Path,
    hosts: [Host; 2],
    sent: Vec<Sent>,
}

/// All packets of one tuple: a connection, and sometimes others after it.
pub(crate) fn life(dice: &mut Dice, path: Path) -> Vec<Sent> {
    let hosts = [host(dice), host(dice)];
    let mut talk = Talk { dice, path, hosts, sent: Vec::new() };
    talk.connection(Side::Client);
    while talk.dice.below(5) < 2 && talk.sent.len() < LONGEST {
        talk.reopen();
    }
    talk.sent
}

fn host(dice: &mut Dice) -> Host {
    let next = if dice.one_in(6) { 0_u32.wrapping_sub(dice.below(3000)) } else { dice.roll() as u32 };
    let window = dice.pick(&[65535, 65535, 29200, 8192, 1000]);
    let scale = if dice.one_in(2) { Some(dice.pick(&[0, 2, 7, 14])) } else { None };
    Host { next, heard: 0, window, scale, sack: dice.one_in(2) }
}

impl Talk<'_> {
    fn connection(&mut self, by: Side) {
        let goes_on = match self.dice.below(20) {
            0..=9 => self.handshake(by),
            10..=13 => self.simultaneous_open(by),
            14 => self.refused(by),
            15 => {
                for _ in 0..=self.dice.below(3) {
                    self.syn(by);
                }
                false
            }
            16 | 17 => self.picked_up(by),
            _ => self.old_incarnation(by),
        };
        if !goes_on {
            return;
        }
        for _ in 0..self.dice.below(8) {
            self.exchange();
        }
        self.close();
        for _ in 0..self.dice.below(3) {
            self.stray();
        }
    }

    /// A new connection on the tuple: with numbers above the old ones, or any.
    fn reopen(&mut self) {
        // Behind NAT the server's SYN would open a flow of its own, whose port is chance.
        let both_ways = matches!(self.path.way, Way::Out | Way::In);
        let by = if both_ways && self.dice.one_in(4) { Side::Server } else { Side::Client };
        let step = if self.dice.one_in(3) { self.dice.roll() as u32 } else { self.dice.pick(&[64_000, 200_000, 1]) };
        for at in 0..2 {
            let next = self.hosts[at].next.wrapping_add(step);
            self.hosts[at] = Host { next, ..host(self.dice) };
        }
        self.connection(by);
    }

    fn handshake(&mut self, by: Side) -> bool {
        self.syn(by);
        if self.dice.one_in(5) {
            self.syn(by);
        }
        self.consume(by, 1);
        self.syn_ack(by.peer());
        if self.dice.one_in(6) {
            self.syn_ack(by.peer());
        }
        self.consume(by.peer(), 1);
        if !self.dice.one_in(8) {
            self.ack(by);
        }
        true
    }

    fn simultaneous_open(&mut self, by: Side) -> bool {
        self.syn(by);
        self.syn(by.peer());
        let first = Side::any(self.dice);
        if self.dice.one_in(4) {
            self.syn(first);
        }
        self.consume(by, 1);
        self.consume(by.peer(), 1);
        for side in [first, first.peer()] {
            self.syn_ack(side);
        }
        self.ack(first.peer());
        self.dice.below(4) < 3 && {
            self.ack(first);
            true
        }
    }

    fn refused(&mut self, by: Side) -> bool {
        self.syn(by);
        self.consume(by, 1);
        let ack = self.host(by.peer()).heard;
        let ack = if self.dice.one_in(4) { ack.wrapping_add(5) } else { ack };
        self.emit(by.peer(), Segment { flags: "RA", ack: Some(ack), seq: 0, window: 0, ..self.plain(by.peer()) });
        false
    }

    fn picked_up(&mut self, by: Side) -> bool {
        self.consume(by, 1);
        self.consume(by.peer(), 1);
        for side in [Side::Client, Side::Server] {
            self.hosts[side as usize].scale = None;
        }
        self.data(by);
        self.ack(by.peer());
        true
    }

    /// The server remembers another connection: it answers the SYN with an ACK of that, is reset, and asked again.
    fn old_incarnation(&mut self, by: Side) -> bool {
        self.syn(by);
        let old = Segment { flags: "A", ack: Some(self.dice.roll() as u32), ..self.plain(by.peer()) };
        self.emit(by.peer(), old);
        if self.dice.one_in(2) {
            let seq = old.ack.unwrap_or_default();
            self.emit(by, Segment { flags: "R", seq, ack: None, window: 0, ..self.plain(by) });
        }
        self.handshake(by)
    }

    fn exchange(&mut self) {
        let side = Side::any(self.dice);
        match self.dice.below(12) {
            0..=4 => {
                self.data(side);
                if self.dice.below(4) < 3 {
                    self.ack(side.peer());
                }
            }
            // Lost behind the router, and sent again.
            5 => {
                let segment = self.segment(side, "PA");
                for _ in 0..=self.dice.below(4) {
                    self.emit(side, segment);
                }
                self.consume(side, segment.len);
                self.ack(side.peer());
            }
            6 => self.keepalive(side),
            7 => self.closed_window(side),
            8 => self.reordered(side),
            9 => {
                for _ in 0..=self.dice.below(4) {
                    self.ack(side);
                }
            }
            10 => {
                let quoted = self.quote(side);
                let error = self.path.error(self.dice, side, &quoted);
                self.sent.push(error);
            }
            _ => {
                self.data(side);
                self.data(side.peer());
                self.ack(side);
            }
        }
    }

    fn keepalive(&mut self, side: Side) {
        let plain = self.plain(side);
        let len = self.dice.below(2);
        self.emit(side, Segment { seq: plain.seq.wrapping_sub(1), len, ..plain });
        self.ack(side.peer());
    }

    fn closed_window(&mut self, side: Side) {
        self.emit(side, Segment { window: 0, ..self.plain(side) });
        if self.dice.one_in(2) {
            self.emit(side.peer(), Segment { len: 1, ..self.plain(side.peer()) });
            self.emit(side, Segment { window: 0, ..self.plain(side) });
        }
        self.ack(side);
    }

    /// A segment overtakes the one before it; the receiver says so by SACK, if that was agreed.
    fn reordered(&mut self, side: Side) {
        let first = self.segment(side, "A");
        let second = Segment { seq: first.seq.wrapping_add(first.len), len: 1 + self.dice.below(500), ..first };
        self.emit(side, second);
        let end = second.seq.wrapping_add(second.len);
        let both = self.hosts.iter().all(|host| host.sack);
        let sack = (both || self.dice.one_in(8)).then_some((second.seq, end));
        self.emit(side.peer(), Segment { sack, ..self.plain(side.peer()) });
        self.emit(side, first);
        self.consume(side, first.len + second.len);
        self.ack(side.peer());
    }

    fn close(&mut self) {
        let side = Side::any(self.dice);
        match self.dice.below(10) {
            0..=3 => {
                self.fin(side);
                self.consume(side, 1);
                if !self.dice.one_in(4) {
                    self.ack(side.peer());
                }
                for _ in 0..self.dice.below(3) {
                    self.data(side.peer());
                    self.ack(side);
                }
                self.fin(side.peer());
                if self.dice.one_in(5) {
                    self.fin(side.peer());
                }
                self.consume(side.peer(), 1);
                if !self.dice.one_in(4) {
                    self.ack(side);
                }
            }
            // Both at once.
            4 | 5 => {
                self.fin(side);
                self.fin(side.peer());
                self.consume(side, 1);
                self.consume(side.peer(), 1);
                self.ack(side.peer());
                self.ack(side);
            }
            6 => self.reset(side, 0),
            7 => {
                let off = self.dice.pick(&[1, 5, 500, 70_000, 0xffff_fff0]);
                self.reset(side, off);
                self.ack(side.peer());
                self.reset(side, 0);
            }
            8 => {
                self.fin(side);
                self.consume(side, 1);
                self.ack(side.peer());
                self.reset(side.peer(), 0);
            }
            _ => {}
        }
    }

    /// What comes when all is over.
    fn stray(&mut self) {
        let side = Side::any(self.dice);
        match self.dice.below(5) {
            0 => self.ack(side),
            1 => self.fin(side),
            2 => self.reset(side, 0),
            3 => self.data(side),
            _ => self.syn(side),
        }
    }

    fn syn(&mut self, side: Side) {
        self.emit(side, Segment { flags: "S", ack: None, opening: true, ..self.plain(side) });
    }

    fn syn_ack(&mut self, side: Side) {
        let plain = self.plain(side);
        // After a simultaneous open the SYN is not new.
        let seq = plain.seq.wrapping_sub(u32::from(self.has_opened(side)));
        self.emit(side, Segment { flags: "SA", seq, opening: true, ..plain });
    }

    /// Whether the peer has heard of the side's SYN.
    fn has_opened(&self, side: Side) -> bool {
        self.host(side.peer()).heard == self.host(side).next
    }

    fn ack(&mut self, side: Side) {
        self.emit(side, self.plain(side));
    }

    fn fin(&mut self, side: Side) {
        self.emit(side, Segment { flags: "FA", ..self.plain(side) });
    }

    fn reset(&mut self, side: Side, off: u32) {
        let plain = self.plain(side);
        let (flags, ack) = if self.dice.one_in(3) { ("RA", plain.ack) } else { ("R", None) };
        self.emit(side, Segment { flags, ack, seq: plain.seq.wrapping_add(off), window: 0, ..plain });
    }

    fn data(&mut self, side: Side) {
        let flags = self.dice.pick(&["PA", "A"]);
        let segment = self.segment(side, flags);
        self.emit(side, segment);
        self.consume(side, segment.len);
    }

    /// New data that fits into the peer's window.
    fn segment(&mut self, side: Side, flags: &'static str) -> Segment {
        let len = self.dice.pick(&[1, 10, 100, 536, 900]);
        Segment { flags, len, ..self.plain(side) }
    }

    /// An ACK as the side would send it now.
    fn plain(&self, side: Side) -> Segment {
        let Host { next, heard, window, .. } = *self.host(side);
        Segment {
            flags: "A",
            seq: next,
            ack: Some(heard),
            window,
            len: 0,
            sack: None,
            opening: false,
            bad_checksum: false,
        }
    }

    fn host(&self, side: Side) -> &Host {
        &self.hosts[side as usize]
    }

    /// So much of what a side sends has come to its peer.
    fn consume(&mut self, side: Side, len: u32) {
        let next = self.hosts[side as usize].next.wrapping_add(len);
        self.hosts[side as usize].next = next;
        self.hosts[side.peer() as usize].heard = next;
    }

    /// What an error behind `side` quotes: a segment of its peer as it arrived there.
    fn quote(&self, side: Side) -> String {
        let (_, src, dst) = self.path.ends(side);
        let peer = self.host(side.peer());
        format!("tcp {dst} > {src} A seq={} ack={} len=8", peer.next.wrapping_sub(8), peer.heard)
    }

    /// Sends a segment, and now and then one more that is wrong in some way.
    fn emit(&mut self, side: Side, segment: Segment) {
        if self.dice.one_in(6) && !self.sent.is_empty() {
            let (side, wrong) = self.damaged(side, segment);
            self.write(side, wrong);
        }
        self.write(side, segment);
    }

    fn damaged(&mut self, side: Side, segment: Segment) -> (Side, Segment) {
        let off = self.dice.pick(&[1, 2, 100, 1460, 40_000, 66_001, 1_000_000, 1 << 30]);
        let flags =
            self.dice.pick(&["A", "FA", "S", "SA", "R", "RA", "PA", "SF", "none", "F", "FPU", "UA", "SAU", "RAU"]);
        let any = self.dice.roll() as u32;
        let Segment { seq, ack, len, .. } = segment;
        let wrong = match self.dice.below(16) {
            10 => Segment { sack: Some((any, any.wrapping_add(off))), ..segment },
            11 => {
                let end = self.host(side.peer()).next;
                Segment { sack: Some((end.wrapping_sub(off), end.wrapping_add(off >> 8))), ..segment }
            }
            12 => Segment { seq: self.edge(side), ..segment },
            13 => Segment { seq: self.edge(side).wrapping_sub(len), ..segment },
            14 => Segment { flags: "R", ack: None, seq: self.edge(side), window: 0, len: 0, ..segment },
            15 => {
                let end =
                    self.host(side.peer()).next.wrapping_sub(self.dice.pick(&[66_000, 66_001, 65_999, 0, u32::MAX]));
                Segment { ack: ack.map(|_| end), ..segment }
            }
            0 => Segment { seq: seq.wrapping_sub(off), ..segment },
            1 => Segment { seq: seq.wrapping_add(off), ..segment },
            2 => Segment { ack: ack.map(|ack| ack.wrapping_add(off)), ..segment },
            3 => Segment { ack: ack.map(|ack| ack.wrapping_sub(off)), ..segment },
            4 => Segment { window: any as u16, ..segment },
            5 => Segment { window: 0, ..segment },
            6 => Segment { flags, ..segment },
            7 => Segment { flags, seq: any, ack: ack.or(Some(any)), ..segment },
            8 => Segment { bad_checksum: true, ..segment },
            _ => return (side.peer(), Segment { flags: segment.flags, ..self.plain(side.peer()) }),
        };
        (side, wrong)
    }

    /// About where the window of a side's peer ends or begins.
    fn edge(&mut self, side: Side) -> u32 {
        let Host { heard, window, scale, .. } = *self.host(side.peer());
        let scale = scale.filter(|_| self.host(side).scale.is_some()).unwrap_or(0);
        let window = u32::from(window) << scale;
        let edge = if self.dice.one_in(3) { heard.wrapping_sub(window) } else { heard.wrapping_add(window) };
        edge.wrapping_add(self.dice.pick(&[0, 1, 2, u32::MAX]))
    }

    fn write(&mut self, side: Side, segment: Segment) {
        let Segment { flags, seq, ack, window, len, sack, opening, bad_checksum } = segment;
        let Host { scale, sack: may_sack, .. } = *self.host(side);
        let mut words = format!("{flags} seq={seq} win={window}");
        if let Some(ack) = ack {
            words += &format!(" ack={ack}");
        }
        if opening {
            words += " mss=1460";
            words += if may_sack { " sackok" } else { "" };
            words += &scale.map(|scale| format!(" wscale={scale}")).unwrap_or_default();
        }
        if let Some((left, right)) = sack {
            words += &format!(" sack={left}:{right}");
        }
        if len > 0 {
            words += &format!(" len={len}");
        }
        words += if bad_checksum { " badsum" } else { "" };
        self.sent.push(self.path.with_ports(side, "tcp", &words));
    }
}

/// A tuple that has seen so many packets is not used for yet another connection.
const LONGEST: usize = 60;
