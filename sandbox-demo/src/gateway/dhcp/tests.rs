use smoltcp::wire::EthernetAddress;

use super::*;

const ONE: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];
const TWO: [u8; 6] = [0x52, 0x54, 0, 0, 0, 2];
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const FIRST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const NOW: Instant = Instant::from_secs(100);

fn config() -> DhcpConfig {
    let lease = Duration::from_secs(3600);
    DhcpConfig { server: SERVER, prefix: 24, first: FIRST, dns: vec![SERVER], mtu: 1500, lease }
}

/// A client's message.
#[derive(Clone, Copy)]
struct Say {
    kind: Kind,
    mac: [u8; 6],
    server: Option<Ipv4Addr>,
    requested: Option<Ipv4Addr>,
    own: Ipv4Addr,
}

impl Say {
    fn new(kind: Kind, mac: [u8; 6]) -> Self {
        Self { kind, mac, server: None, requested: None, own: Ipv4Addr::UNSPECIFIED }
    }

    fn bytes(self, more: &[DhcpOption<'_>]) -> Vec<u8> {
        let nobody = Ipv4Addr::UNSPECIFIED;
        let repr = DhcpRepr {
            message_type: self.kind,
            transaction_id: 0x1234_5678,
            secs: 3,
            client_hardware_address: EthernetAddress(self.mac),
            client_ip: self.own,
            your_ip: nobody,
            server_ip: nobody,
            router: None,
            subnet_mask: None,
            relay_agent_ip: nobody,
            broadcast: false,
            requested_ip: self.requested,
            client_identifier: None,
            server_identifier: self.server,
            parameter_request_list: Some(&[1, 3, 6]),
            dns_servers: None,
            max_size: None,
            lease_duration: None,
            renew_duration: None,
            rebind_duration: None,
            additional_options: more,
        };
        let mut bytes = vec![0; repr.buffer_len()];
        repr.emit(&mut DhcpPacket::new_unchecked(bytes.as_mut_slice())).expect("room");
        bytes
    }
}

/// What the server says: kind, address, where it goes.
fn ask(server: &mut DhcpServer, say: Say, now: Instant) -> Option<(Kind, Ipv4Addr, Ipv4Addr)> {
    let DhcpAnswer { to, message } = server.handle(&say.bytes(&[]), now)?;
    let packet = DhcpPacket::new_checked(message.as_slice()).expect("a message");
    let repr = DhcpRepr::parse(&packet).expect("a sound message");
    assert_eq!((repr.transaction_id, repr.server_identifier), (0x1234_5678, Some(SERVER)));
    Some((repr.message_type, repr.your_ip, to))
}

fn leased(server: &mut DhcpServer, mac: [u8; 6], now: Instant) -> Ipv4Addr {
    let (_, addr, _) = ask(server, Say::new(Kind::Discover, mac), now).expect("an offer");
    let request = Say { server: Some(SERVER), requested: Some(addr), ..Say::new(Kind::Request, mac) };
    assert_eq!(ask(server, request, now), Some((Kind::Ack, addr, Ipv4Addr::BROADCAST)));
    addr
}

#[test]
fn a_client_is_offered_the_first_address_and_gets_all_it_needs_with_it() {
    let mut server = DhcpServer::new(config());
    let offer = ask(&mut server, Say::new(Kind::Discover, ONE), NOW);
    assert_eq!(offer, Some((Kind::Offer, FIRST, Ipv4Addr::BROADCAST)));
    let request = Say { server: Some(SERVER), requested: Some(FIRST), ..Say::new(Kind::Request, ONE) };
    let identifier = DhcpOption { kind: CLIENT_ID, data: b"\xffan identifier" };
    let answer = server.handle(&request.bytes(&[identifier]), NOW).expect("an answer");
    assert!(answer.message.len() >= 300);
    let packet = DhcpPacket::new_checked(answer.message.as_slice()).expect("a message");
    let repr = DhcpRepr::parse(&packet).expect("a sound message");
    assert_eq!((repr.message_type, repr.your_ip, repr.router), (Kind::Ack, FIRST, Some(SERVER)));
    assert_eq!(repr.subnet_mask, Some(Ipv4Addr::new(255, 255, 255, 0)));
    assert_eq!(repr.dns_servers.as_deref(), Some(&[SERVER][..]));
    let times = (repr.lease_duration, repr.renew_duration, repr.rebind_duration);
    assert_eq!(times, (Some(3600), Some(1800), Some(3150)));
    let option = |kind| packet.options().find(|option| option.kind == kind).map(|option| option.data.to_vec());
    assert_eq!(option(INTERFACE_MTU), Some(vec![5, 220]));
    assert_eq!(option(BROADCAST), Some(vec![10, 0, 2, 255]));
    assert_eq!(option(CLIENT_ID), Some(b"\xffan identifier".to_vec()));
}

#[test]
fn a_client_keeps_its_address_and_another_gets_another() {
    let mut server = DhcpServer::new(config());
    assert_eq!(leased(&mut server, ONE, NOW), FIRST);
    assert_eq!(leased(&mut server, TWO, NOW), Ipv4Addr::new(10, 0, 2, 16));
    // Long after its lease is over, too, as long as nobody needs it.
    let later = NOW.saturating_add(Duration::from_secs(100_000));
    assert_eq!(leased(&mut server, ONE, later), FIRST);
}

#[test]
fn a_client_is_given_the_address_it_would_like_if_it_is_free() {
    let mut server = DhcpServer::new(config());
    let like = |addr| Say { requested: Some(addr), ..Say::new(Kind::Discover, ONE) };
    let liked = Ipv4Addr::new(10, 0, 2, 77);
    assert_eq!(ask(&mut server, like(liked), NOW).map(|(_, addr, _)| addr), Some(liked));
    for wrong in [SERVER, Ipv4Addr::new(10, 0, 2, 255), Ipv4Addr::new(10, 0, 3, 20), Ipv4Addr::new(10, 0, 2, 3)] {
        let mut server = DhcpServer::new(config());
        assert_eq!(ask(&mut server, like(wrong), NOW).map(|(_, addr, _)| addr), Some(FIRST));
    }
}

#[test]
fn a_renewal_is_answered_to_the_client_itself_and_prolongs_the_lease() {
    let mut server = DhcpServer::new(config());
    leased(&mut server, ONE, NOW);
    let later = NOW.saturating_add(Duration::from_secs(1800));
    let renew = Say { own: FIRST, ..Say::new(Kind::Request, ONE) };
    assert_eq!(ask(&mut server, renew, later), Some((Kind::Ack, FIRST, FIRST)));
    assert_eq!(server.leases(later).map(|(_, _, left)| left).collect::<Vec<_>>(), [3600]);
}

#[test]
fn what_a_client_cannot_have_is_refused_and_what_nobody_knows_is_not_answered() {
    let mut server = DhcpServer::new(config());
    leased(&mut server, ONE, NOW);
    let reboot = |addr| Say { requested: Some(addr), ..Say::new(Kind::Request, TWO) };
    let nak = Some((Kind::Nak, Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST));
    assert_eq!(ask(&mut server, reboot(FIRST), NOW), nak);
    assert_eq!(ask(&mut server, reboot(Ipv4Addr::new(192, 168, 1, 5)), NOW), nak);
    assert_eq!(ask(&mut server, reboot(Ipv4Addr::new(10, 0, 2, 40)), NOW), None);
    let known = Say { requested: Some(FIRST), ..Say::new(Kind::Request, ONE) };
    assert_eq!(ask(&mut server, known, NOW).map(|(kind, ..)| kind), Some(Kind::Ack));
    let elsewhere = Say { server: Some(Ipv4Addr::new(10, 0, 2, 9)), ..reboot(FIRST) };
    assert_eq!(ask(&mut server, elsewhere, NOW), None);
}

#[test]
fn a_declined_address_is_left_alone_and_a_released_one_is_free() {
    let mut server = DhcpServer::new(config());
    leased(&mut server, ONE, NOW);
    ask(&mut server, Say { requested: Some(FIRST), server: Some(SERVER), ..Say::new(Kind::Decline, ONE) }, NOW);
    let next = leased(&mut server, ONE, NOW);
    assert_eq!(next, Ipv4Addr::new(10, 0, 2, 16));
    ask(&mut server, Say { own: next, server: Some(SERVER), ..Say::new(Kind::Release, ONE) }, NOW);
    assert_eq!(server.leases(NOW).count(), 0);
    // Nobody gives back or declines what another has.
    leased(&mut server, ONE, NOW);
    ask(&mut server, Say { own: next, server: Some(SERVER), ..Say::new(Kind::Release, TWO) }, NOW);
    assert_eq!(server.leases(NOW).count(), 1);
}

#[test]
fn who_has_an_address_already_is_told_the_rest_without_a_lease() {
    let mut server = DhcpServer::new(config());
    let own = Ipv4Addr::new(10, 0, 2, 200);
    let inform = Say { own, ..Say::new(Kind::Inform, ONE) };
    let answer = server.handle(&inform.bytes(&[]), NOW).expect("an answer");
    let packet = DhcpPacket::new_checked(answer.message.as_slice()).expect("a message");
    let repr = DhcpRepr::parse(&packet).expect("a sound message");
    assert_eq!((answer.to, repr.your_ip, repr.lease_duration), (own, Ipv4Addr::UNSPECIFIED, None));
    assert_eq!(server.saved(NOW), []);
}

#[test]
fn a_full_network_gives_the_address_whose_lease_ended_first_and_else_keeps_silent() {
    let small = DhcpConfig { prefix: 30, server: Ipv4Addr::new(10, 0, 2, 1), first: SERVER, ..config() };
    let mut server = DhcpServer::new(small);
    let discover = |server: &mut DhcpServer, mac, now| {
        let answer = server.handle(&Say::new(Kind::Discover, mac).bytes(&[]), now)?;
        let packet = DhcpPacket::new_checked(answer.message.as_slice()).ok()?;
        Some(DhcpRepr::parse(&packet).ok()?.your_ip)
    };
    assert_eq!(discover(&mut server, ONE, NOW), Some(SERVER));
    assert_eq!(discover(&mut server, TWO, NOW), None);
    // An offer nobody took is free again.
    assert_eq!(discover(&mut server, TWO, NOW.saturating_add(OFFER)), Some(SERVER));
}

#[test]
fn a_saved_lease_goes_on_for_what_remains_of_it_whatever_the_clock_says() {
    let mut server = DhcpServer::new(config());
    leased(&mut server, ONE, NOW);
    let saved = server.saved(NOW.saturating_add(Duration::from_secs(600)));
    let elsewhere = Instant::from_secs(7);
    let mut heir = DhcpServer::restored(config(), &saved, elsewhere);
    let left: Vec<_> = heir.leases(elsewhere).collect();
    assert_eq!(left, [(FIRST, MacAddr::new(ONE), 3000)]);
    assert_eq!(heir.saved(elsewhere), saved);
    let renew = Say { own: FIRST, ..Say::new(Kind::Request, ONE) };
    assert_eq!(ask(&mut heir, renew, elsewhere).map(|(kind, ..)| kind), Some(Kind::Ack));
}

#[test]
fn no_message_makes_the_server_panic() {
    let mut server = DhcpServer::new(config());
    let whole = Say::new(Kind::Discover, ONE).bytes(&[]);
    for at in 0..whole.len() {
        server.handle(&whole[..at], NOW);
        for value in [0, 1, 0x7f, 0xff] {
            let mut changed = whole.clone();
            changed[at] = value;
            server.handle(&changed, NOW);
        }
    }
    assert!(server.leases.len() <= 256);
}
