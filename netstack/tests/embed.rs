//! The example `embed`, held to what it says.

#[path = "../examples/embed.rs"]
#[expect(dead_code, reason = "the example's main is not run here")]
mod example;

#[test]
fn a_guest_is_moved_and_forked_with_its_network() {
    insta::assert_snapshot!(example::run().unwrap().join("\n"), @r"
    echo: one
    moved: 1 flows kept, 0 reset, 0 dropped
    echo: two
    forked: 0 flows kept, 1 reset, 0 dropped
    the clone's guest: connection reset, 0 datagrams went out
    a new connection of the clone: four
    the first guest's goes on: five
    ");
}
