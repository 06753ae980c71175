mod closing;
mod opening;
mod windows;

use hibernet_snapshot::Instant;

use super::matrix::{Step, step};
use super::*;
use crate::tracker::testing::{self, Family};
use crate::tuple::proto;

use Direction::{Original, Reply};
use TcpSegmentKind as Kind;

/// A segment in the making. Ends and ports follow from the direction.
#[derive(Clone, Debug)]
struct Draft {
    direction: Direction,
    flags: u8,
    seq: u32,
    ack: u32,
    window: u16,
    options: Vec<u8>,
    len: usize,
}

/// A segment by the letters of its flags.
fn segment(direction: Direction, flags: &str, seq: u32, ack: u32) -> Draft {
    let flags = flags.chars().map(|letter| 1 << "FSRPAUEC".find(letter).unwrap()).sum();
    Draft { direction, flags, seq, ack, window: 10_000, options: Vec::new(), len: 0 }
}

impl Draft {
    fn len(self, len: usize) -> Self {
        Self { len, ..self }
    }

    fn win(self, window: u16) -> Self {
        Self { window, ..self }
    }

    /// Options, which must fill whole words.
    fn opts(self, options: &[u8]) -> Self {
        Self { options: options.to_vec(), ..self }
    }

    fn bytes(&self, family: Family) -> Vec<u8> {
        let (src, dst) = family.ends(self.direction);
        let [sport, dport] = if self.direction == Original { [40_000_u16, 80] } else { [80, 40_000] };
        let data_offset = u8::try_from((20 + self.options.len()) / 4 * 16).unwrap();
        let mut l4 = [sport.to_be_bytes(), dport.to_be_bytes()].concat();
        l4.extend(self.seq.to_be_bytes());
        l4.extend(self.ack.to_be_bytes());
        l4.extend([data_offset, self.flags]);
        l4.extend(self.window.to_be_bytes());
        l4.extend([0; 4]);
        l4.extend(&self.options);
        l4.resize(l4.len() + self.len, 0xaa);
        testing::datagram(src, dst, proto::TCP, l4)
    }
}

/// A flow in a test, with everything that goes on around it.
#[derive(Clone, Debug)]
struct Flow {
    inner: testing::Flow,
    family: Family,
    sysctls: Sysctls,
}

impl Flow {
    fn open_with(family: Family, sysctls: Sysctls, draft: &Draft) -> Result<Self, InvalidReason> {
        let inner = testing::Flow::open(&draft.bytes(family), &sysctls, Instant::ZERO)?;
        Ok(Self { inner, family, sysctls })
    }

    fn open(family: Family, draft: &Draft) -> Self {
        Self::open_with(family, Sysctls::default(), draft).unwrap()
    }

    fn send(&mut self, draft: Draft) -> Outcome {
        self.inner.follow(&draft.bytes(self.family), draft.direction, &self.sysctls, Instant::ZERO)
    }

    /// Sends what must be accepted.
    fn pass(&mut self, draft: Draft) -> &mut Self {
        let outcome = self.send(draft.clone());
        assert!(matches!(outcome, Outcome::Accept { .. }), "{draft:?}: {outcome:?}");
        self
    }

    fn track(&self) -> &TcpTrack {
        match &self.inner.state {
            ProtocolState::Tcp(track) => track,
            other => panic!("{other:?} is no TCP state"),
        }
    }

    fn state(&self) -> TcpState {
        self.track().state
    }

    /// State and timeout.
    fn shape(&self) -> (TcpState, u32) {
        (self.state(), self.inner.timeout)
    }
}

/// A handshake: the client's first data byte is 1001, the server's 5001.
fn established(family: Family) -> Flow {
    established_with(family, Sysctls::default())
}

fn established_with(family: Family, sysctls: Sysctls) -> Flow {
    let mut flow = Flow::open_with(family, sysctls, &segment(Original, "S", 1000, 0)).unwrap();
    flow.pass(segment(Reply, "SA", 5000, 1001)).pass(segment(Original, "A", 1001, 5001));
    assert_eq!(flow.state(), TcpState::Established);
    assert!(flow.inner.status.contains(Status::ASSURED));
    flow
}

fn ignored_in(kind: Kind, direction: Direction, state: TcpState) -> Outcome {
    Outcome::ignored(IgnoreReason::TcpState { kind, direction, state })
}

#[test]
fn every_cell_of_the_state_table_is_as_measured() {
    use Step::{Ignore as Ign, Invalid as Inv, Restart};
    use TcpState::*;
    let to = Step::To;
    // SYN, SYN-ACK, FIN, ACK, RST.
    let rows = [
        (None, Original, [to(SynSent), Inv, Inv, to(Established), Inv]),
        (SynSent, Original, [to(SynSent), Inv, Inv, Inv, to(Close)]),
        (SynSent, Reply, [to(SynSent2), to(SynRecv), Inv, Ign, to(Close)]),
        (SynSent2, Original, [to(SynSent2), to(SynRecv), Inv, Inv, to(Close)]),
        (SynSent2, Reply, [to(SynSent2), to(SynRecv), Inv, Ign, to(Close)]),
        (SynRecv, Original, [Ign, to(SynRecv), to(FinWait), to(Established), to(Close)]),
        (SynRecv, Reply, [Inv, Ign, to(FinWait), to(SynRecv), to(Close)]),
        (Established, Original, [Ign, Inv, to(FinWait), to(Established), to(Close)]),
        (Established, Reply, [Inv, Ign, to(FinWait), to(Established), to(Close)]),
        (FinWait, Original, [Ign, Inv, to(LastAck), to(CloseWait), to(Close)]),
        (FinWait, Reply, [Inv, Ign, to(LastAck), to(CloseWait), to(Close)]),
        (CloseWait, Original, [Ign, Inv, to(LastAck), to(CloseWait), to(Close)]),
        (CloseWait, Reply, [Inv, Ign, to(LastAck), to(CloseWait), to(Close)]),
        (LastAck, Original, [Ign, Inv, to(LastAck), to(TimeWait), to(Close)]),
        (LastAck, Reply, [Inv, Ign, to(LastAck), to(TimeWait), to(Close)]),
        (TimeWait, Original, [Restart, Inv, to(TimeWait), to(TimeWait), to(Close)]),
        (TimeWait, Reply, [Restart, Ign, to(TimeWait), to(TimeWait), to(Close)]),
        (Close, Original, [Restart, Inv, to(Close), to(Close), to(Close)]),
        (Close, Reply, [Inv, Ign, to(Close), to(Close), to(Close)]),
    ];
    for (state, direction, cells) in rows {
        for (kind, expected) in [Kind::Syn, Kind::SynAck, Kind::Fin, Kind::Ack, Kind::Rst].into_iter().zip(cells) {
            assert_eq!(step(state, direction, kind), expected, "{kind} in {direction} direction in {state:?}");
        }
    }
}

#[test]
fn each_state_brings_its_own_timeout() {
    for family in Family::BOTH {
        let mut flow = Flow::open(family, &segment(Original, "S", 1000, 0));
        assert_eq!(flow.shape(), (TcpState::SynSent, 120));
        let steps = [
            (segment(Reply, "SA", 5000, 1001), TcpState::SynRecv, 60),
            (segment(Original, "A", 1001, 5001), TcpState::Established, 432_000),
            (segment(Original, "FA", 1001, 5001), TcpState::FinWait, 120),
            (segment(Reply, "A", 5001, 1002), TcpState::CloseWait, 60),
            (segment(Reply, "FA", 5001, 1002), TcpState::LastAck, 30),
            (segment(Original, "A", 1002, 5002), TcpState::TimeWait, 120),
            (segment(Original, "R", 1002, 0), TcpState::Close, 10),
        ];
        for (draft, state, timeout) in steps {
            flow.pass(draft);
            assert_eq!(flow.shape(), (state, timeout));
        }
    }
}

#[test]
fn a_change_of_state_is_news_and_another_ack_is_none() {
    let mut flow = established(Family::V4);
    let quiet = Outcome::Accept { timeout: 432_000, assure: true, changed: false };
    assert_eq!(flow.send(segment(Original, "A", 1001, 5001)), quiet);
    let news = Outcome::Accept { timeout: 120, assure: false, changed: true };
    assert_eq!(flow.send(segment(Original, "FA", 1001, 5001)), news);
}

#[test]
fn flags_no_segment_has_are_invalid_and_push_and_ecn_do_not_matter() {
    let opens = |flags| {
        let draft = segment(Original, flags, 1, 1);
        Flow::open_with(Family::V4, Sysctls::default(), &draft).map(|flow| flow.state())
    };
    for flags in ["", "SF", "SR", "SAFRPU", "SAU", "F", "FPU", "P", "U", "FR", "SAF", "RAU", "RU"] {
        assert!(matches!(opens(flags), Err(InvalidReason::TcpFlags { .. })), "{flags}");
    }
    for flags in ["S", "SP", "SU", "SEC", "SPU"] {
        assert_eq!(opens(flags), Ok(TcpState::SynSent), "{flags}");
    }
    for flags in ["A", "AU", "AP", "AEC"] {
        assert_eq!(opens(flags), Ok(TcpState::Established), "{flags}");
    }
    for (flags, kind) in
        [("FA", Kind::Fin), ("FAU", Kind::Fin), ("R", Kind::Rst), ("RA", Kind::Rst), ("SA", Kind::SynAck)]
    {
        assert_eq!(opens(flags), Err(InvalidReason::TcpNotOpening { kind }), "{flags}");
    }
}

#[test]
fn short_or_lying_headers_and_wrong_checksums_are_invalid() {
    for family in Family::BOTH {
        let (src, dst) = family.ends(Original);
        let whole = segment(Original, "S", 1, 0).bytes(family);
        let l4 = whole[whole.len() - 20..].to_vec();
        let opened = |l4: &[u8]| {
            let bytes = testing::datagram(src, dst, proto::TCP, l4.to_vec());
            testing::Flow::open(&bytes, &Sysctls::default(), Instant::ZERO).map(drop)
        };
        assert_eq!(opened(&l4), Ok(()));
        assert_eq!(opened(&l4[..19]), Err(InvalidReason::ShortPacket { proto: proto::TCP }));
        for data_offset in [0x40, 0x60, 0xf0] {
            let mut lying = l4.clone();
            lying[12] = data_offset;
            assert_eq!(opened(&lying), Err(InvalidReason::Malformed { proto: proto::TCP }), "{data_offset:#x}");
        }
        let mut damaged = whole.clone();
        *damaged.last_mut().unwrap() ^= 1;
        let bad = Err(InvalidReason::BadChecksum { proto: proto::TCP });
        assert_eq!(testing::Flow::open(&damaged, &Sysctls::default(), Instant::ZERO).map(drop), bad);
        let lax = Sysctls { checksum: false, ..Sysctls::default() };
        assert!(testing::Flow::open(&damaged, &lax, Instant::ZERO).is_ok());
    }
}

#[test]
fn sequence_numbers_compare_across_the_wrap() {
    assert!(is_before(0xffff_fff0, 5));
    assert!(!is_before(5, 0xffff_fff0));
    assert!(!is_before(7, 7));
}
