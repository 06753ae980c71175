//! Two stacks on one link, and what goes between them.

mod cookies;
mod identity;
mod rings;
mod rules;
mod simulation;

use core::net::IpAddr;

use hibernet_snapshot::image::Limits;
use hibernet_snapshot::{Entropy, GenerationId, Instant};

use crate::{Decoded, LinkConfig, LinkId, RestorePolicy, RestoreReport, Ruleset, Stack, StackConfig, Supplied};

const GENERATION: GenerationId = GenerationId([9; 16]);

/// A stack with one link and these addresses.
fn host(addrs: [&str; 2], rules: Ruleset, seed: u64) -> Stack {
    let mut conntrack = hibernet_conntrack::Config { capacity: 4096, ..hibernet_conntrack::Config::default() };
    conntrack.sysctls.set("nf_conntrack_max", "4096").unwrap();
    let addrs = addrs.iter().map(|addr| addr.parse().unwrap()).collect();
    let config = StackConfig {
        links: vec![LinkConfig { name: "net".into(), mtu: 1500, addrs, medium: crate::Medium::Ip }],
        rules,
        conntrack,
        ..StackConfig::default()
    };
    Stack::new(config, Entropy::from_test_seed(seed), Instant::ZERO).unwrap()
}

fn near() -> Stack {
    host(["10.0.0.1/24", "fd00::1/64"], Ruleset::open(), 1)
}

fn far() -> Stack {
    host(["10.0.0.2/24", "fd00::2/64"], Ruleset::open(), 2)
}

fn far_addr(v6: bool) -> IpAddr {
    if v6 { "fd00::2" } else { "10.0.0.2" }.parse().unwrap()
}

fn link(stack: &Stack) -> LinkId {
    stack.link("net").unwrap()
}

/// The stack saved and restored under other keys; the heir's own save is the same, byte for byte.
fn reborn(stack: &Stack, seed: u64, now: Instant) -> (Stack, RestoreReport) {
    let image = stack.save(GENERATION, now).unwrap();
    assert_eq!(stack.canary_scan(&image).hits, []);
    let mut entropy = Entropy::from_test_seed(seed);
    let validated = Decoded::open(&image, &Limits::default()).unwrap().validate(&mut entropy, now).unwrap();
    let (heir, report) = validated.rehash(entropy, RestorePolicy::default()).unwrap().open(Supplied::default());
    assert_eq!(report.streams_reset, 0, "{:?}", report.streams);
    assert!(heir.save(GENERATION, now).unwrap() == image, "save, restore, save is the identity");
    (heir, report)
}
