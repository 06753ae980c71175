use hibernet_snapshot::Instant;

use super::*;
use crate::tracker::testing::{self, Family};

use Direction::{Original, Reply};
use SctpState::{
    Closed, CookieEchoed, CookieWait, Established, HeartbeatSent, ShutdownAckSent, ShutdownRecd, ShutdownSent,
};

/// What the client is addressed by, and the server.
const CLIENT_TAG: u32 = 0x1111_1111;
const SERVER_TAG: u32 = 0x2222_2222;

fn chunk(number: u8, flags: u8, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap().to_be_bytes();
    let mut bytes = [&[number, flags, length[0], length[1]], value].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn init(tag: u32) -> Vec<u8> {
    chunk(1, 0, &[&tag.to_be_bytes()[..], &[0; 12]].concat())
}

fn init_ack(tag: u32) -> Vec<u8> {
    chunk(2, 0, &[&tag.to_be_bytes()[..], &[0; 12]].concat())
}

/// A chunk of which only the kind matters.
fn plain(kind: Kind) -> Vec<u8> {
    let number = match kind {
        Kind::Data => 0,
        Kind::Heartbeat => 4,
        Kind::HeartbeatAck => 5,
        Kind::Abort => 6,
        Kind::Shutdown => 7,
        Kind::ShutdownAck => 8,
        Kind::Error => 9,
        Kind::CookieEcho => 10,
        Kind::CookieAck => 11,
        Kind::ShutdownComplete => 14,
        Kind::Other => 3,
        Kind::Init | Kind::InitAck => panic!("{kind:?} needs a tag"),
    };
    chunk(number, 0, &[])
}

fn packet(family: Family, direction: Direction, tag: u32, chunks: &[Vec<u8>]) -> Vec<u8> {
    let (src, dst) = family.ends(direction);
    let ports: [u8; 4] = if direction == Original { [0x80, 0, 0, 80] } else { [0, 80, 0x80, 0] };
    testing::datagram(src, dst, proto::SCTP, [&ports, &tag.to_be_bytes()[..], &[0; 4], &chunks.concat()].concat())
}

#[derive(Clone)]
struct Flow {
    inner: testing::Flow,
    family: Family,
}

impl Flow {
    fn try_open(family: Family, tag: u32, chunks: &[Vec<u8>]) -> Result<Self, InvalidReason> {
        let bytes = packet(family, Original, tag, chunks);
        Ok(Self { inner: testing::Flow::open(&bytes, &sysctls(), Instant::ZERO)?, family })
    }

    fn opened(family: Family, tag: u32, chunks: &[Vec<u8>]) -> Self {
        Self::try_open(family, tag, chunks).unwrap()
    }

    /// Sends under a tag of the test's choice.
    fn send(&mut self, direction: Direction, tag: u32, chunks: &[Vec<u8>]) -> Outcome {
        let bytes = packet(self.family, direction, tag, chunks);
        self.inner.follow(&bytes, direction, &sysctls(), Instant::ZERO)
    }

    /// Sends under the right tag what must be accepted.
    fn pass(&mut self, direction: Direction, chunk: Vec<u8>) -> &mut Self {
        let tag = if direction == Original { SERVER_TAG } else { CLIENT_TAG };
        let outcome = self.send(direction, tag, &[chunk]);
        assert!(matches!(outcome, Outcome::Accept { .. }), "{outcome:?}");
        self
    }

    fn state(&self) -> SctpState {
        match self.inner.state {
            ProtocolState::Sctp(track) => track.state,
            other => panic!("{other:?} is no SCTP state"),
        }
    }
}

/// Every timeout another.
fn sysctls() -> Sysctls {
    Sysctls {
        sctp_timeout_closed: 1000,
        sctp_timeout_cookie_wait: 1100,
        sctp_timeout_cookie_echoed: 1200,
        sctp_timeout_established: 1300,
        sctp_timeout_shutdown_sent: 1400,
        sctp_timeout_shutdown_recd: 1500,
        sctp_timeout_shutdown_ack_sent: 1600,
        sctp_timeout_heartbeat_sent: 1700,
        ..Sysctls::default()
    }
}

fn established(family: Family) -> Flow {
    let mut flow = Flow::opened(family, 0, &[init(CLIENT_TAG)]);
    flow.pass(Reply, init_ack(SERVER_TAG)).pass(Original, plain(Kind::CookieEcho)).pass(Reply, plain(Kind::CookieAck));
    flow
}

const WRONG: u32 = 0x3333_3333;

fn wrong_tag(tag: u32) -> Outcome {
    Outcome::Invalid(InvalidReason::SctpTag { tag })
}

#[test]
fn an_association_goes_from_init_to_shutdown_complete() {
    for family in Family::BOTH {
        let mut flow = Flow::opened(family, 0, &[init(CLIENT_TAG)]);
        assert_eq!((flow.state(), flow.inner.timeout), (Closed, 1000));
        let steps = [
            (Reply, init_ack(SERVER_TAG), CookieWait, 1100),
            (Original, plain(Kind::CookieEcho), CookieEchoed, 1200),
            (Reply, plain(Kind::CookieAck), Established, 1300),
            (Original, plain(Kind::Data), Established, 1300),
            (Original, plain(Kind::Shutdown), ShutdownSent, 1400),
            (Reply, plain(Kind::ShutdownAck), ShutdownAckSent, 1600),
            (Original, plain(Kind::ShutdownComplete), Closed, 1000),
        ];
        for (direction, chunk, state, timeout) in steps {
            flow.pass(direction, chunk);
            assert_eq!((flow.state(), flow.inner.timeout), (state, timeout));
        }
    }
}

#[test]
fn an_association_is_assured_when_it_is_established() {
    let mut flow = Flow::opened(Family::V4, 0, &[init(CLIENT_TAG)]);
    flow.pass(Reply, init_ack(SERVER_TAG)).pass(Original, plain(Kind::CookieEcho));
    assert!(!flow.inner.status.contains(crate::status::Status::ASSURED));
    flow.pass(Reply, plain(Kind::CookieAck));
    assert!(flow.inner.status.contains(crate::status::Status::ASSURED));
}

#[test]
fn every_cell_of_the_state_table_is_as_measured() {
    use Kind::*;
    let kinds = [
        Data,
        Init,
        InitAck,
        Heartbeat,
        HeartbeatAck,
        Abort,
        Shutdown,
        ShutdownAck,
        Error,
        CookieEcho,
        CookieAck,
        ShutdownComplete,
        Other,
    ];
    let usual = |state| move |kind| Some(if kind == Abort { Closed } else { state });
    let expected = |state: SctpState, direction: Direction, kind: Kind| match (state, direction, kind) {
        (Closed, Reply, InitAck) => Some(CookieWait),
        (Closed, _, _) => Some(Closed),
        (CookieWait, _, CookieEcho) => Some(CookieEchoed),
        (CookieEchoed, _, CookieAck) => Some(Established),
        (CookieEchoed, Reply, Error) => Some(Closed),
        (Established, Original, Shutdown) => Some(ShutdownSent),
        (Established, Reply, Shutdown) => Some(ShutdownRecd),
        (ShutdownSent | ShutdownRecd, Original, Init) => Some(Closed),
        (ShutdownSent | ShutdownRecd, _, ShutdownAck) => Some(ShutdownAckSent),
        (ShutdownAckSent, _, ShutdownComplete) => Some(Closed),
        (HeartbeatSent, Original, Init) => Some(CookieWait),
        (HeartbeatSent, Original, ShutdownAck) => Some(ShutdownAckSent),
        (HeartbeatSent, Original, Data | Other | Heartbeat | HeartbeatAck) => Some(HeartbeatSent),
        (HeartbeatSent, Original, _) => Some(Closed),
        (HeartbeatSent, Reply, HeartbeatAck) => Some(Established),
        (HeartbeatSent, Reply, Data | Other | Heartbeat) => Some(HeartbeatSent),
        (HeartbeatSent, Reply, _) => None,
        (state, _, kind) => usual(state)(kind),
    };
    for state in SctpState::ALL.into_iter().skip(1) {
        for direction in [Original, Reply] {
            for kind in kinds {
                let found = step(state, direction, kind);
                assert_eq!(found, expected(state, direction, kind), "{kind:?} in {direction} direction in {state:?}");
            }
        }
    }
}

#[test]
fn eight_chunks_open_an_association_and_no_other() {
    let opens = |tag, chunk| Flow::try_open(Family::V4, tag, &[chunk]).map(|flow| flow.state());
    assert_eq!(opens(0, init(CLIENT_TAG)), Ok(Closed));
    assert_eq!(opens(0, init_ack(CLIENT_TAG)), Ok(Closed));
    assert_eq!(opens(WRONG, plain(Kind::Heartbeat)), Ok(HeartbeatSent));
    assert_eq!(opens(WRONG, plain(Kind::HeartbeatAck)), Ok(Closed));
    assert_eq!(opens(WRONG, plain(Kind::ShutdownAck)), Ok(ShutdownAckSent));
    for kind in [Kind::Shutdown, Kind::Error, Kind::CookieEcho] {
        assert_eq!(opens(0, plain(kind)), Ok(Closed), "{kind:?}");
        assert_eq!(opens(WRONG, plain(kind)), Err(InvalidReason::SctpTag { tag: WRONG }), "{kind:?}");
    }
    for kind in [Kind::Data, Kind::Abort, Kind::CookieAck, Kind::ShutdownComplete, Kind::Other] {
        assert!(matches!(opens(0, plain(kind)), Err(InvalidReason::SctpNotOpening { .. })), "{kind:?}");
    }
    assert_eq!(opens(WRONG, init(CLIENT_TAG)), Err(InvalidReason::SctpTag { tag: WRONG }));
}

#[test]
fn a_wrong_verification_tag_is_invalid_and_changes_nothing() {
    for family in Family::BOTH {
        let mut flow = established(family);
        for kind in [Kind::Data, Kind::Shutdown, Kind::Abort, Kind::CookieEcho, Kind::ShutdownComplete, Kind::Error] {
            assert_eq!(flow.send(Reply, SERVER_TAG, &[plain(kind)]), wrong_tag(SERVER_TAG), "{kind:?}");
        }
        assert_eq!(flow.state(), Established);
    }
}

#[test]
fn an_abort_with_the_t_bit_reflects_the_other_sides_tag() {
    let flow = established(Family::V4);
    let reflected = [chunk(6, 1, &[])];
    assert_eq!(flow.clone().send(Reply, CLIENT_TAG, &reflected), wrong_tag(CLIENT_TAG));
    let accepted = flow.clone().send(Reply, SERVER_TAG, &reflected);
    assert_eq!(accepted, Outcome::Accept { timeout: 1000, assure: false, changed: true });
}

#[test]
fn an_init_that_is_repeated_is_no_reason_to_keep_the_association() {
    let mut flow = Flow::opened(Family::V4, 0, &[init(CLIENT_TAG)]);
    assert_eq!(flow.send(Original, 0, &[init(CLIENT_TAG)]), Outcome::Ignore { why: None, changed: false });
}

#[test]
fn an_init_ack_must_name_the_known_tag_unless_a_handshake_is_under_way() {
    let flow = established(Family::V4);
    let other = [init_ack(WRONG)];
    assert_eq!(flow.clone().send(Reply, CLIENT_TAG, &other), wrong_tag(WRONG));
    let mut repeated = flow.clone();
    repeated.send(Original, 0, &[init(CLIENT_TAG)]);
    assert_eq!(repeated.send(Reply, CLIENT_TAG, &other), wrong_tag(WRONG), "the old INIT begins none");
    let mut restarted = flow.clone();
    restarted.send(Original, 0, &[init(0x5555_5555)]);
    let accepted = restarted.send(Reply, 0x5555_5555, &other);
    assert!(matches!(accepted, Outcome::Accept { .. }), "{accepted:?}");
    assert_eq!(
        restarted.send(Original, WRONG, &[plain(Kind::Data)]),
        Outcome::Accept { timeout: 1300, assure: true, changed: false }
    );
}

#[test]
fn a_heartbeat_teaches_a_tag_that_is_not_known() {
    let mut flow = Flow::opened(Family::V4, SERVER_TAG, &[plain(Kind::Heartbeat)]);
    assert_eq!(flow.send(Reply, CLIENT_TAG, &[plain(Kind::Data)]), wrong_tag(CLIENT_TAG));
    flow.pass(Reply, plain(Kind::HeartbeatAck));
    assert_eq!((flow.state(), flow.inner.timeout), (Established, 1300));
    flow.pass(Reply, plain(Kind::Data)).pass(Original, plain(Kind::Data));
}

#[test]
fn another_tag_is_taken_once_a_heartbeat_and_its_answer_both_carry_one() {
    let mut flow = established(Family::V4);
    let answer = [plain(Kind::HeartbeatAck)];
    assert_eq!(flow.clone().send(Reply, WRONG, &answer), wrong_tag(WRONG), "nothing to answer");
    let suggested = flow.send(Original, WRONG, &[plain(Kind::Heartbeat)]);
    assert_eq!(suggested, Outcome::Ignore { why: None, changed: false });
    assert_eq!(flow.clone().send(Original, WRONG, &answer), wrong_tag(WRONG), "one does not answer oneself");
    assert_eq!(flow.send(Reply, 0x4444_4444, &answer), Outcome::Accept { timeout: 1300, assure: true, changed: false });
    assert!(matches!(flow.send(Reply, 0x4444_4444, &[plain(Kind::Data)]), Outcome::Accept { .. }));
}

#[test]
fn a_heartbeat_under_another_tag_must_come_without_data() {
    let mut flow = established(Family::V4);
    let bundled = [plain(Kind::Heartbeat), plain(Kind::Data)];
    assert_eq!(flow.send(Original, WRONG, &bundled), wrong_tag(WRONG));
}

#[test]
fn chunks_that_must_be_alone_or_first_are_invalid_elsewhere() {
    let mut flow = established(Family::V4);
    let bundles = [
        vec![],
        vec![init(CLIENT_TAG), plain(Kind::Data)],
        vec![plain(Kind::Data), init(CLIENT_TAG)],
        vec![plain(Kind::Heartbeat), plain(Kind::ShutdownComplete)],
        vec![plain(Kind::Data), plain(Kind::CookieAck)],
        vec![vec![0, 0, 0, 0]],
    ];
    for bundle in bundles {
        let outcome = flow.send(Original, SERVER_TAG, &bundle);
        assert_eq!(outcome, Outcome::Invalid(InvalidReason::SctpChunks), "{bundle:?}");
    }
    flow.pass(Original, [plain(Kind::CookieEcho), plain(Kind::Data)].concat());
}

#[test]
fn an_init_that_is_cut_is_invalid() {
    let mut cut = init(CLIENT_TAG);
    cut.truncate(16);
    assert_eq!(Flow::try_open(Family::V4, 0, &[cut]).map(drop), Err(InvalidReason::SctpChunks));
}

#[test]
fn a_wrong_crc_is_invalid_and_a_header_of_eleven_bytes_is_short() {
    for family in Family::BOTH {
        let mut bytes = packet(family, Original, 0, &[init(CLIENT_TAG)]);
        *bytes.last_mut().unwrap() ^= 1;
        let open = |sysctls: &Sysctls| testing::Flow::open(&bytes, sysctls, Instant::ZERO).map(drop);
        assert_eq!(open(&sysctls()), Err(InvalidReason::BadChecksum { proto: proto::SCTP }));
        assert_eq!(open(&Sysctls { checksum: false, ..sysctls() }), Ok(()));
        let (src, dst) = family.ends(Original);
        let short = testing::wrap(src, dst, proto::SCTP, &[0; 11]);
        let error = testing::Flow::open(&short, &sysctls(), Instant::ZERO).unwrap_err();
        assert_eq!(error, InvalidReason::ShortPacket { proto: proto::SCTP });
    }
}
