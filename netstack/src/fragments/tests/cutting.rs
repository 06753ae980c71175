//! Datagrams in fragments: the headers that went in and came out, as hex.

use super::*;

/// Takes the fragments with these headers, whose payload is `head` and then bytes that count up, and forwards what they make
/// to a link with that MTU. Offset and length of each payload are in its header.
fn check(head: &str, len: usize, mtu: usize, came: &[&str], left: &[&str]) {
    let mut payload = unhex(head);
    payload.extend((0..=255).cycle().take(len - payload.len()));
    let with_payload = |header: &&str| {
        let header = unhex(header);
        let word = |at: usize| usize::from(u16::from_be_bytes([header[at], header[at + 1]]));
        let fragmented = header[0] >> 4 == 4 || header.len() > 40;
        let (offset, total) = match header[0] >> 4 {
            4 => ((word(6) & 0x1fff) * 8, word(2)),
            _ if fragmented => (word(header.len() - 6) & 0xfff8, word(4) + 40),
            _ => (0, word(4) + 40),
        };
        let piece = &payload[offset..offset + total - header.len()];
        [header.as_slice(), piece].concat()
    };
    let came: Vec<_> = came.iter().map(with_payload).collect();
    let left: Vec<_> = left.iter().map(with_payload).collect();
    let (mut datagram, cuts) = match parse(&came[0]).unwrap().fragment {
        Some(_) => reassembled(&came),
        None => (came[0].clone(), None),
    };
    let ttl = if datagram[0] >> 4 == 4 { 8 } else { 7 };
    datagram[ttl] -= 1;
    fill_header_checksum(&mut datagram);
    let id = || parse(&left[0]).unwrap().fragment.unwrap().id;
    let pieces = match refragment(&datagram, &parse(&datagram).unwrap(), cuts.as_ref(), mtu, id) {
        Refragmented::Whole => vec![datagram],
        Refragmented::Pieces(pieces) => pieces,
        Refragmented::TooBig => panic!("too big"),
    };
    assert_eq!(pieces, left);
}

#[test]
fn fragments_of_different_sizes_leave_as_they_came() {
    check(
        "1b591b590710390e",
        1808,
        1500,
        &[
            "450001a400012000401125090a000002c633640a",
            "4500033400012032401123470a000002c633640a",
            "4500027400010096401143a30a000002c633640a",
        ],
        &[
            "450001a4000120003f1126090a000002c633640a",
            "45000334000120323f1124470a000002c633640a",
            "45000274000100963f1144a30a000002c633640a",
        ],
    );
}

#[test]
fn fragments_that_leave_as_they_came_have_dont_fragment_cleared() {
    check(
        "1b5b1b590710390c",
        1808,
        1500,
        &[
            "450001a4000360004011e5060a000002c633640a",
            "45000334000360324011e3440a000002c633640a",
            "4500027400034096401103a10a000002c633640a",
        ],
        &[
            "450001a4000320003f1126070a000002c633640a",
            "45000334000320323f1124450a000002c633640a",
            "45000274000300963f1144a10a000002c633640a",
        ],
    );
}

#[test]
fn options_that_are_not_to_be_copied_are_blanked_behind_the_first() {
    check(
        "1b5e1b5907103909",
        1808,
        1500,
        &[
            "470001ac0006200040116ff10a000002c633640a940400001e040102",
            "4700033c0006203240116e2f0a000002c633640a940400001e040102",
            "4700027c0006009640118e8b0a000002c633640a940400001e040102",
        ],
        &[
            "470001ac000620003f1170f10a000002c633640a940400001e040102",
            "4700033c000620323f118c330a000002c633640a9404000001010101",
            "4700027c000600963f11ac8f0a000002c633640a9404000001010101",
        ],
    );
}

#[test]
fn a_longer_first_header_makes_all_pieces_as_long_as_the_largest_was() {
    check(
        "1b5f1b5907103908",
        1808,
        1500,
        &[
            "480001b00007200040116ceb0a000002c633640a940400001e04010201010100",
            "460003380007203240118e380a000002c633640a94040000",
            "46000278000700964011ae940a000002c633640a94040000",
        ],
        &[
            "48000338000720003f116c630a000002c633640a940400001e04010201010100",
            "48000338000720633f1189040a000002c633640a940400000101010101010100",
            "48000100000700c63f11aad90a000002c633640a940400000101010101010100",
        ],
    );
}

#[test]
fn pieces_of_another_size_keep_dont_fragment() {
    check(
        "1b661b5907103901",
        1808,
        1500,
        &[
            "470001ac000e600040114cee0a000002c633640a9404000001010100",
            "45000334000e60324011e3390a000002c633640a",
            "45000274000e4096401103960a000002c633640a",
        ],
        &[
            "47000334000e60003f114c660a000002c633640a9404000001010100",
            "47000334000e60633f114c030a000002c633640a9404000001010100",
            "470000fc000e40c63f116dd80a000002c633640a9404000001010100",
        ],
    );
}

#[test]
fn a_narrower_link_makes_all_pieces_as_long_as_it_takes() {
    check(
        "1b681b590bc0657f",
        3008,
        1280,
        &[
            "450005dc00102000401120c20a000002c633640a",
            "450005dc001020b9401120090a000002c633640a",
            "4500004400100172401144e80a000002c633640a",
        ],
        &[
            "450004fc001020003f1122a20a000002c633640a",
            "450004fc0010209d3f1122050a000002c633640a",
            "450002040010013a3f1144600a000002c633640a",
        ],
    );
}

#[test]
fn one_fragment_that_does_not_fit_changes_all() {
    check(
        "1b6a1b59071038fd",
        1808,
        1280,
        &["450001a400122000401124f80a000002c633640a", "4500059400120032401140d60a000002c633640a"],
        &["450004fc001220003f1122a00a000002c633640a", "4500023c0012009d3f1144c30a000002c633640a"],
    );
}

#[test]
fn dont_fragment_of_a_smaller_fragment_is_no_hindrance() {
    check(
        "1b6b1b59071038fc",
        1808,
        1280,
        &[
            "450001a4001360004011e4f60a000002c633640a",
            "4500052800132032401121410a000002c633640a",
            "45000080001300d4401145470a000002c633640a",
        ],
        &["450004fc001320003f11229f0a000002c633640a", "450002380013009d3f1144c60a000002c633640a"],
    );
}

#[test]
fn a_datagram_that_came_whole_is_cut_for_the_link() {
    check(
        "1b6c1b590578b46e",
        1400,
        1280,
        &["4500058c001400004011410e0a000002c633640a"],
        &["450004fc001420003f11229e0a000002c633640a", "450000a40014009d3f1146590a000002c633640a"],
    );
}

#[test]
fn with_options_too() {
    check(
        "1b6d1b590578b46d",
        1400,
        1280,
        &["470005940015000040118bfa0a000002c633640a940400001e040102"],
        &[
            "470004fc001520003f116d920a000002c633640a940400001e040102",
            "470000b40015009c3f11ae420a000002c633640a9404000001010101",
        ],
    );
}

#[test]
fn ipv6_fragments_of_different_sizes_leave_as_they_came() {
    check(
        "1b591b5907104271",
        1808,
        1500,
        &[
            concat!(
                "6000000001982c40fd00001000000000000000000000000220010db800010000000000000000001011000001",
                "00000001"
            ),
            concat!(
                "6000000003282c40fd00001000000000000000000000000220010db800010000000000000000001011000191",
                "00000001"
            ),
            concat!(
                "6000000002682c40fd00001000000000000000000000000220010db8000100000000000000000010110004b0",
                "00000001"
            ),
        ],
        &[
            concat!(
                "6000000001982c3ffd00001000000000000000000000000220010db800010000000000000000001011000001",
                "d9448804"
            ),
            concat!(
                "6000000003282c3ffd00001000000000000000000000000220010db800010000000000000000001011000191",
                "d9448804"
            ),
            concat!(
                "6000000002682c3ffd00001000000000000000000000000220010db8000100000000000000000010110004b0",
                "d9448804"
            ),
        ],
    );
}

#[test]
fn behind_hop_by_hop_options() {
    check(
        "1b641b5907104266",
        1808,
        1500,
        &[
            concat!(
                "6000000001a00040fd00001000000000000000000000000220010db80001000000000000000000102c000104",
                "00000000110000010000000c"
            ),
            concat!(
                "6000000005900040fd00001000000000000000000000000220010db80001000000000000000000102c000104",
                "00000000110001900000000c"
            ),
        ],
        &[
            concat!(
                "6000000001a0003ffd00001000000000000000000000000220010db80001000000000000000000102c000104",
                "0000000011000001213e45ae"
            ),
            concat!(
                "600000000590003ffd00001000000000000000000000000220010db80001000000000000000000102c000104",
                "0000000011000190213e45ae"
            ),
        ],
    );
}

#[test]
fn behind_destination_options_without_a_routing_header() {
    check(
        "1b651b5907104265",
        1808,
        1500,
        &[
            concat!(
                "6000000001a03c40fd00001000000000000000000000000220010db80001000000000000000000102c000104",
                "00000000110000010000000d"
            ),
            concat!(
                "6000000005903c40fd00001000000000000000000000000220010db80001000000000000000000102c000104",
                "00000000110001900000000d"
            ),
        ],
        &[
            concat!(
                "6000000001a03c3ffd00001000000000000000000000000220010db80001000000000000000000102c000104",
                "000000001100000160a8b21d"
            ),
            concat!(
                "6000000005903c3ffd00001000000000000000000000000220010db80001000000000000000000102c000104",
                "000000001100019060a8b21d"
            ),
        ],
    );
}

#[test]
fn a_longer_first_header_makes_all_ipv6_pieces_as_long_as_the_largest_was() {
    check(
        "1b681b590bc06ee2",
        3008,
        1500,
        &[
            concat!(
                "6000000001a00040fd00001000000000000000000000000220010db80001000000000000000000102c000104",
                "000000001100000100000010"
            ),
            concat!(
                "6000000004d82c40fd00001000000000000000000000000220010db800010000000000000000001011000191",
                "00000010"
            ),
            concat!(
                "6000000005682c40fd00001000000000000000000000000220010db800010000000000000000001011000660",
                "00000010"
            ),
        ],
        &[
            concat!(
                "600000000568003ffd00001000000000000000000000000220010db80001000000000000000000102c000104",
                "0000000011000001ba602417"
            ),
            concat!(
                "600000000568003ffd00001000000000000000000000000220010db80001000000000000000000102c000104",
                "0000000011000559ba602417"
            ),
            concat!(
                "600000000120003ffd00001000000000000000000000000220010db80001000000000000000000102c000104",
                "0000000011000ab0ba602417"
            ),
        ],
    );
}

#[test]
fn unless_the_largest_was_smaller_than_any_link_takes() {
    check(
        "1b671b5907104263",
        1808,
        1500,
        &[
            concat!(
                "6000000001a00040fd00001000000000000000000000000220010db80001000000000000000000102c000104",
                "00000000110000010000000f"
            ),
            concat!(
                "6000000003282c40fd00001000000000000000000000000220010db800010000000000000000001011000191",
                "0000000f"
            ),
            concat!(
                "6000000002682c40fd00001000000000000000000000000220010db8000100000000000000000010110004b0",
                "0000000f"
            ),
        ],
        &[
            concat!(
                "6000000001a0003ffd00001000000000000000000000000220010db80001000000000000000000102c000104",
                "000000001100000177fdab7a"
            ),
            concat!(
                "600000000330003ffd00001000000000000000000000000220010db80001000000000000000000102c000104",
                "000000001100019177fdab7a"
            ),
            concat!(
                "600000000270003ffd00001000000000000000000000000220010db80001000000000000000000102c000104",
                "00000000110004b077fdab7a"
            ),
        ],
    );
}

#[test]
fn a_datagram_no_longer_than_its_largest_fragment_leaves_whole_in_ipv6() {
    check(
        "8000b8ac00010001",
        108,
        1500,
        &[
            concat!(
                "6000000000102c40fd00001000000000000000000000000220010db80001000000000000000000103a000001",
                "00000013"
            ),
            concat!(
                "60000000006c2c40fd00001000000000000000000000000220010db80001000000000000000000103a000008",
                "00000013"
            ),
        ],
        &["60000000006c3a3ffd00001000000000000000000000000220010db8000100000000000000000010"],
    );
}

/// The pieces of an IPv6 datagram whose fragment header moves: headers and payloads.
fn check_moved(came: &[Vec<u8>], left: &[&str], payload: &[u8]) {
    let (mut datagram, cuts) = reassembled(came);
    datagram[7] -= 1;
    let Refragmented::Pieces(pieces) =
        refragment(&datagram, &parse(&datagram).unwrap(), cuts.as_ref(), 1500, || 0x1234_5678)
    else {
        panic!("not cut");
    };
    let at = unhex(left[0]).len();
    assert_eq!(pieces.iter().map(|piece| crate::test_packets::hex(&piece[..at])).collect::<Vec<_>>(), left);
    let joined: Vec<u8> = pieces.iter().flat_map(|piece| &piece[at..]).copied().collect();
    assert_eq!(joined, payload);
}

#[test]
fn the_fragment_header_goes_behind_destination_options_that_were_in_the_first_fragment() {
    let whole = datagram(Version::V6, 1808);
    let options = [17, 0, 1, 4, 0, 0, 0, 0];
    let mut with_options = [&whole[..40], &options, &whole[40..]].concat();
    with_options[4..6].copy_from_slice(&1816_u16.to_be_bytes());
    with_options[6] = 60;
    let piece = |offset: usize, len: usize, more: bool| {
        let [high, low] = (offset as u16 | u16::from(more)).to_be_bytes();
        let extension = [60, 0, high, low, 0, 0, 0, 14];
        let mut bytes = [&with_options[..40], &extension, &with_options[40 + offset..40 + offset + len]].concat();
        bytes[4..6].copy_from_slice(&(len as u16 + 8).to_be_bytes());
        bytes[6] = 44;
        bytes
    };
    let ends = "fd00001000000000000000000000000220010db8000100000000000000000010";
    let left = [
        format!("6000000005903c3f{ends}2c000104000000001100000112345678"),
        format!("6000000001a03c3f{ends}2c000104000000001100058012345678"),
    ];
    check_moved(&[piece(0, 400, true), piece(400, 1416, false)], &[&left[0], &left[1]], &whole[40..]);
}

#[test]
fn the_fragment_header_goes_in_front_of_destination_options_behind_a_routing_header() {
    let whole = datagram(Version::V6, 1808);
    let extensions = [60, 0, 4, 0, 0, 0, 0, 0, 44, 0, 1, 4, 0, 0, 0, 0];
    let piece = |offset: usize, len: usize, more: bool| {
        let [high, low] = (offset as u16 | u16::from(more)).to_be_bytes();
        let extension = [17, 0, high, low, 0, 0, 0, 18];
        let mut bytes = [&whole[..40], &extensions, &extension, &whole[40 + offset..40 + offset + len]].concat();
        bytes[4..6].copy_from_slice(&(len as u16 + 24).to_be_bytes());
        bytes[6] = 43;
        bytes
    };
    let ends = "fd00001000000000000000000000000220010db8000100000000000000000010";
    let left = [
        format!("6000000001a82b3f{ends}2c000400000000003c00000112345678"),
        format!("6000000005902b3f{ends}2c000400000000003c00019812345678"),
    ];
    let payload = [&[17, 0, 1, 4, 0, 0, 0, 0], &whole[40..]].concat();
    check_moved(&[piece(0, 400, true), piece(400, 1408, false)], &[&left[0], &left[1]], &payload);
}

#[test]
fn a_transport_header_in_two_fragments_gives_the_sizes_up() {
    for (src, dst) in [("10.0.0.2:1", "198.51.100.10:80"), ("[fd00:10::2]:1", "[2001:db8:1::10]:80")] {
        let whole = tcp(src, dst, "S", 1, 0, &[7; 2980]);
        let header = whole.len() - 3000;
        let lengths = |places: &[(usize, usize)]| {
            let queue = places.iter().map(|&(offset, len)| offset + len + header).collect();
            let largest = 1400 + whole.len() - 3000 + if header == 40 { 8 } else { 0 };
            let cuts = Cuts { largest, dont_fragment: false, ends: queue };
            match refragment(&whole, &parse(&whole).unwrap(), Some(&cuts), 1500, || 0) {
                Refragmented::Pieces(pieces) => {
                    pieces.iter().map(|piece| piece.len() + 1400 - largest).collect::<Vec<_>>()
                }
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(lengths(&[(0, 24), (24, 1400), (1424, 1400), (2824, 176)]), [24, 1400, 1400, 176]);
        assert_eq!(lengths(&[(0, 16), (16, 1400), (1416, 1400), (2816, 184)]), [1400, 1400, 200]);
    }
}

#[test]
fn what_cannot_be_cut_is_too_big() {
    let whole = datagram(Version::V4, 1400);
    let cut = |bytes: &[u8], mtu| refragment(bytes, &parse(bytes).unwrap(), None, mtu, || 0);
    assert_eq!(cut(&whole, 27), Refragmented::TooBig);
    assert!(matches!(cut(&whole, 28), Refragmented::Pieces(pieces) if pieces.len() == 175));
    let whole = datagram(Version::V6, 1400);
    assert_eq!(cut(&whole, 55), Refragmented::TooBig);
    assert!(matches!(cut(&whole, 56), Refragmented::Pieces(pieces) if pieces.len() == 175));
    // A fragment of IPv6 is its sender's.
    assert_eq!(cut(&fragment(&whole, 0, 1392, true), 1280), Refragmented::TooBig);
}

#[test]
fn a_fragment_of_ipv4_is_cut_further() {
    let whole = datagram(Version::V4, 3008);
    let first = fragment(&whole, 800, 1400, true);
    let Refragmented::Pieces(pieces) = refragment(&first, &parse(&first).unwrap(), None, 1000, || 0) else {
        panic!("not cut");
    };
    let rest = fragments(&whole, &[(0, 800), (2200, 808)]);
    assert_eq!(reassembled(&[rest.as_slice(), pieces.as_slice()].concat()).0, whole);
}
