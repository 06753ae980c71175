use hibernet_snapshot::{Entropy, Instant};
use proptest::prelude::*;

use crate::test_packets::{text, udp};
use crate::test_stack::{Version, check, config, outcome, play, stack};
use crate::{DropReason, Ruleset, Stack, StackEvent};

const MASQUERADE: &str = r#"[{"chain":"srcnat","match":{"oif":"out"},"action":"masquerade"}]"#;

#[test]
fn a_forwarded_packet_loses_one_hop_and_nothing_else() {
    check(
        "",
        "
        in: udp client:1000 > server:53 len=3
          out: udp client:1000 > server:53 len=3 ttl=63
        out: udp server:53 > client:1000 len=3
          in: udp server:53 > client:1000 len=3 ttl=63
        ",
    );
}

#[test]
fn a_masqueraded_flow_is_translated_both_ways() {
    check(
        MASQUERADE,
        "
        in: tcp client:1000 > server:80 S
          out: tcp public:1000 > server:80 S ttl=63
        out: tcp server:80 > public:1000 SA ack=1
          in: tcp server:80 > client:1000 SA ttl=63
        in: tcp client:1000 > server:80 A seq=1 ack=1
          out: tcp public:1000 > server:80 A ttl=63
        ",
    );
}

#[test]
fn the_default_rules_let_nothing_in_and_nothing_through() {
    let set = Ruleset::default().to_json();
    check(
        &set,
        "
        in: udp client:1000 > server:53
          drop policy
        in: udp client:1000 > gateway:7
          drop policy
        ",
    );
}

#[test]
fn a_destination_is_translated_and_answers_come_from_where_they_were_asked() {
    let rules = r#"[{"chain":"dstnat","match":{"iif":"out","proto":"tcp","dport":8080,"family":"ipv4"},"action":{"dnat":"10.0.0.5:80"}},
                    {"chain":"dstnat","match":{"iif":"out","proto":"tcp","dport":8080,"family":"ipv6"},"action":{"dnat":"[fd00:10::5]:80"}}]"#;
    check(
        rules,
        "
        out: tcp server:4000 > public:8080 S
          in: tcp server:4000 > inner:80 S ttl=63
        in: tcp inner:80 > server:4000 SA ack=1
          out: tcp public:8080 > server:4000 SA ttl=63
        ",
    );
}

#[test]
fn a_router_that_lets_a_packet_die_tells_its_sender_and_leaves_no_flow() {
    for version in [Version::V4, Version::V6] {
        let mut stack = stack(MASQUERADE);
        play(&mut stack, version, "in", "udp client:1000 > server:53 ttl=1");
        let told = outcome(&mut stack, version);
        assert_eq!(told[0], "drop time_to_live");
        assert!(told[1].contains("gateway > client"), "{told:?}");
        assert!(told[1].ends_with("about (client:1000 > server:53) ttl=64"), "{told:?}");
        assert_eq!(stack.flows(Instant::ZERO).len(), 0);
    }
}

#[test]
fn an_error_about_a_translated_answer_shows_what_its_sender_sent() {
    for version in [Version::V4, Version::V6] {
        let mut stack = stack(MASQUERADE);
        play(&mut stack, version, "in", "udp client:1000 > server:53");
        outcome(&mut stack, version);
        play(&mut stack, version, "out", "udp server:53 > public:1000 ttl=1");
        let told = outcome(&mut stack, version);
        assert!(told.last().unwrap().starts_with("out: icmp public > server"), "{told:?}");
        assert!(told.last().unwrap().ends_with("about (server:53 > public:1000) ttl=64"), "{told:?}");
    }
}

#[test]
fn a_rejected_segment_is_reset_and_a_rejected_datagram_is_unreachable() {
    let rules = r#"[{"chain":"forward","match":{"proto":"tcp"},"action":"reject-tcp"},
                    {"chain":"forward","match":{"proto":"udp"},"action":"reject"}]"#;
    for version in [Version::V4, Version::V6] {
        let mut stack = stack(rules);
        play(&mut stack, version, "in", "tcp client:1 > server:25 S seq=10");
        assert_eq!(outcome(&mut stack, version), ["drop reject", "in: tcp server:25 > client:1 AR ttl=64"]);
        play(&mut stack, version, "in", "udp client:1 > server:25 len=5");
        let told = outcome(&mut stack, version);
        assert!(told[1].starts_with("in: icmp gateway > client"), "{told:?}");
        assert!(told[1].ends_with("about (client:1 > server:25) ttl=64"), "{told:?}");
        assert_eq!(stack.stats().errors_sent, 2);
    }
}

#[test]
fn a_new_flow_that_is_dropped_leaves_nothing() {
    let rules = r#"[{"chain":"forward","match":{"dport":80},"action":"drop"}]"#;
    for version in [Version::V4, Version::V6] {
        let mut stack = stack(rules);
        play(&mut stack, version, "in", "tcp client:1 > server:80 S");
        assert_eq!(outcome(&mut stack, version), ["drop rule"]);
        assert!(stack.flows(Instant::ZERO).is_empty());
        play(&mut stack, version, "in", "tcp client:1 > server:81 S");
        assert_eq!(stack.flows(Instant::ZERO).len(), 1);
    }
}

#[test]
fn a_full_table_drops_new_flows_and_refuses_local_senders() {
    for version in [Version::V4, Version::V6] {
        let mut config = config(Ruleset::open());
        config.conntrack.sysctls.set("nf_conntrack_max", "1").unwrap();
        config.conntrack.early_drop = hibernet_conntrack::EarlyDrop::Off;
        let mut stack = Stack::new(config, Entropy::from_test_seed(1), Instant::ZERO).unwrap();
        play(&mut stack, version, "in", "tcp client:1 > server:80 S");
        outcome(&mut stack, version);
        play(&mut stack, version, "in", "tcp client:2 > server:80 S");
        assert_eq!(outcome(&mut stack, version), ["drop table_full"]);
        let refused = stack.local_output(version.datagram("udp public:1 > server:53"), Instant::ZERO).unwrap_err();
        assert_eq!((refused.reason, refused.errno().name()), (DropReason::TableFull, "EPERM"));
        let socket = stack.udp_bind("::".parse().unwrap(), 5000).unwrap();
        let to = (version.addr("server"), 53).into();
        assert_eq!(stack.udp_send(socket, to, b"x", Instant::ZERO).unwrap_err().errno().name(), "EPERM");
        let connecting = stack.tcp_connect(
            None,
            (version.addr("server"), 80).into(),
            crate::StreamOptions::default(),
            Instant::ZERO,
        );
        assert!(connecting.is_ok());
    }
}

#[test]
fn log_rules_see_the_packet_as_it_is_at_their_hook() {
    let rules = r#"{"chains":[
        {"name":"a","hook":"prerouting","priority":-300,"rules":[{"action":{"log":"raw"}}]},
        {"name":"b","hook":"prerouting","priority":-199,"rules":[{"action":{"log":"tracked"}}]},
        {"name":"c","hook":"forward","rules":[{"action":{"log":"forward"}}]},
        {"name":"d","hook":"postrouting","priority":200,"rules":[{"action":{"log":"leaving"}}]},
        {"name":"srcnat","type":"nat","hook":"postrouting","priority":100,"rules":[{"action":"masquerade"}]}]}"#;
    for version in [Version::V4, Version::V6] {
        let mut stack = stack(rules);
        play(&mut stack, version, "in", "udp client:1000 > server:53");
        let mut seen = Vec::new();
        while let Some(event) = stack.next_event() {
            if let StackEvent::Log(log) = event {
                let state = log.state.map(|state| state.to_string());
                let src = text(&log.datagram).contains(&version.addr("public").to_string());
                seen.push((log.prefix, state, log.oif.is_some(), src));
            }
        }
        let new = Some("new".to_owned());
        assert_eq!(
            seen,
            [
                ("raw".into(), None, false, false),
                ("tracked".into(), new.clone(), false, false),
                ("forward".into(), new.clone(), true, false),
                ("leaving".into(), new, true, true),
            ]
        );
    }
}

#[test]
fn flows_of_two_zones_do_not_meet() {
    let rules = r#"[{"chain":"raw_prerouting","match":{"iif":"in"},"action":{"zone":1}},
                    {"chain":"raw_prerouting","match":{"iif":"out"},"action":{"zone":2}}]"#;
    for version in [Version::V4, Version::V6] {
        let mut stack = stack(rules);
        play(&mut stack, version, "in", "udp client:1000 > server:53");
        play(&mut stack, version, "out", "udp client:1000 > server:53");
        let zones: Vec<u16> = stack.flows(Instant::ZERO).iter().map(|flow| flow.zone.id).collect();
        assert_eq!(zones, [1, 2]);
    }
}

#[test]
fn the_first_zone_rule_counts_and_takes_notrack_back() {
    let zone_of = |first: &str, second: &str| {
        let rule = |action: &str| format!(r#"{{"chain":"raw_prerouting","action":{action}}}"#);
        let mut stack = stack(&format!("[{},{}]", rule(first), rule(second)));
        play(&mut stack, Version::V4, "in", "udp client:1000 > server:53");
        stack.flows(Instant::ZERO).first().map(|flow| (flow.zone.id, flow.zone.orig_only))
    };
    assert_eq!(zone_of(r#"{"zone":7}"#, r#"{"zone_orig":8}"#), Some((7, false)));
    assert_eq!(zone_of(r#"{"zone":0}"#, r#"{"zone":7}"#), Some((0, false)));
    assert_eq!(zone_of(r#"{"zone":7}"#, r#""notrack""#), Some((7, false)));
    assert_eq!(zone_of(r#""notrack""#, r#"{"zone_orig":7}"#), Some((7, true)));
    assert_eq!(zone_of(r#""notrack""#, r#""notrack""#), None);
}

#[test]
fn untracked_packets_pass_without_a_flow_and_without_translation() {
    let rules = r#"[{"chain":"raw_prerouting","action":"notrack"},{"chain":"srcnat","action":"masquerade"}]"#;
    check(
        rules,
        "
        in: udp client:1000 > server:53 len=1
          out: udp client:1000 > server:53 len=1 ttl=63
        ",
    );
}

#[test]
fn a_redirected_connection_is_answered_in_the_name_of_the_server() {
    let rules = r#"[{"chain":"dstnat","match":{"iif":"in","proto":"tcp","dport":80},"action":{"redirect":7}}]"#;
    check(
        rules,
        "
        in: tcp client:4000 > server:80 S seq=100
          in: tcp server:80 > client:4000 SA ttl=64
        ",
    );
}

#[test]
fn what_is_for_this_host_is_answered_or_refused() {
    check(
        "",
        "
        in: udp client:1000 > gateway:7 len=5
          in: udp gateway:7 > client:1000 len=5 ttl=64
        in: tcp client:1000 > gateway:99 S
          drop no_connection
          in: tcp gateway:99 > client:1000 AR ttl=64
        in: tcp client:1000 > public:7 S
          in: tcp public:7 > client:1000 SA ttl=64
        ",
    );
    for version in [Version::V4, Version::V6] {
        let mut stack = stack("");
        play(&mut stack, version, "in", "udp client:1000 > gateway:9 len=5");
        let told = outcome(&mut stack, version);
        assert_eq!(told[0], "drop port_unreachable");
        assert!(told[1].ends_with("about (client:1000 > gateway:9) ttl=64"), "{told:?}");
        play(&mut stack, version, "in", "ping client > gateway id=5");
        let told = outcome(&mut stack, version);
        assert!(told[0].contains("gateway > client") && told[0].contains("id=5"), "{told:?}");
    }
}

#[test]
fn a_segment_of_strange_flags_is_reset_where_nobody_listens_and_passed_over_by_a_listener() {
    check(
        "",
        "
        in: tcp client:1000 > gateway:99 SF
          drop no_connection
          in: tcp gateway:99 > client:1000 AR ttl=64
        in: tcp client:1000 > gateway:0 S
          drop no_connection
          in: tcp gateway:0 > client:1000 AR ttl=64
        in: tcp client:1000 > gateway:7 F
          drop local_malformed
        in: tcp client:1000 > gateway:7 SF
          drop local_malformed
        in: tcp client:1000 > gateway:7 SAF ack=5
          drop no_connection
          in: tcp gateway:7 > client:1000 R ttl=64
        ",
    );
    for version in [Version::V4, Version::V6] {
        let mut stack = stack("");
        play(&mut stack, version, "in", "udp client:1000 > gateway:0");
        assert_eq!(outcome(&mut stack, version)[0], "drop port_unreachable");
    }
}

#[test]
fn what_is_damaged_or_for_routers_alone_gets_no_answer_of_this_host() {
    let quiet = |datagram: Vec<u8>, reason: &str| {
        let mut stack = stack("");
        let link = stack.link("in").unwrap();
        stack.ingress(link, datagram, Instant::ZERO);
        assert_eq!(outcome(&mut stack, Version::V4), [format!("drop {reason}")]);
    };
    for version in [Version::V4, Version::V6] {
        let mut ping = version.datagram("ping client > gateway id=1");
        *ping.last_mut().unwrap() ^= 1;
        quiet(ping, "local_malformed");
    }
    let mut unchecked = Version::V6.datagram("udp client:1 > gateway:99 len=4");
    unchecked[46..48].fill(0);
    quiet(unchecked, "local_malformed");
    for protocol in [2, 103] {
        let mut membership = Version::V4.datagram("udp client:1 > gateway:99 len=4");
        membership[9] = protocol;
        crate::test_packets::fill_header_checksum(&mut membership);
        quiet(membership, "no_listener");
    }
}

#[test]
fn a_timestamp_request_is_answered_without_a_time() {
    let mut stack = stack("");
    let link = stack.link("in").unwrap();
    let request = "4500002842420000400124910a0000020a0000010d00d4d400030004000102030405060708090a0b";
    stack.ingress(link, crate::test_packets::unhex(request), Instant::ZERO);
    let reply = stack.egress().unwrap().datagram;
    assert_eq!(text(&reply), "icmp 10.0.0.1 > 10.0.0.2 type=14 code=0 id=3 seq=4 ttl=64");
    assert_eq!(crate::test_packets::hex(&reply[28..]), "000102038000000080000000");
    assert_eq!(stack.flows(Instant::ZERO).len(), 1);
}

#[test]
fn what_is_too_large_for_a_link_is_cut_or_its_sender_is_told() {
    let small = |version: Version, dont_fragment| {
        let mut config = config(Ruleset::open());
        config.links[1].mtu = 1280;
        let mut stack = Stack::new(config, Entropy::from_test_seed(1), Instant::ZERO).unwrap();
        let mut datagram = version.datagram("udp client:1 > server:25 len=1300");
        if dont_fragment && matches!(version, Version::V4) {
            datagram[6] |= 0x40;
            crate::test_packets::fill_header_checksum(&mut datagram);
        }
        let link = stack.link("in").unwrap();
        stack.ingress(link, datagram, Instant::ZERO);
        stack
    };
    let mut cut = small(Version::V4, false);
    let pieces: Vec<usize> = core::iter::from_fn(|| cut.egress()).map(|sent| sent.datagram.len()).collect();
    assert_eq!(pieces, [1276, 72]);
    for version in [Version::V4, Version::V6] {
        let mut stack = small(version, true);
        let told = outcome(&mut stack, version);
        assert_eq!(told[0], "drop packet_too_big");
        assert!(told[1].starts_with("in: icmp gateway > client type="), "{told:?}");
        assert!(stack.flows(Instant::ZERO).is_empty());
    }
}

#[test]
fn a_large_answer_of_this_host_leaves_in_pieces() {
    for version in [Version::V4, Version::V6] {
        let mut stack = stack("");
        let socket = stack.udp_bind("::".parse().unwrap(), 5000).unwrap();
        stack.udp_send(socket, (version.addr("server"), 9).into(), &[7; 3000], Instant::ZERO).unwrap();
        let pieces: Vec<usize> = core::iter::from_fn(|| stack.egress()).map(|sent| sent.datagram.len()).collect();
        assert_eq!(pieces.len(), 3, "{pieces:?}");
        assert!(pieces.iter().all(|len| *len <= 1500));
    }
}

#[test]
fn a_local_sender_reaches_a_local_socket_over_loopback() {
    for version in [Version::V4, Version::V6] {
        let mut stack = stack("");
        let socket = stack.udp_bind("::".parse().unwrap(), 5000).unwrap();
        let to = (version.addr("gateway"), 7).into();
        stack.udp_send(socket, to, b"ping", Instant::ZERO).unwrap();
        let got = stack.udp_recv(socket).unwrap().unwrap();
        assert_eq!((got.from, got.to, got.payload), (to, to.ip(), b"ping".to_vec()));
        assert_eq!(stack.flows(Instant::ZERO).len(), 1, "one flow, seen at OUTPUT and again over loopback");
    }
}

#[test]
fn a_dropped_local_datagram_is_an_error_to_its_sender() {
    let rules = r#"[{"chain":"output","match":{"proto":"udp","dport":54},"action":"drop"}]"#;
    let mut stack = stack(rules);
    let refused = stack.local_output(udp("203.0.113.1:1112", "198.51.100.10:54", b"x"), Instant::ZERO).unwrap_err();
    assert_eq!(refused.to_string(), "EPERM: rule");
}

#[test]
fn a_failing_rule_set_changes_nothing() {
    let mut stack = stack(MASQUERADE);
    play(&mut stack, Version::V4, "in", "udp client:1000 > server:53");
    let before = stack.rules().clone();
    let bad = Ruleset::from_json(r#"[{"chain":"forward","action":"drop"},{"chain":"forward","action":"masquerade"}]"#);
    assert!(stack.load_rules(bad.unwrap()).is_err());
    assert_eq!(stack.rules(), &before);
    assert_eq!(before.chain("srcnat").unwrap().rules[0].counters.packets, 1);
}

#[test]
fn the_event_stream_of_a_short_connection_stays_as_it_is() {
    let mut stack = stack(MASQUERADE);
    let mut stream = String::new();
    for (link, words) in [
        ("in", "tcp client:1000 > server:80 S"),
        ("out", "tcp server:80 > public:1000 SA ack=1"),
        ("in", "tcp client:1000 > server:80 A seq=1 ack=1"),
        ("out", "tcp server2:80 > public:1000 A"),
        ("in", "udp client:1 > gateway:9"),
    ] {
        play(&mut stack, Version::V4, link, words);
        stream.push_str(&format!("{link}: {words}\n"));
        while let Some(event) = stack.next_event() {
            stream.push_str(&match event {
                StackEvent::Conntrack(event) => format!("  {} {}\n", event.kind.name(), event.flow),
                StackEvent::Drop(drop) => format!("  DROP {} at {:?}\n", drop.reason, drop.hook),
                StackEvent::Invalid { reason } => format!("  INVALID {reason}\n"),
                StackEvent::Log(log) => format!("  LOG {}\n", log.prefix),
            });
        }
    }
    insta::assert_snapshot!(stream);
}

#[test]
fn the_table_of_hooks_of_a_small_gateway_reads_like_nft() {
    let rules = r#"[{"chain":"raw_prerouting","action":"notrack"},{"chain":"forward","action":"accept"},
                    {"chain":"srcnat","action":"masquerade"},{"chain":"late_postrouting","action":"accept"}]"#;
    let rows: String = stack(rules).hooks().iter().map(|row| format!("{row}\n")).collect();
    insta::assert_snapshot!(rows);
}

#[test]
fn two_echo_services_that_talk_to_each_other_come_to_an_end() {
    let mut stack = stack("");
    let loop_to_itself = udp("203.0.113.1:7", "203.0.113.1:7", b"x");
    stack.local_output(loop_to_itself, Instant::ZERO).unwrap();
    assert_eq!(stack.stats().dropped(DropReason::WorkLimit), 1);
}

proptest! {
    #[test]
    fn no_bytes_from_a_link_can_make_the_stack_panic(
        frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..20),
        mutations in prop::collection::vec((0_usize..8, any::<u8>(), any::<usize>()), 0..40),
    ) {
        let mut stack = stack(r#"[{"chain":"srcnat","action":"masquerade"},
            {"chain":"dstnat","match":{"dport":8080},"action":{"redirect":7}},
            {"chain":"forward","match":{"dport":25},"action":"reject"},
            {"chain":"forward","match":{"dport":26},"action":"reject-tcp"}]"#);
        let good = [
            "tcp client:1 > gateway:7 S", "tcp client:1 > server:25 S", "tcp client:2 > server:26 S",
            "udp client:1 > gateway:7 len=20", "udp client:1 > server:25 len=3", "ping client > gateway id=1",
            "tcp client:9 > server:8080 S", "udp client:1 > gateway:9",
        ];
        let links = [stack.link("in").unwrap(), stack.link("out").unwrap()];
        for frame in frames {
            stack.ingress(links[frame.len() % 2], frame, Instant::ZERO);
        }
        for (which, value, place) in mutations {
            for version in [Version::V4, Version::V6] {
                let mut frame = version.datagram(good[which]);
                let at = place % frame.len();
                frame[at] = value;
                crate::test_packets::fill_header_checksum_if_whole(&mut frame);
                stack.ingress(links[0], frame, Instant::from_millis(1));
            }
        }
        stack.poll(Instant::from_secs(1000));
        prop_assert!(stack.stats().received > 0);
    }
}

#[test]
fn a_connection_that_a_rule_resets_is_closed_in_the_table() {
    let rules = r#"[{"chain":"forward","match":{"ctstate":["established"],"ctdir":"original"},"action":"reject-tcp"}]"#;
    for version in [Version::V4, Version::V6] {
        let mut stack = stack(rules);
        play(&mut stack, version, "in", "tcp client:1000 > server:80 S");
        play(&mut stack, version, "out", "tcp server:80 > client:1000 SA ack=1");
        play(&mut stack, version, "in", "tcp client:1000 > server:80 A seq=1 ack=1");
        let flow = stack.flows(Instant::ZERO).remove(0).to_string();
        assert!(flow.starts_with("tcp      6 10 CLOSE "), "{flow}");
    }
}

#[test]
fn a_link_that_loses_its_address_takes_the_flows_behind_it_along() {
    for version in [Version::V4, Version::V6] {
        let mut stack = stack(MASQUERADE);
        let link = stack.link("out").unwrap();
        play(&mut stack, version, "in", "udp client:1000 > server:53");
        play(&mut stack, version, "in", "udp client:1000 > inner:53");
        outcome(&mut stack, version);
        let addrs = ["203.0.113.9/24", "2001:db8:ff::9/64"].iter().map(|addr| addr.parse().unwrap()).collect();
        stack.set_addresses(link, addrs, Instant::ZERO).unwrap();
        assert_eq!(stack.flows(Instant::ZERO).len(), 1);
        play(&mut stack, version, "in", "udp client:1000 > server:53");
        assert_eq!(outcome(&mut stack, version), ["out: udp neighbour:1000 > server:53 len=0 ttl=63"]);
        assert!(stack.set_addresses(link, vec!["224.0.0.1/4".parse().unwrap()], Instant::ZERO).is_err());
        assert!(stack.set_addresses(crate::LinkId::LOOPBACK, Vec::new(), Instant::ZERO).is_err());
        assert_eq!(stack.links()[1].addrs.len(), 2);
    }
}

#[test]
fn expiry_and_deadlines_follow_the_time_that_is_told() {
    let mut stack = stack("");
    play(&mut stack, Version::V4, "in", "udp client:1000 > server:53");
    let deadline = stack.next_deadline(Instant::ZERO).unwrap();
    assert!(deadline > Instant::from_secs(1));
    assert_eq!(stack.flows(Instant::from_secs(10))[0].remaining.as_secs(), 20);
    assert!(stack.flows(Instant::from_secs(31)).is_empty());
    stack.poll(Instant::from_secs(31));
    assert!(stack.conntrack().is_empty());
    assert_eq!(stack.next_deadline(Instant::from_secs(31)), None);
}

#[test]
fn marks_are_set_by_rules_and_matched_by_rules() {
    let rules = r#"[{"chain":"mangle_prerouting","match":{"dport":53},"action":{"ctmark":7}},
                    {"chain":"forward","match":{"ctmark":7},"action":"drop"}]"#;
    check(
        rules,
        "
        in: udp client:1000 > server:53
          drop rule
        in: udp client:1000 > server:54
          out: udp client:1000 > server:54 len=0 ttl=63
        ",
    );
}
