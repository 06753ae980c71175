//! A policy as the stack's rules: what it allows is handed over, what it denies is an event and an answer.

use std::net::IpAddr;
use std::net::SocketAddr;

use hibernet_conntrack::proto;
use hibernet_netstack::DropReason;
use hibernet_netstack::LinkId;
use hibernet_netstack::Stack;
use hibernet_netstack::StackEvent;
use hibernet_snapshot::Instant;
use serde_json::json;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::Icmpv4Packet;
use smoltcp::wire::Icmpv4Repr;
use smoltcp::wire::Icmpv6Packet;
use smoltcp::wire::Icmpv6Repr;
use smoltcp::wire::IpProtocol;
use smoltcp::wire::IpRepr;
use smoltcp::wire::TcpControl;
use smoltcp::wire::TcpPacket;
use smoltcp::wire::TcpRepr;
use smoltcp::wire::TcpSeqNumber;
use smoltcp::wire::UdpPacket;
use smoltcp::wire::UdpRepr;

use super::policy::tests::EXAMPLE;
use super::*;
use crate::gateway::GatewayConfig;

const POLICIES: [&str; 5] = [
    "",
    EXAMPLE,
    "[[rule]]\naction = \"allow\"\n",
    "[[rule]]\naction = \"deny\"\ncidr = [\"198.51.100.0/24\", \"2001:db8::/32\"]\n[[rule]]\naction = \"allow\"\n",
    "[[rule]]\naction = \"deny\"\nprotocol = \"udp\"\nports = [\"50-60\", 443]\n\
     [[rule]]\naction = \"allow\"\ncidr = \"198.51.0.0/16\"\nprotocol = \"udp\"\n\
     [[rule]]\naction = \"deny\"\nprotocol = \"icmp\"\ncidr = \"198.51.100.7\"\n\
     [[rule]]\naction = \"allow\"\nprotocol = \"icmp\"\n",
];
const ADDRESSES: [(&str, &str); 6] = [
    ("10.0.0.2", "198.51.100.7"),
    ("10.0.0.2", "198.51.101.7"),
    ("10.0.0.2", "192.0.2.53"),
    ("10.0.0.2", "169.254.169.254"),
    ("fd00::2", "2001:db8::53"),
    ("fd00::2", "2001:db9::1"),
];

fn engine() -> Engine {
    let config: GatewayConfig = serde_json::from_value(json!({
        "links": [{"name": "guest", "mtu": 1500, "addrs": ["10.0.0.1/24", "fd00::1/64"]}],
        "rules": {"policy": {"input": "drop", "forward": "drop"},
                  "rules": [{"chain": "input", "match": {"proto": "icmp"}, "action": "accept"}]},
    }))
    .expect("a configuration");
    Engine::fresh(&config).expect("a stack")
}

/// The first packet of a flow.
fn packet(protocol: u8, from: &str, to: &str, port: u16) -> Vec<u8> {
    let (src, dst): (IpAddr, IpAddr) = (from.parse().expect("an address"), to.parse().expect("an address"));
    let (src, dst) = (src.into(), dst.into());
    let checks = ChecksumCapabilities::default();
    let build = |protocol, len: usize, emit: &dyn Fn(&mut [u8])| {
        let ip = IpRepr::new(src, dst, protocol, len, 64);
        let mut bytes = vec![0; ip.buffer_len()];
        ip.emit(&mut bytes[..], &checks);
        let at = ip.header_len();
        emit(&mut bytes[at..]);
        bytes
    };
    match protocol {
        proto::TCP => {
            let repr = TcpRepr {
                src_port: 1000,
                dst_port: port,
                control: TcpControl::Syn,
                seq_number: TcpSeqNumber(1),
                ack_number: None,
                window_len: 1000,
                window_scale: None,
                max_seg_size: Some(1000),
                sack_permitted: false,
                sack_ranges: [None; 3],
                timestamp: None,
                payload: &[],
            };
            build(IpProtocol::Tcp, repr.buffer_len(), &|bytes| {
                repr.emit(&mut TcpPacket::new_unchecked(bytes), &src, &dst, &checks);
            })
        }
        proto::UDP => {
            let repr = UdpRepr { src_port: 1000, dst_port: port };
            build(IpProtocol::Udp, repr.header_len() + 1, &|bytes| {
                repr.emit(&mut UdpPacket::new_unchecked(bytes), &src, &dst, 1, |payload| payload.fill(7), &checks);
            })
        }
        proto::ICMP => {
            let repr = Icmpv4Repr::EchoRequest { ident: 1, seq_no: port, data: b"ping" };
            build(IpProtocol::Icmp, repr.buffer_len(), &|bytes| {
                repr.emit(&mut Icmpv4Packet::new_unchecked(bytes), &checks);
            })
        }
        proto::ICMPV6 => {
            let repr = Icmpv6Repr::EchoRequest { ident: 1, seq_no: port, data: b"ping" };
            let (smoltcp::wire::IpAddress::Ipv6(src), smoltcp::wire::IpAddress::Ipv6(dst)) = (src, dst) else {
                panic!("{from} {to}")
            };
            build(IpProtocol::Icmpv6, repr.buffer_len(), &|bytes| {
                repr.emit(&src, &dst, &mut Icmpv6Packet::new_unchecked(bytes), &checks);
            })
        }
        other => panic!("protocol {other}"),
    }
}

fn give(stack: &mut Stack, bytes: Vec<u8>, now: Instant) {
    let link: LinkId = stack.link("guest").expect("the link");
    stack.ingress(link, bytes, now);
}

/// What was rejected since, and how many packets went back.
fn denials(stack: &mut Stack) -> (usize, usize) {
    let events = std::iter::from_fn(|| stack.next_event());
    let is_denial = |event: &StackEvent| match event {
        StackEvent::Drop(drop) => {
            drop.reason == DropReason::Reject && drop.chain.as_deref() == Some("egress_guest") && drop.ends.is_some()
        }
        _ => false,
    };
    let denied = events.filter(is_denial).count();
    (denied, std::iter::from_fn(|| stack.egress()).count())
}

#[test]
fn the_rules_hand_over_exactly_what_the_policy_allows_and_answer_everything_else() {
    for text in POLICIES {
        let policy = Policy::parse(text).expect("a policy");
        for (from, to) in ADDRESSES {
            let addr: IpAddr = to.parse().expect("an address");
            let icmp = if addr.is_ipv4() { proto::ICMP } else { proto::ICMPV6 };
            for (protocol, port) in [
                (proto::TCP, 80),
                (proto::TCP, 8050),
                (proto::TCP, 25),
                (proto::UDP, 53),
                (proto::UDP, 443),
                (proto::UDP, 61),
                (icmp, 1),
            ] {
                let mut engine = engine();
                load_policy(&mut engine, &policy).expect("rules");
                let (stack, now) = engine.stack();
                give(stack, packet(protocol, from, to, port), now);
                let allowed = policy.allows(protocol, addr, Some(port));
                assert_eq!(stack.tproxy_next().is_some(), allowed, "{protocol} {to} {port} under {text}");
                let expected = if allowed { (0, 0) } else { (1, 1) };
                assert_eq!(denials(stack), expected, "{protocol} {to} {port} under {text}");
            }
        }
    }
}

#[test]
fn another_policy_takes_the_place_of_the_one_before_and_leaves_all_other_rules() {
    let mut engine = engine();
    let before = engine.stack().0.rules().clone();
    for text in POLICIES {
        load_policy(&mut engine, &Policy::parse(text).expect("a policy")).expect("rules");
    }
    load_policy(&mut engine, &Policy::default()).expect("rules");
    let set = engine.stack().0.rules();
    assert!(has_policy(set) && !has_policy(&before));
    assert_eq!(set.chains.len(), before.chains.len() + 3);
    let input = set.chain("input").expect("it is still there");
    assert_eq!(input.rules.len(), 2, "one that lets in what is allowed, one that was there: {input:?}");
}

#[test]
fn the_gateway_itself_and_groups_are_no_egress_but_a_mapped_port_is_handed_over() {
    let mut engine = engine();
    let text = "[[rule]]\naction = \"allow\"\n[[loopback]]\nprotocol = \"tcp\"\nports = 7001\n";
    load_policy(&mut engine, &Policy::parse(text).expect("a policy")).expect("rules");
    let (stack, now) = engine.stack();
    for (protocol, to, port, handed) in [
        (proto::TCP, "10.0.0.1", 7001, true),
        (proto::TCP, "10.0.0.1", 7002, false),
        (proto::UDP, "10.0.0.1", 7001, false),
        (proto::UDP, "10.0.0.255", 67, false),
        (proto::UDP, "255.255.255.255", 67, false),
        (proto::UDP, "224.0.0.251", 5353, false),
    ] {
        give(stack, packet(protocol, "10.0.0.2", to, port), now);
        assert_eq!(stack.tproxy_next().is_some(), handed, "{protocol} {to} {port}");
        assert_eq!(denials(stack).0, 0, "{protocol} {to} {port}");
    }
}

#[test]
fn a_flow_that_was_allowed_is_denied_by_its_next_packet_under_another_policy() {
    let mut engine = engine();
    load_policy(&mut engine, &Policy::parse("[[rule]]\naction = \"allow\"\n").expect("a policy")).expect("rules");
    let (stack, now) = engine.stack();
    let datagram = || packet(proto::UDP, "10.0.0.2", "198.51.100.7", 53);
    give(stack, datagram(), now);
    assert!(stack.tproxy_next().is_some() && stack.flows(now).len() == 1);
    load_policy(&mut engine, &Policy::default()).expect("rules");
    let (stack, now) = engine.stack();
    give(stack, datagram(), now);
    assert!(stack.tproxy_next().is_none());
    assert_eq!(denials(stack), (1, 1));
}

#[test]
fn a_restored_gateway_denies_its_first_frame_under_the_images_policy_or_the_one_given_with_it() {
    let home = tempfile::tempdir().expect("a directory");
    let image = home.path().join("image");
    let mut engine = engine();
    let policy = Policy::parse("[[rule]]\naction = \"allow\"\nprotocol = \"udp\"\n").expect("a policy");
    load_policy(&mut engine, &policy).expect("rules");
    let (stack, now) = engine.stack();
    let bytes = stack.save(hibernet_snapshot::GenerationId([1; 16]), now).expect("an image");
    std::fs::write(&image, bytes).expect("a file");
    for (given, udp_allowed) in [(None, true), (Some(Policy::default()), false)] {
        let mut restored =
            Engine::restored(&crate::gateway::RestoreRequest::moved(&image), hibernet_netstack::Supplied::default())
                .expect("a stack");
        assert!(has_policy(restored.stack().0.rules()));
        if let Some(given) = given {
            load_policy(&mut restored, &given).expect("rules");
        }
        let (stack, now) = restored.stack();
        give(stack, packet(proto::TCP, "10.0.0.2", "198.51.100.7", 80), now);
        assert_eq!((stack.tproxy_next(), denials(stack)), (None, (1, 1)));
        give(stack, packet(proto::UDP, "10.0.0.2", "198.51.100.7", 53), now);
        assert_eq!(stack.tproxy_next().is_some(), udp_allowed);
    }
}

#[test]
fn streams_whose_host_socket_is_gone_are_reset_before_anything_else_and_one_that_is_brought_back_is_kept() {
    let home = tempfile::tempdir().expect("a directory");
    let image = home.path().join("image");
    let mut engine = engine();
    load_policy(&mut engine, &Policy::parse("[[rule]]\naction = \"allow\"\n").expect("a policy")).expect("rules");
    let (stack, now) = engine.stack();
    for server in ["198.51.100.7", "198.51.100.8"] {
        give(stack, packet(proto::TCP, "10.0.0.2", server, 80), now);
        let Some(Proxied::Opening(opening)) = stack.tproxy_next() else { panic!("an opening of {server}") };
        stack.tproxy_accept(opening, hibernet_netstack::StreamOptions::default(), now).expect("a stream");
    }
    let bytes = stack.save(hibernet_snapshot::GenerationId([1; 16]), now).expect("an image");
    std::fs::write(&image, bytes).expect("a file");
    let mut restored =
        Engine::restored(&crate::gateway::RestoreRequest::moved(&image), hibernet_netstack::Supplied::default())
            .expect("a stack");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
    let brought_back: SocketAddr = "198.51.100.8:80".parse().expect("an end");
    let kept = end_lost_streams(&mut restored, |stream| {
        (stream.server == brought_back)
            .then(|| std::net::TcpStream::connect(listener.local_addr().expect("an end")).expect("a host socket"))
    });
    assert_eq!(kept.iter().map(|(stream, _)| stream.server).collect::<Vec<_>>(), [brought_back]);
    let summary = restored.summary().expect("it was restored").clone();
    assert_eq!((summary.streams_kept, summary.streams_reset, summary.kept, summary.reset), (1, 1, 1, 1));
    assert!(summary.resets[0].contains("10.0.0.2:1000 to 198.51.100.7:80"), "{summary:?}");
    let (stack, _) = restored.stack();
    let first = stack.egress().expect("a reset").datagram;
    let flags = first[20 + 13];
    assert!(first[12..16] == [198, 51, 100, 7] && flags & 0x04 != 0, "{first:?}");
}
