//! The flows of a run, and the order in which they are asked for.

use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hibernet_conntrack::{Tuple, proto};

/// IPv4 or IPv6.
pub(crate) trait Family: Copy + Send + Sync + 'static {
    /// What the JSON object calls it.
    const NAME: &'static str;
    /// A tuple as the peers keep it: addresses, ports, protocol, without a gap.
    type Key: Copy + Eq + Hash + Send + Sync + AsRef<[u8]> + for<'a> TryFrom<&'a [u8]>;
    /// The address that 32 bits stand for, of the clients' or of the servers' network.
    fn address(client: bool, host: u32) -> IpAddr;
    /// A tuple as a key.
    fn key(tuple: &Tuple) -> Self::Key;
}

/// IPv4.
#[derive(Clone, Copy)]
pub(crate) struct V4;

impl Family for V4 {
    const NAME: &'static str = "ipv4";
    type Key = [u8; 13];

    fn address(client: bool, host: u32) -> IpAddr {
        let network: u32 = if client { 10 << 24 } else { 198 << 24 };
        Ipv4Addr::from(network | host & 0xff_ffff).into()
    }

    fn key(tuple: &Tuple) -> [u8; 13] {
        packed(tuple)
    }
}

/// IPv6.
#[derive(Clone, Copy)]
pub(crate) struct V6;

impl Family for V6 {
    const NAME: &'static str = "ipv6";
    type Key = [u8; 37];

    fn address(client: bool, host: u32) -> IpAddr {
        let network: u128 = if client { 0xfd00_0010 << 96 } else { 0x2001_0db8 << 96 };
        Ipv6Addr::from(network | u128::from(host & 0xff_ffff)).into()
    }

    fn key(tuple: &Tuple) -> [u8; 37] {
        packed(tuple)
    }
}

fn packed<const N: usize>(tuple: &Tuple) -> [u8; N] {
    let mut bytes = [0; N];
    let mut at = 0;
    let mut put = |part: &[u8]| {
        bytes[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    };
    for address in [tuple.src, tuple.dst] {
        match address {
            IpAddr::V4(address) => put(&address.octets()),
            IpAddr::V6(address) => put(&address.octets()),
        }
    }
    put(&tuple.sport.to_le_bytes());
    put(&tuple.dport.to_le_bytes());
    put(&[tuple.proto]);
    bytes
}

/// The original tuples of `count` TCP flows from `first` on, all different.
pub(crate) fn tuples<F: Family>(first: usize, count: usize) -> Vec<Tuple> {
    let tuple = |number: usize| {
        let drawn = scatter(number as u64);
        Tuple {
            src: F::address(true, number as u32),
            dst: F::address(false, (drawn >> 32) as u32 & 0xffff),
            proto: proto::TCP,
            sport: 1024 + (drawn as u16) % 60_000,
            dport: 443,
        }
    };
    (first..first + count).map(tuple).collect()
}

/// Gives a list a random order, another one for each seed (Fisher and Yates).
pub(crate) fn shuffle<T>(list: &mut [T], seed: u64) {
    for left in (1..list.len()).rev() {
        let other = scatter(seed << 40 ^ left as u64) % (left as u64 + 1);
        list.swap(left, other as usize);
    }
}

/// Spreads a number over 64 bits (the finaliser of SplitMix64: Steele, Lea and Flood, 2014).
pub(crate) const fn scatter(number: u64) -> u64 {
    let mut word = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}
