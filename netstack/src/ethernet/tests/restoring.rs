use super::*;

#[test]
fn packets_that_wait_are_restored_and_the_neighbour_is_asked_anew() {
    for version in [Version::V4, Version::V6] {
        let mut bench = Bench::new(version, "");
        bench.states(&["in: udp client:1000 > server:53 len=1", "in: udp client:1000 > server:53 len=2", "+1s", "+1s"]);
        let mut heir = bench.restored(2);
        assert_eq!(heir.stack.next_deadline(heir.now), Some(heir.now));
        heir.play("+0s");
        assert_eq!(heir.outcome(), ["out: all < asks neighbour"]);
        for _ in 0..2 {
            heir.play("+1s");
            assert_eq!(heir.outcome(), ["out: all < asks neighbour"]);
        }
        heir.play("out: neighbour answers public");
        assert_eq!(
            heir.outcome(),
            [
                "out: neighbour < udp client:1000 > server:53 len=1 ttl=63",
                "out: neighbour < udp client:1000 > server:53 len=2 ttl=63"
            ]
        );
    }
}

#[test]
fn every_state_of_a_neighbour_comes_back_with_what_remains_of_its_time() {
    for version in [Version::V4, Version::V6] {
        let mut bench = Bench::new(version, "");
        bench.states(&["in: client asks gateway", "in: udp server:1 > other:1 len=1", "in: other answers gateway"]);
        for lines in
            [&["+1s"][..], &["+9s"], &["+40s", "in: udp server:1 > other:1 len=1"], &["+2s"], &["+3s"], &["+1s"]]
        {
            let states = bench.states(lines);
            let mut heir = bench.restored(2);
            assert_eq!(heir.neighbours(), states);
            let (waits, rests) = (bench.stack.neighbours.next_deadline(), heir.stack.neighbours.next_deadline());
            let probing = states.iter().any(|line| line.ends_with("PROBE"));
            assert_eq!(if probing { None } else { waits }, if probing { None } else { rests });
            if probing {
                heir.play("+0s");
                let probed =
                    states.iter().filter(|line| line.ends_with("PROBE")).filter_map(|line| line.split(' ').next());
                let expected: Vec<String> = probed.map(|name| format!("in: {name} < asks {name}")).collect();
                assert_eq!(heir.outcome(), expected, "a check starts anew");
            }
        }
    }
}

#[test]
fn a_source_and_its_heir_that_are_shown_the_same_send_the_same() {
    let script = [
        "in: udp client:1000 > server:53 len=1",
        "in: udp server:1 > client:1 len=1",
        "+20s",
        "in: udp client:1000 > server:54 len=2",
        "+30s",
        "in: other asks gateway",
        "in: udp client:1000 > server:55 len=2",
        "in: udp client:1000 > other:55 len=2",
        "+5s",
        "in: other answers gateway",
        "+1s",
        "out: neighbour answers public",
        "+60s",
    ];
    for version in [Version::V4, Version::V6] {
        let mut bench = Bench::new(version, "");
        bench.states(&[
            "in: client asks gateway",
            "in: udp client:1 > server:1 len=1",
            "out: neighbour answers public",
            "+1s",
        ]);
        let mut heir = bench.restored(2);
        // A source that has asked nothing goes on as its heir does, given the same draws of confirmation times.
        for stack in [&mut bench.stack, &mut heir.stack] {
            stack.wire_choices()[3].1.play(&[1000; 64]);
        }
        for line in script {
            bench.play(line);
            heir.play(line);
            assert_eq!(bench.outcome(), heir.outcome(), "{line}");
            assert_eq!(bench.neighbours(), heir.neighbours(), "{line}");
        }
    }
}

#[test]
fn an_image_with_a_neighbour_that_cannot_be_is_refused_with_the_field() {
    use hibernet_snapshot::Snapshot;
    use hibernet_snapshot::codec::{decode, encode};

    use crate::ethernet::NeighboursSection;
    use crate::link::Links;

    for version in [Version::V4, Version::V6] {
        let mut bench = Bench::new(version, "");
        bench.states(&["in: client asks gateway", "in: udp client:1 > other:1 len=1"]);
        let body = encode(&bench.stack.neighbours.section(bench.now).save()).unwrap();
        let links = Links::new(bench.stack.links.given().to_vec());
        let check = |bytes: &[u8]| {
            let saved = decode::<<NeighboursSection as Snapshot>::Saved>(bytes, &Limits::default()).ok()?;
            let section = NeighboursSection::restore(saved, (), &mut Entropy::from_test_seed(1));
            Some(section.and_then(|section| section.check(&links, bench.now)).map(drop))
        };
        assert_eq!(check(&body), Some(Ok(())));
        let (mut refused, mut fields) = (0, std::collections::BTreeSet::new());
        for at in 0..body.len() {
            for value in [0, 1, 3, 0x7f, 0xff] {
                let mut bytes = body.clone();
                bytes[at] = value;
                if let Some(Err(invalid)) = check(&bytes) {
                    refused += 1;
                    fields.insert(invalid.field.rsplit('.').next().unwrap().to_owned());
                }
            }
        }
        assert!(refused > 0);
        for field in ["link", "addr", "unneeded", "locked", "used", "mac"] {
            assert!(fields.contains(field), "{field} of {fields:?}");
        }
        assert!(fields.iter().any(|field| field.starts_with("waiting")), "{fields:?}");
    }
}

#[test]
fn a_neighbour_on_a_link_that_is_not_of_ethernet_is_refused() {
    let mut bench = Bench::new(Version::V4, "");
    bench.states(&["in: client asks gateway"]);
    let section = bench.stack.neighbours.section(bench.now);
    let mut given = bench.stack.links.given().to_vec();
    given[0].medium = Medium::Ip;
    let refusal = section.check(&crate::link::Links::new(given), bench.now).err().unwrap();
    assert_eq!(refusal.to_string(), "neighbours[0].link: found 1, expected an Ethernet link");
}
