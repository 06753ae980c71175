use super::*;
use crate::NeighbourState;

/// Addresses of the guest's network, as many as are asked for.
fn address(version: Version, number: u32) -> String {
    match version {
        Version::V4 => format!("10.9.{}.{}", number / 250, number % 250 + 1),
        Version::V6 => format!("fd00:10::9:{number:x}"),
    }
}

fn bench(version: Version) -> Bench {
    let mut config = ethernet_config(Ruleset::open());
    config.links[0].addrs = vec!["10.0.0.1/8".parse().unwrap(), "fd00:10::1/64".parse().unwrap()];
    let now = Instant::from_secs(1000);
    Bench { stack: Stack::new(config, Entropy::from_test_seed(1), now).unwrap(), now, version }
}

#[test]
fn a_flood_of_made_up_askers_is_bounded_and_those_in_use_stay() {
    for version in [Version::V4, Version::V6] {
        let mut bench = bench(version);
        bench.states(&["in: udp server:1 > client:1 len=1", "in: client answers gateway"]);
        for number in 0..5000 {
            let frame = bench.question(mac("impostor"), &address(version, number), "gateway");
            bench.stack.ingress(bench.link("in"), frame, bench.now);
            bench.outcome();
        }
        let neighbours = bench.neighbours();
        assert_eq!(neighbours.len(), 1024);
        assert!(neighbours.contains(&"client client REACHABLE".to_owned()));
        bench.restored(2);
    }
}

#[test]
fn a_flood_for_addresses_nobody_has_is_bounded_and_those_in_use_stay() {
    for version in [Version::V4, Version::V6] {
        let mut bench = bench(version);
        bench.states(&["in: udp server:1 > client:1 len=1", "in: client answers gateway", "+46s"]);
        let mut asked = 0;
        for number in 0..5000 {
            bench.play(&format!("in: udp client:1 > {}:9 len=1000", address(version, number)));
            asked += bench.outcome().iter().filter(|line| line.contains("asks")).count();
        }
        assert_eq!(asked, 5000);
        let incomplete =
            bench.stack.neighbours(bench.now).iter().filter(|entry| entry.state == NeighbourState::Incomplete).count();
        assert!(incomplete <= 1023, "{incomplete}");
        let in_use = |bench: &Bench| bench.neighbours().iter().any(|line| line.starts_with("client client "));
        assert!(in_use(&bench));
        let dropped = bench.stack.stats().dropped(DropReason::NeighbourTableFull)
            + bench.stack.stats().dropped(DropReason::NeighbourQueueFull);
        assert_eq!(dropped + incomplete as u64, 5000, "each packet waits or is counted");
        let bytes = bench.stack.save(GENERATION, bench.now).unwrap().len();
        assert!(bytes < 3 << 20, "{bytes}");
        bench.restored(2);
        for _ in 0..3 {
            bench.play("+1s");
        }
        assert!(in_use(&bench) && bench.neighbours().len() == 1);
        assert_eq!(bench.stack.stats().dropped(DropReason::NeighbourUnreachable), incomplete as u64);
    }
}

#[test]
fn the_oldest_packets_make_room_where_too_many_wait_for_one_neighbour() {
    for version in [Version::V4, Version::V6] {
        let mut bench = bench(version);
        for len in 0..150 {
            bench.play(&format!("in: udp client:1 > other:9 len={len}"));
        }
        bench.outcome();
        assert_eq!(bench.stack.stats().dropped(DropReason::NeighbourQueueFull), 49);
        bench.play("in: other answers gateway");
        let sent = bench.outcome();
        assert_eq!(sent.len(), 101);
        assert!(sent[0].contains("len=49") && sent[100].contains("len=149"), "{sent:?}");
    }
}

#[test]
fn neighbours_that_were_not_used_for_a_minute_make_room_where_there_are_many() {
    for version in [Version::V4, Version::V6] {
        let mut bench = bench(version);
        let ask = |bench: &mut Bench, number| {
            let frame = bench.question(mac("impostor"), &address(version, number), "gateway");
            bench.stack.ingress(bench.link("in"), frame, bench.now);
            bench.outcome();
            bench.neighbours().len()
        };
        assert_eq!((0..200).map(|number| ask(&mut bench, number)).max(), Some(200));
        for _ in 0..70 {
            bench.play("+1s");
        }
        // Those that were answered by neighbour discovery were checked, and are gone already.
        let most = if matches!(version, Version::V4) { 200 } else { 100 };
        assert_eq!((200..300).map(|number| ask(&mut bench, number)).max(), Some(most));
    }
}
