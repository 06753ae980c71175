//! The example `echo_smoltcp`, held to what it says.

#[path = "../examples/echo_smoltcp.rs"]
#[expect(dead_code, reason = "the example's main is not run here")]
mod example;

#[test]
fn a_smoltcp_echo_server_is_tracked_guarded_and_restored() {
    insta::assert_snapshot!(example::run().unwrap().join("\n"), @r"
    echo: hello
    flows before:
      tcp      6 299 ESTABLISHED src=192.0.2.2 dst=192.0.2.1 sport=49152 dport=7 src=192.0.2.1 dst=192.0.2.2 sport=7 dport=49152 [ASSURED] mark=0 use=1
    saved: rules, counters and flows
    without the image: 0 answered, invalid: true
    restored: 1 kept, 0 reset, 0 dropped
    flows after:
      tcp      6 299 ESTABLISHED src=192.0.2.2 dst=192.0.2.1 sport=49152 dport=7 src=192.0.2.1 dst=192.0.2.2 sport=7 dport=49152 [ASSURED] mark=0 use=1
    echo: again
    dropped: policy 1
    ");
}
