use proptest::prelude::*;

use super::*;

#[test]
fn frames_that_are_not_for_us_have_a_reason_each() {
    let datagram = Version::V4.datagram("udp client:1 > gateway:7 len=1");
    let good = framed(mac("gateway"), mac("client"), Carries::Ipv4, &datagram);
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bench = Bench::new(Version::V4, "");
        let mut frame = good.clone();
        change(&mut frame);
        bench.stack.ingress(bench.link("in"), frame, bench.now);
        bench.outcome()
    };
    assert_eq!(changed(&|_| {}), ["in: all < asks client"]);
    assert_eq!(changed(&|frame| frame.extend([0; 20])), ["in: all < asks client"], "padding is cut");
    assert_eq!(changed(&|frame| frame.truncate(13)), ["drop frame_malformed"]);
    assert_eq!(changed(&|frame| frame.truncate(14)), ["drop not_ip"]);
    assert_eq!(changed(&|frame| frame[0] = 4), ["drop frame_other_host"]);
    assert_eq!(changed(&|frame| frame[12] = 0x81), ["drop frame_vlan"]);
    assert_eq!(changed(&|frame| frame[12] = 0x88), ["drop frame_ethertype"]);
    assert_eq!(changed(&|frame| frame[12..14].copy_from_slice(&[0x86, 0xdd])), ["drop not_ip"]);
    assert_eq!(changed(&|frame| frame[12..14].copy_from_slice(&[8, 6])), ["drop arp_invalid"]);
    let mut bench = Bench::new(Version::V6, "");
    let mut frame = bench.question(mac("client"), "client", "gateway");
    frame[HEADER + 7] = 254;
    bench.stack.ingress(bench.link("in"), frame, bench.now);
    assert_eq!(bench.outcome(), ["drop ndp_invalid"]);
}

#[test]
fn the_last_byte_of_a_padded_datagram_is_the_datagrams() {
    let mut bench = Bench::new(Version::V4, "");
    bench.states(&["in: udp client:1 > server:9 len=1", "out: neighbour answers public"]);
    let mut frame = bench.frame("in", "udp client:1 > server:9 len=1");
    frame.resize(60, 0xee);
    bench.stack.ingress(bench.link("in"), frame, bench.now);
    assert_eq!(bench.stack.egress().unwrap().datagram.len(), HEADER + 29);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn no_frame_can_make_the_stack_panic_or_spoil_its_image(
        steps in prop::collection::vec((0_usize..8, any::<u8>(), any::<usize>(), 0_u64..3000), 1..60),
    ) {
        for version in [Version::V4, Version::V6] {
            let mut bench = Bench::new(version, r#"[{"chain":"srcnat","match":{"oif":"out"},"action":"masquerade"}]"#);
            let good = [
                ("in", "client asks gateway"), ("in", "client answers gateway"), ("out", "neighbour answers public"),
                ("in", "udp client:1 > server:9 len=4"), ("in", "udp client:1 > other:9 len=4"), ("in", "other announces"),
                ("out", "udp server:9 > public:1 len=4"), ("in", "ping client > gateway id=1"),
            ];
            for (which, value, place, wait) in &steps {
                let (link, words) = good[*which];
                let mut frame = bench.frame(link, words);
                let at = place % (frame.len() * 2);
                if let Some(byte) = frame.get_mut(at) {
                    *byte = *value;
                }
                bench.stack.ingress(bench.link(link), frame, bench.now);
                bench.play(&format!("+{wait}ms"));
                while bench.stack.next_event().is_some() || bench.stack.egress().is_some() {}
            }
            bench.restored(2);
        }
    }
}
