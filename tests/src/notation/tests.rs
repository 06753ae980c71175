use serde_json::Value;

use super::*;
use crate::corpus::{answers_of, read_records, scenarios};
use crate::scenario::{Scenario, Step};
use crate::variables::Variables;

/// Every scenario with its recorded answers.
fn recorded() -> Vec<(Scenario, Vec<Value>)> {
    let paths = scenarios().unwrap();
    assert!(paths.len() >= 81, "only {} scenarios", paths.len());
    paths.iter().map(|path| (Scenario::load(path).unwrap(), read_records(&answers_of(path)).unwrap())).collect()
}

/// The packets of a step, given what the recording captured before it.
fn packets(step: &Step, variables: &Variables) -> Vec<Vec<u8>> {
    let Some(send) = &step.send else { return vec![bytes_of_hex(step.hex.as_ref().unwrap()).unwrap()] };
    match step.repeat {
        None => vec![build(&variables.substitute(send).unwrap(), step.frag).unwrap()],
        Some(repeat) => {
            let first = step.port0.unwrap_or(20000);
            let counted = (0..repeat).map(|index| variables.counting(index, first + index));
            counted.map(|variables| build(&variables.substitute(send).unwrap(), None).unwrap()).collect()
        }
    }
}

#[test]
fn every_injected_packet_of_the_recordings_is_built_byte_for_byte() {
    for (scenario, records) in recorded() {
        assert_eq!(scenario.steps.len(), records.len(), "{}", scenario.name);
        let mut known = scenario.vars.clone();
        for (step, record) in scenario.steps.iter().zip(&records).filter(|(step, _)| step.injects()) {
            let place = format!("{} step {}", scenario.name, record["step"]);
            let variables = Variables::new(&known);
            let built = packets(step, &variables);
            match &record["inject"] {
                Value::Array(injected) => {
                    let injected: Vec<_> = injected.iter().map(|packet| packet["hex"].as_str().unwrap()).collect();
                    assert_eq!(built.iter().map(|packet| hex_of(packet)).collect::<Vec<_>>(), injected, "{place}");
                }
                injected => {
                    assert_eq!(hex_of(&built[0]), injected["hex"].as_str().unwrap(), "{place}");
                    assert_eq!(text(&built[0]), injected["text"].as_str().unwrap(), "{place}");
                }
            }
            let uses: Vec<_> = record["uses"].as_array().into_iter().flatten().cloned().collect();
            assert_eq!(variables.used_in(step.send.as_deref().unwrap_or_default()), uses, "{place}");
            known.extend(record["captured"].as_object().cloned().unwrap_or_default());
        }
    }
}

#[test]
fn every_packet_that_left_in_the_recordings_reads_as_recorded() {
    let mut read = 0;
    for (scenario, records) in recorded() {
        for left in records.iter().flat_map(|record| record["out"].as_array()).flatten() {
            let packet = bytes_of_hex(left["hex"].as_str().unwrap()).unwrap();
            assert_eq!(text(&packet), left["text"].as_str().unwrap(), "{}", scenario.name);
            read += 1;
        }
    }
    assert!(read > 500, "only {read} packets");
}

#[test]
fn every_captured_value_of_the_recordings_is_captured_again() {
    for (scenario, records) in recorded() {
        for (step, record) in scenario.steps.iter().zip(&records).filter(|(step, _)| !step.capture.is_empty()) {
            let hex = |left: &Value| bytes_of_hex(left["hex"].as_str().unwrap()).unwrap();
            let left: Vec<_> = record["out"].as_array().unwrap().iter().map(hex).collect();
            let left: Vec<_> = left.iter().map(Vec::as_slice).collect();
            for (name, path) in &step.capture {
                let value = Variables::default().capture(name, path, &left).unwrap();
                assert_eq!(value, record["captured"][name], "{}", scenario.name);
            }
        }
    }
}

/// Builds `line` and reads it back.
fn check(line: &str, text_of_it: &str) {
    assert_eq!(text(&build(line, None).unwrap()), text_of_it);
}

#[test]
fn faults_show_in_the_text() {
    check("tcp 10.0.0.2:1 > 10.0.0.1:2 S trunc=12", "tcp 10.0.0.2 > 10.0.0.1 short ttl=64");
    check("udp 10.0.0.2:1 > 10.0.0.1:2 udplen=4 len=2", "udp 10.0.0.2:1 > 10.0.0.1:2 len=-4 ttl=64");
    check("icmp 10.0.0.2 > 10.0.0.1 echo truncraw=22", "icmp 10.0.0.2 > 10.0.0.1 echo code=0 short ttl=64");
    check("tcp 10.0.0.2:1 > 10.0.0.1:2 S truncraw=1", "protoNone ? > ? short ttl=None");
}

#[test]
fn ipv6_extension_headers_are_written_and_read() {
    check("udp [fd00::2]:1 > [fd00::1]:2 hopopts len=3", "udp [fd00::2]:1 > [fd00::1]:2 len=3 ttl=64");
    let part = Fragment { off: 8, len: 8, mf: true };
    let packet = build("udp [fd00::2]:1 > [fd00::1]:2 len=32 ipid=7", Some(part)).unwrap();
    assert_eq!(text(&packet), "udp fd00::2 > fd00::1 frag=8+ l4len=8 ttl=64");
}

#[test]
fn an_ipv4_compatible_address_reads_as_c_libraries_print_it() {
    check("proto99 ::1.2.3.4 > ::1", "proto99 ::1.2.3.4 > ::1 ttl=64");
}

#[test]
fn the_checksums_of_a_built_packet_add_up() {
    let packet = build("udp 10.0.0.2:1 > 10.0.0.1:2 len=5", None).unwrap();
    assert_eq!(checksum::internet(&packet[..20]), 0);
    let (src, dst) = ("10.0.0.2".parse().unwrap(), "10.0.0.1".parse().unwrap());
    assert_eq!(checksum::transport(src, dst, PROTO_UDP, &packet[20..]), 0);
}

#[test]
fn what_is_not_notation_is_refused_with_its_place() {
    let refused = |line: &str| format!("{:#}", build(line, None).unwrap_err());
    assert!(refused("tcp 10.0.0.2:1 10.0.0.1:2").starts_with("packet notation is PROTO SRC > DST"));
    assert!(refused("tcp 10.0.0.2 > 10.0.0.1:2 S").contains("10.0.0.2 needs a port"));
    assert!(refused("tcp 10.0.0.2:1 > 10.0.0.1:2 SX").contains("TCP flag 'X'"));
    assert!(refused("tcp 10.0.0.2:1 > [fd00::1]:2 S").contains("two IP versions"));
    assert!(refused("sctp 10.0.0.2:1 > 10.0.0.1:2").contains("\"sctp\" is not known"));
    assert!(refused("udp 10.0.0.2:1 > 10.0.0.1:2 len=70000").contains("longer than"));
}
