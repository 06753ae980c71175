//! The hex is what Linux 6.18 took in and gave out; the answers differ from the questions in the TTL as well.

use core::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::headers;

mod errors;
mod packets;
mod properties;

const CLIENT: &str = "10.0.0.2";
const SERVER: &str = "198.51.100.10";
const PUBLIC: &str = "203.0.113.1";
const CLIENT6: &str = "fd00:10::2";
const SERVER6: &str = "2001:db8:1::10";
const PUBLIC6: &str = "2001:db8:ff::1";

fn tuple(src: &str, sport: u16, dst: &str, dport: u16, proto: u8) -> Tuple {
    Tuple { src: src.parse().unwrap(), dst: dst.parse().unwrap(), proto, sport, dport }
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.chars().filter_map(|c| c.to_digit(16)).map(|d| d as u8).collect();
    digits.as_chunks().0.iter().map(|[high, low]| high << 4 | low).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What forwarding does besides: one hop less.
fn forwarded(mut datagram: Vec<u8>) -> Vec<u8> {
    if datagram[0] >> 4 == 6 {
        datagram[7] -= 1;
        return datagram;
    }
    let mut change = Difference::NONE;
    let (ttl, proto) = (datagram[8] - 1, datagram[9]);
    difference::replace(&mut datagram, 8, &[ttl, proto], &mut change).unwrap();
    let mut all = Difference::NONE;
    difference::update(&mut datagram, IPV4_CHECKSUM, change, &mut all).unwrap();
    datagram
}

fn check(before: &str, manip: Manip, target: Tuple, after: &str) {
    let mut datagram = bytes(before);
    let parsed = headers::parse(&datagram).unwrap();
    rewrite(&mut datagram, &parsed, manip, &target).unwrap();
    assert_eq!(hex(&forwarded(datagram)), hex(&bytes(after)));
}

fn check_error(before: &str, manip: Manip, target: Tuple, after: &str) {
    let mut datagram = bytes(before);
    let parsed = headers::parse(&datagram).unwrap();
    rewrite_quoted(&mut datagram, &parsed, manip, &target).unwrap();
    assert_eq!(hex(&forwarded(datagram)), hex(&bytes(after)));
}

fn refusal(before: &str, manip: Manip, target: Tuple) -> Malformed {
    let mut datagram = bytes(before);
    let parsed = headers::parse(&datagram).unwrap();
    rewrite_quoted(&mut datagram, &parsed, manip, &target).unwrap_err()
}
