//! What an image holds, what changed between two, and what a stack tells, for people to review.

use std::collections::BTreeMap;
use std::fmt::Write;

use hibernet_conntrack::{ProtocolState, Sysctls};
use hibernet_netstack::{Contents, Decoded, Stack, StackEvent};
use hibernet_snapshot::Entropy;
use hibernet_snapshot::diff::{self, Value};
use hibernet_snapshot::image::{Image, Limits};
use hibernet_tests::traffic::{START, Seen, play_line, restored, sample};
use serde_json::json;

/// An image as a tree of plain values: the container as it is, the sections as the stack has them that it restores to.
fn face(image: &[u8]) -> Value {
    let container = Image::parse(image, &Limits::default()).unwrap();
    let (stack, report) = restored(image, 1, START).unwrap();
    let sections: Vec<_> = container
        .sections()
        .map(|section| format!("{} version {}, required {}", section.id, section.version, section.required))
        .collect();
    let content = json!({
        "format": container.format_version(),
        "reader": container.min_reader(),
        "generation": container.header().generation.to_string(),
        "sections": sections,
        "kept": report.kept,
        "links": stack.links(),
        "routes": stack.routes().iter().map(|route| format!("{route:?}")).collect::<Vec<_>>(),
        "chains": chains(&stack),
        "stats": stats(&stack),
        "conntrack": {
            "totals": format!("{:?}", stack.conntrack().totals()),
            "sysctls": changed_sysctls(&stack),
            "capacity": stack.conntrack().capacity(),
        },
        "flows": stack.flows(START).iter().map(flow).collect::<Vec<_>>(),
    });
    diff::value(&content).unwrap()
}

/// Settings that are not as a kernel starts with.
fn changed_sysctls(stack: &Stack) -> BTreeMap<&'static str, u64> {
    let defaults = Sysctls::default();
    stack.conntrack().sysctls().iter().filter(|(name, value)| defaults.value(name) != Some(*value)).collect()
}

fn chains(stack: &Stack) -> Vec<serde_json::Value> {
    let counted = |counters: hibernet_netstack::Counters| format!("{}/{}", counters.packets, counters.bytes);
    stack.rules().chains.iter().map(|chain| {
        let rules = chain.rules.iter();
        json!({
            "name": chain.name,
            "base": chain.base.map(|base| format!("{:?} {:?} {}", base.hook, base.policy, counted(base.policy_counters))),
            "rules": rules.map(|rule| format!("{} {}", counted(rule.counters), serde_json::to_string(rule).unwrap()))
                .collect::<Vec<_>>(),
        })
    }).collect()
}

fn stats(stack: &Stack) -> serde_json::Value {
    let stats = stack.stats();
    let drops: BTreeMap<_, _> = stats.drops().map(|(reason, count)| (reason.to_string(), count)).collect();
    json!({ "received": stats.received, "sent": stats.sent, "forwarded": stats.forwarded, "drops": drops })
}

fn flow(flow: &hibernet_conntrack::FlowRecord) -> serde_json::Value {
    let mut parts = json!({
        "line": flow.to_string(),
        "status": format!("{:?}", flow.status),
        "remaining": format!("{:?}", flow.remaining),
    });
    if let ProtocolState::Tcp(track) = &flow.protocol {
        parts["sides"] = json!(track.sides.map(|side| format!("{side:?}")));
    }
    parts
}

/// One line an event, with the step it came at.
fn stream(seen: &Seen) -> String {
    let mut text = String::new();
    for (step, event) in &seen.events {
        let line = match event {
            StackEvent::Conntrack(event) => format!("{} {}", event.kind.name(), event.flow),
            StackEvent::Drop(drop) => format!("DROP {} at {:?} in {:?}", drop.reason, drop.hook, drop.chain),
            StackEvent::Invalid { reason } => format!("INVALID {reason}"),
            other => format!("{other:?}"),
        };
        writeln!(text, "{step} {line}").unwrap();
    }
    text
}

/// Ports that a stack drew are a function of its key, and no part of what is reviewed here.
fn without_draws() -> insta::Settings {
    let mut settings = insta::Settings::clone_current();
    settings.add_filter(r"(src=198\.51\.100\.10 dst=203\.0\.113\.1 sport=443 dport=)\d+", "${1}DRAWN");
    settings
}

#[test]
fn an_image_reads_like_this() {
    without_draws().bind(|| insta::assert_snapshot!(face(&sample().image())));
}

#[test]
fn three_packets_more_change_an_image_like_this() {
    let mut session = sample();
    let before = face(&session.image());
    for (link, line) in [
        ("out", "udp 198.51.100.10:53 > 198.18.0.2:5000 len=30"),
        ("in", "tcp 10.0.0.2:40000 > 198.51.100.10:80 FA seq=121 ack=901"),
        ("out", "tcp 198.51.100.10:80 > 203.0.113.1:23 S seq=1"),
    ] {
        play_line(&mut session, link, line);
    }
    let changes = diff::compare(&before, &face(&session.image()));
    let text: String = changes.iter().map(|change| format!("{change}\n")).collect();
    without_draws().bind(|| insta::assert_snapshot!(text));
}

/// The library's own comparison, as `sandbox-demo diff` prints it: what a test of a sandbox takes a snapshot of.
#[test]
fn three_packets_more_change_an_image_item_by_item() {
    let mut session = sample();
    let before = contents(&session.image());
    for (link, line) in [
        ("out", "udp 198.51.100.10:53 > 198.18.0.2:5000 len=30"),
        ("in", "tcp 10.0.0.2:40000 > 198.51.100.10:80 FA seq=121 ack=901"),
        ("dmz", "udp 198.18.0.2:5001 > 198.51.100.10:53 len=5"),
    ] {
        play_line(&mut session, link, line);
    }
    let after = contents(&session.image());
    let text = |one: &Contents, other: &Contents| one.diff(other).map(|item| format!("{item}\n")).collect::<String>();
    insta::assert_snapshot!(text(&before, &after));
    assert_eq!(text(&before, &before), "");
    // The other way round what was added is removed, and nothing else is told of.
    let signs = |text: &str| {
        text.lines().filter_map(|line| line.chars().next().filter(|sign| *sign != ' ')).collect::<String>()
    };
    let turned = signs(&text(&before, &after)).replace('+', "-");
    assert_eq!(signs(&text(&after, &before)), turned);
}

fn contents(image: &[u8]) -> Contents {
    let decoded = Decoded::open(image, &Limits::default()).unwrap();
    decoded.contents(&mut Entropy::from_test_seed(1)).unwrap()
}

#[test]
fn the_events_of_the_sample_read_like_this() {
    without_draws().bind(|| insta::assert_snapshot!(stream(&sample().seen)));
}
