//! Plain packets of a flow.

use super::*;

#[test]
fn a_masqueraded_tcp_segment_gets_the_public_address() {
    check(
        "4500002c424240004006c44a0a000002c633640a9c400050000003e8000000006002ffffc36e0000020405b4",
        Manip::Source,
        tuple(PUBLIC, 40000, SERVER, 80, proto::TCP),
        "4500002c424240003f06934acb007101c633640a9c400050000003e8000000006002ffff916e0000020405b4",
    );
}

#[test]
fn its_answer_gets_the_client_address_back() {
    check(
        "4500002c424240004006924ac633640acb00710100509c4000001388000003e96012ffff7dd50000020405b4",
        Manip::Destination,
        tuple(SERVER, 80, CLIENT, 40000, proto::TCP),
        "4500002c424240003f06c54ac633640a0a00000200509c4000001388000003e96012ffffafd50000020405b4",
    );
}

#[test]
fn udp_gets_a_new_source_port() {
    check(
        "4500001f424200004011044d0a000002c633640a1b581b59000bd084616263",
        Manip::Source,
        tuple(PUBLIC, 5000, SERVER, 7001, proto::UDP),
        "4500001f424200003f11d34ccb007101c633640a13881b59000ba654616263",
    );
}

#[test]
fn udp_without_a_checksum_stays_without() {
    check(
        "45000020424200004011044c0a000002c633640a1b581b59000c000000010203",
        Manip::Source,
        tuple(PUBLIC, 5054, SERVER, 7001, proto::UDP),
        "45000020424200003f11d34bcb007101c633640a13be1b59000c000000010203",
    );
}

#[test]
fn a_wrong_udp_checksum_stays_as_wrong() {
    check(
        "45000020424200004011044c0a000002c633640a1b5a1b59000cc78a00010203",
        Manip::Source,
        tuple(PUBLIC, 5052, SERVER, 7001, proto::UDP),
        "45000020424200003f11d34bcb007101c633640a13bc1b59000c9d2800010203",
    );
}

#[test]
fn a_wrong_tcp_checksum_stays_as_wrong() {
    check(
        "45000028424240004006c44e0a000002c633640a9c400050000003e8000000005002ffff8e7f0000",
        Manip::Source,
        tuple(PUBLIC, 40000, SERVER, 80, proto::TCP),
        "45000028424240003f06934ecb007101c633640a9c400050000003e8000000005002ffff5c7f0000",
    );
}

#[test]
fn ipv4_options_are_stepped_over() {
    check(
        "4600002c4242000040066f460a000002c633640a940400001b58005000000001000000005002ffff5ffa0000",
        Manip::Source,
        tuple(PUBLIC, 5001, SERVER, 80, proto::TCP),
        "4600002c424200003f063e46cb007101c633640a940400001389005000000001000000005002ffff35c90000",
    );
}

#[test]
fn sctp_gets_a_new_port_and_a_new_crc() {
    check(
        "4500003442420000408403c50a000002c633640a1b581f9000000000ca8414c9010000140000000100010000 \
         0001000100000001",
        Manip::Source,
        tuple(PUBLIC, 5002, SERVER, 8080, proto::SCTP),
        "45000034424200003f84d2c4cb007101c633640a138a1f90000000007cab4d8f010000140000000100010000 \
         0001000100000001",
    );
}

#[test]
fn a_wrong_sctp_crc_is_made_right() {
    check(
        "4500003442420000408403c50a000002c633640a13881f9000000000f9a5b335010000140000000100010000 \
         0001000100000001",
        Manip::Source,
        tuple(PUBLIC, 5000, SERVER, 8080, proto::SCTP),
        "45000034424200003f84d2c4cb007101c633640a13881f9000000000666a037e010000140000000100010000 \
         0001000100000001",
    );
}

#[test]
fn destination_nat_changes_address_and_port() {
    check(
        "45000028424200004006d24ec633640acb007101270f1f9000000001000000005002ffff03030000",
        Manip::Destination,
        tuple(SERVER, 9999, CLIENT, 80, proto::TCP),
        "45000028424200003f06054fc633640a0a000002270f005000000001000000005002ffff54430000",
    );
}

#[test]
fn the_answer_of_destination_nat_gets_the_public_source_back() {
    check(
        "45000028424200004006044f0a000002c633640a0050270f00000001000000025012ffff54310000",
        Manip::Source,
        tuple(PUBLIC, 8080, SERVER, 9999, proto::TCP),
        "45000028424200003f06d34ecb007101c633640a1f90270f00000001000000025012ffff02f10000",
    );
}

#[test]
fn an_echo_gets_another_identifier() {
    check(
        "45000020424200004001045b0a000003c633640a0800332f0009000161626364",
        Manip::Source,
        tuple(PUBLIC, 20672, SERVER, 0x0800, proto::ICMP),
        "45000020424200003f01d35bcb007101c633640a0800e27750c0000161626364",
    );
}

#[test]
fn gre_changes_its_addresses_alone() {
    check(
        "4500001c42420000402f04320a000002c633640a0000080061626364",
        Manip::Source,
        tuple(PUBLIC, 0, SERVER, 0, proto::GRE),
        "4500001c424200003f2fd331cb007101c633640a0000080061626364",
    );
}

#[test]
fn gre_of_less_than_eight_bytes_is_refused() {
    let mut datagram = bytes("4500001a42420000402f04340a000002c633640a000008006162");
    let parsed = headers::parse(&datagram).unwrap();
    let target = tuple(PUBLIC, 0, SERVER, 0, proto::GRE);
    let refused = rewrite(&mut datagram, &parsed, Manip::Source, &target);
    assert_eq!(refused, Err(Malformed::Truncated { needed: 28, found: 26 }));
}

#[test]
fn an_unknown_protocol_changes_its_addresses_alone() {
    check(
        "4500001842420000406304020a000002c633640a61626364",
        Manip::Source,
        tuple(PUBLIC, 0, SERVER, 0, 99),
        "45000018424200003f63d301cb007101c633640a61626364",
    );
}

#[test]
fn an_ipv6_echo_covers_the_addresses_in_its_checksum() {
    check(
        "6000000000103a40fd00001000000000000000000000000220010db8000100000000000000000010800048be \
         000900010001020304050607",
        Manip::Source,
        tuple(PUBLIC6, 9, SERVER6, 0x8000, proto::ICMPV6),
        "6000000000103a3f20010db800ff0000000000000000000120010db800010000000000000000001080001718 \
         000900010001020304050607",
    );
}

#[test]
fn an_ipv6_echo_gets_another_identifier() {
    check(
        "60000000000c3a40fd00001000000000000000000000000320010db80001000000000000000000108000900a \
         0009000161626364",
        Manip::Source,
        tuple(PUBLIC6, 42469, SERVER6, 0x8000, proto::ICMPV6),
        "60000000000c3a3f20010db800ff0000000000000000000120010db80001000000000000000000108000b888 \
         a5e5000161626364",
    );
}

#[test]
fn node_information_has_no_identifier_to_write() {
    check(
        "6000000000143a40fd00001000000000000000000000000320010db80001000000000000000000108b00e365 \
         000000016162636465666768696a6b6c",
        Manip::Source,
        tuple(PUBLIC6, 1234, SERVER6, 0x8b00, proto::ICMPV6),
        "6000000000143a3f20010db800ff0000000000000000000120010db80001000000000000000000108b00b1c0 \
         000000016162636465666768696a6b6c",
    );
}

#[test]
fn ipv6_extension_headers_are_stepped_over() {
    check(
        "6000000000140040fd00001000000000000000000000000220010db800010000000000000000001011000104 \
         000000001b5a1b59000cd97f61626364",
        Manip::Source,
        tuple(PUBLIC6, 7002, SERVER6, 7001, proto::UDP),
        "600000000014003f20010db800ff0000000000000000000120010db800010000000000000000001011000104 \
         000000001b5a1b59000ca7d961626364",
    );
}

#[test]
fn an_ipv6_authentication_header_is_stepped_over() {
    check(
        "6000000000183340fd00001000000000000000000000000220010db800010000000000000000001011010000 \
         00000001000000011b5b1b59000cd97e61626364",
        Manip::Source,
        tuple(PUBLIC6, 7003, SERVER6, 7001, proto::UDP),
        "600000000018333f20010db800ff0000000000000000000120010db800010000000000000000001011010000 \
         00000001000000011b5b1b59000ca7d861626364",
    );
}

#[test]
fn udp_without_a_checksum_stays_without_in_ipv6() {
    check(
        "60000000000c1140fd00001000000000000000000000000220010db80001000000000000000000101b581b59 \
         000c000061626364",
        Manip::Source,
        tuple(PUBLIC6, 7000, SERVER6, 7001, proto::UDP),
        "60000000000c113f20010db800ff0000000000000000000120010db80001000000000000000000101b581b59 \
         000c000061626364",
    );
}

#[test]
fn ipv6_destination_nat_changes_address_and_port() {
    check(
        "60000000000b114020010db800010000000000000000001020010db800ff00000000000000000001270f1f90 \
         000b9853616263",
        Manip::Destination,
        tuple(SERVER6, 9999, CLIENT6, 80, proto::UDP),
        "60000000000b113f20010db8000100000000000000000010fd000010000000000000000000000002270f0050 \
         000be939616263",
    );
}
