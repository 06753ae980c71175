//! What this host answers on Ethernet links: over which link, to whom, and to what not at all.

use super::*;
use crate::ListenOptions;

#[test]
fn an_answer_to_a_link_local_address_asks_for_it_on_the_link_of_the_question() {
    for (link, own) in [("in", "gateway"), ("out", "public")] {
        let mut bench = Bench::new(Version::V6, "");
        bench.play(&format!("{link}: ping fe80::9 > {own} id=1"));
        assert_eq!(bench.outcome(), [format!("{link}: all < asks fe80::9")]);
        bench.play(&format!("{link}: client as fe80::9 answers {own}"));
        let told = bench.outcome();
        assert!(told[0].starts_with(&format!("{link}: client < icmp {own} > fe80::9 type=129")), "{told:?}");
        assert_eq!(told.len(), 1);
    }
}

#[test]
fn an_answer_that_is_bound_to_its_link_goes_to_the_router_there() {
    let mut bench = Bench::new(Version::V6, "");
    bench.play("out: ping server > 2001:db8:ff:: id=1");
    assert_eq!(bench.outcome(), ["out: all < asks neighbour"]);
    bench.play("in: ping server > fd00:10:: id=1");
    assert_eq!(bench.outcome(), [""; 0], "no route leads back over that link");
}

#[test]
fn an_opening_in_a_frame_to_a_group_gets_no_cookie() {
    for version in [Version::V4, Version::V6] {
        let mut bench = Bench::new(version, "");
        let options = ListenOptions { half_open: 1, ..ListenOptions::default() };
        bench.stack.tcp_listen("::".parse().unwrap(), 80, options).unwrap();
        bench.play("in: client asks gateway");
        bench.play("in: tcp client:1000 > gateway:80 S seq=1");
        bench.outcome();
        let opening = version.datagram("tcp client:1001 > gateway:80 S seq=1");
        let frame = framed(MacAddr::BROADCAST, mac("client"), bench.carries(), &opening);
        bench.stack.ingress(bench.link("in"), frame, bench.now);
        assert_eq!(bench.outcome(), ["drop no_listener"]);
        assert_eq!(bench.stack.stats().cookies_sent, 0);
        bench.play("in: tcp client:1002 > gateway:80 S seq=1");
        assert_eq!((bench.outcome().len(), bench.stack.stats().cookies_sent), (1, 1));
    }
}
