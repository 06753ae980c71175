//! The keys of a stack that was made from a test seed: drawn once more, in the stack's order.
//!
//! No stack gives its keys away. That these are the ones is for the canary scan to say: it finds them when they are planted.

use std::hash::Hasher;
use std::net::IpAddr;

use hibernet_conntrack::Tuple;
use hibernet_snapshot::Entropy;
use siphasher::sip::SipHasher13;

/// What [`hibernet_netstack::Stack::new`] draws.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Keys {
    /// Of the table's hash.
    pub table: [u8; 16],
    /// Of the generator of later keys of the table's hash: its seed.
    pub generator: [u8; 32],
    /// Of the choice of NAT ports.
    pub ports: [u8; 16],
    /// Of the host's own sockets.
    pub local: [u8; 16],
    /// Of TCP's initial numbers, timestamps, cookies, and of the places of connections.
    pub tcp: [u8; 16],
    /// Of IP identifications.
    pub ip_ids: [u8; 16],
    /// Of how long confirmations of neighbours count.
    pub neighbour_times: [u8; 16],
}

impl Keys {
    /// The keys that a stack draws from [`Entropy::from_test_seed`].
    pub fn drawn_from(seed: u64) -> Self {
        let mut entropy = Entropy::from_test_seed(seed);
        let table = *entropy.secret().expose();
        let generator = *entropy.secret().expose();
        let mut next = || *entropy.secret().expose();
        let (ports, local, tcp) = (next(), next(), next());
        Self { table, generator, ports, local, tcp, ip_ids: next(), neighbour_times: next() }
    }

    /// Every key with the name that the canary scan has for it.
    pub const fn named(&self) -> [(&'static str, &[u8]); 7] {
        let Self { table, generator, ports, local, tcp, ip_ids, neighbour_times } = self;
        [
            ("table hash", table),
            ("later table hashes", generator),
            ("NAT ports", ports),
            ("local sockets", local),
            ("TCP numbers", tcp),
            ("IP ids", ip_ids),
            ("neighbour times", neighbour_times),
        ]
    }
}

/// The hash under which a tuple is filed: SipHash-1-3 of the sorted ends.
pub fn tuple_hash(key: &[u8; 16], tuple: &Tuple) -> u64 {
    let Tuple { src, dst, proto, sport, dport } = *tuple;
    let dport = if tuple.is_icmp() { sport } else { dport };
    let (first, second) =
        if (src, sport) <= (dst, dport) { ((src, sport), (dst, dport)) } else { ((dst, dport), (src, sport)) };
    let ((a, first), (b, second)) = (first, second);
    let ports = [first.to_le_bytes(), second.to_le_bytes()];
    let mut message = Vec::new();
    match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            for (addr, port) in [a, b].into_iter().zip(ports) {
                message.extend(addr.octets());
                message.extend(port);
            }
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            message.extend([a.octets(), b.octets()].concat());
            message.extend(ports.concat());
        }
        _ => panic!("a tuple of two families: {tuple:?}"),
    }
    message.push(proto);
    let mut hasher = SipHasher13::new_with_key(key);
    hasher.write(&message);
    hasher.finish()
}
