//! Packets of established flows cost no allocation: their memory was there before.

#![expect(unsafe_code, reason = "an allocator that counts is an unsafe trait")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use hibernet_netstack::{Ingress, Offload, Stack};
use hibernet_snapshot::Instant;
use hibernet_tests::notation::build;
use hibernet_tests::traffic::{Gateway, START};

thread_local! {
    /// Allocations of this thread.
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: all is the system's, unchanged; the count is a plain number of the thread's own, which allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promises are the system's conditions.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the block is the system's.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count() -> usize {
    COUNT.with(Cell::get)
}

/// A connection from `in` to `out`, masqueraded, that is established; and a segment of it each way, as it arrives.
fn established(stack: &mut Stack) -> [(&'static str, Vec<u8>); 2] {
    let (client, server, public) = ("10.0.0.2:4000", "198.51.100.10:80", "203.0.113.1:4000");
    let segment = |text: String| build(&text, None).unwrap();
    for (link, text) in [
        ("in", format!("tcp {client} > {server} S seq=0 win=60000")),
        ("out", format!("tcp {server} > {public} SA seq=0 ack=1 win=60000")),
        ("in", format!("tcp {client} > {server} A seq=1 ack=1 win=60000")),
    ] {
        let link = stack.link(link).unwrap();
        stack.ingress(link, segment(text), START);
    }
    let sent: Vec<_> = std::iter::from_fn(|| stack.egress()).collect();
    assert_eq!(sent.len(), 3, "the handshake passes");
    while stack.next_event().is_some() {}
    [
        ("in", segment(format!("tcp {client} > {server} A seq=1 ack=1 win=60000"))),
        ("out", segment(format!("tcp {server} > {public} A seq=1 ack=1 win=60000"))),
    ]
}

#[test]
fn a_packet_of_an_established_flow_is_tracked_translated_and_forwarded_without_an_allocation() {
    let mut stack = Gateway::with_room_for(100).open(1);
    let segments = established(&mut stack);
    // Queues have grown to what they need, and what chains say is remembered, after the first round.
    for round in 0..3 {
        for (link, bytes) in &segments {
            let link = stack.link(link).unwrap();
            let burst: Vec<_> = (0..40).map(|_| Ingress { frame: bytes.clone(), offload: Offload::NONE }).collect();
            let now: Instant = START;
            let before = count();
            stack.ingress_burst(link, burst, now);
            let during = count() - before;
            let mut sent = 0;
            while stack.egress().is_some() {
                sent += 1;
            }
            assert_eq!((sent, stack.next_event()), (40, None));
            assert!(round == 0 || during == 0, "round {round}: {during} allocations in a burst of 40");
        }
    }
}
