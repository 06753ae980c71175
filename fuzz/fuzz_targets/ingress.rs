//! Arbitrary frames never panic, and leave a stack whose save comes back as it was.
#![no_main]

use hibernet_fuzz::{GENERATION, RULES, feed, restored, with_sockets};
use hibernet_netstack::Ruleset;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let rules = Ruleset::from_json(RULES).expect("the rules are sound");
    let mut stack = with_sockets(rules).expect("the configuration is sound");
    let now = feed(&mut stack, bytes);
    let image = stack.save(GENERATION, now).expect("a stack can be saved");
    let (copy, lost) = restored(&image, 2, now).expect("what was saved can be restored");
    if lost == 0 {
        assert_eq!(copy.save(GENERATION, now).as_deref(), Ok(image.as_slice()), "save, restore, save is the identity");
    }
    assert!(stack.canary_scan(&image).hits.is_empty(), "no key is in an image");
});
