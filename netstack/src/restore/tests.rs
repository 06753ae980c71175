//! Saves and restores of a whole stack.

mod fork;
mod time;

use hibernet_snapshot::codec::encode;
use hibernet_snapshot::image::{Image, ImageWriter, Limits, Requirement, SectionId};
use hibernet_snapshot::{Entropy, GenerationId, Instant, Snapshot};

use crate::image::{LineageSection, LinksSection, RulesSection};
use crate::restore::{Decoded, RestorePolicy, Supplied};
use crate::test_stack::{Version, config, outcome, play, stack};
use crate::{RestoreReport, Ruleset, Stack};

const GATEWAY: &str = r#"{"policy":{"input":"drop","forward":"drop"},"rules":[
    {"chain":"input","action":"accept"},
    {"chain":"forward","match":{"ctstate":["established","related"]},"action":"accept"},
    {"chain":"forward","match":{"iif":"in","ctstate":["new"]},"action":"accept"},
    {"chain":"srcnat","match":{"oif":"out"},"action":"masquerade fully-random"},
    {"chain":"dstnat","match":{"iif":"in","proto":"tcp","dport":80,"daddr":"198.51.100.11"},"action":{"redirect":7}}]}"#;

const GENERATION: GenerationId = GenerationId([7; 16]);

fn restored(image: &[u8], seed: u64, now: Instant) -> (Stack, RestoreReport) {
    let mut entropy = Entropy::from_test_seed(seed);
    let validated = Decoded::open(image, &Limits::default()).unwrap().validate(&mut entropy, now).unwrap();
    validated.rehash(entropy, RestorePolicy::default()).unwrap().open(Supplied::default())
}

/// A stack with a masqueraded connection, a ping and a datagram flow of each IP version.
fn busy() -> Stack {
    let mut stack = stack(GATEWAY);
    for version in [Version::V4, Version::V6] {
        for words in ["tcp client:1000 > server:80 S seq=5", "udp client:2000 > server:53", "ping client > server id=3"]
        {
            play(&mut stack, version, "in", words);
            outcome(&mut stack, version);
        }
    }
    stack
}

#[test]
fn a_restored_stack_saves_to_the_same_bytes() {
    let image = busy().save(GENERATION, Instant::ZERO).unwrap();
    let (second, report) = restored(&image, 2, Instant::from_secs(5000));
    assert_eq!((report.kept, report.reset, report.dropped), (6, 0, 0));
    assert_eq!(second.save(GENERATION, Instant::from_secs(5000)).unwrap(), image);
    let (third, _) = restored(&image, 3, Instant::ZERO);
    assert_eq!(third.save(GENERATION, Instant::ZERO).unwrap(), image);
}

#[test]
fn a_masqueraded_connection_goes_on_under_new_keys() {
    for version in [Version::V4, Version::V6] {
        let mut source = stack(GATEWAY);
        play(&mut source, version, "in", "tcp client:1000 > server:80 S seq=5");
        let syn = outcome(&mut source, version).pop().unwrap();
        let port: u16 = syn.split("public:").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        let image = source.save(GENERATION, Instant::ZERO).unwrap();
        let (mut heir, _) = restored(&image, 2, Instant::ZERO);
        play(&mut heir, version, "out", &format!("tcp server:80 > public:{port} SA seq=9 ack=6"));
        assert_eq!(outcome(&mut heir, version), ["in: tcp server:80 > client:1000 SA ttl=63"]);
        play(&mut heir, version, "out", &format!("tcp server2:80 > public:{port} SA seq=9 ack=6"));
        assert_eq!(
            outcome(&mut heir, version).last().unwrap(),
            &format!("out: tcp public:{port} > server2:80 R ttl=64")
        );
    }
}

#[test]
fn the_rules_come_back_with_their_counters() {
    let source = busy();
    let (heir, _) = restored(&source.save(GENERATION, Instant::ZERO).unwrap(), 2, Instant::ZERO);
    assert_eq!(heir.rules(), source.rules());
    assert!(heir.rules().chain("srcnat").unwrap().rules[0].counters.packets == 6);
    assert_eq!(heir.hooks(), source.hooks());
    assert_eq!(heir.stats(), source.stats());
    assert_eq!(heir.flows(Instant::ZERO), source.flows(Instant::ZERO));
}

#[test]
fn a_connection_of_the_host_itself_goes_on_also_behind_a_redirect() {
    let mut source = stack(GATEWAY);
    let number = |stack: &mut Stack| {
        let bytes = stack.egress().unwrap().datagram;
        u32::from_be_bytes(bytes[24..28].try_into().unwrap())
    };
    play(&mut source, Version::V4, "in", "tcp client:4000 > server2:80 S seq=100");
    let redirected = number(&mut source);
    play(&mut source, Version::V4, "in", "tcp client:5000 > gateway:7 S seq=100");
    let plain = number(&mut source);
    while source.next_event().is_some() {}
    let image = source.save(GENERATION, Instant::ZERO).unwrap();
    let (mut heir, report) = restored(&image, 2, Instant::ZERO);
    assert_eq!((report.kept, report.streams_kept, report.streams_reset), (2, 2, 0));
    assert_eq!(outcome(&mut heir, Version::V4), [""; 0], "a restore by itself says nothing");
    for (name, port, iss) in [("server2:80", 4000, redirected), ("gateway:7", 5000, plain)] {
        let ack = iss.wrapping_add(1);
        play(&mut heir, Version::V4, "in", &format!("tcp client:{port} > {name} A seq=101 ack={ack}"));
        play(&mut heir, Version::V4, "in", &format!("tcp client:{port} > {name} AP seq=101 ack={ack} len=10"));
        let told = outcome(&mut heir, Version::V4);
        assert!(told.iter().any(|line| line.starts_with(&format!("in: tcp {name} > client:{port} A"))), "{told:?}");
        assert!(!told.iter().any(|line| line.contains(" R")), "{told:?}");
    }
}

#[test]
fn the_lineage_grows_with_every_generation_and_is_bounded() {
    let mut stack = busy();
    for number in 1..=70 {
        let image = stack.save(GenerationId([number; 16]), Instant::ZERO).unwrap();
        let (heir, report) = restored(&image, u64::from(number), Instant::ZERO);
        assert_eq!(report.parent, GenerationId([number; 16]));
        assert_eq!(heir.save(GenerationId([number; 16]), Instant::ZERO).unwrap(), image);
        stack = heir;
    }
    assert_eq!(stack.lineage().len(), 65);
    assert_eq!(stack.lineage().last(), Some(&GenerationId([70; 16])));
}

#[test]
fn no_key_and_no_hash_is_in_an_image_and_every_planted_one_is_found() {
    let stack = busy();
    let image = stack.save(GENERATION, Instant::ZERO).unwrap();
    let report = stack.canary_scan(&image);
    assert_eq!(report.hits, []);
    assert!(report.key_windows > 0 && report.hashes > 0);
    let planted = stack.canary().planted(&image, &mut Entropy::from_test_seed(9));
    assert_eq!(planted, report.key_windows);
}

#[test]
fn a_restore_shares_no_key_with_its_source_or_with_another_restore() {
    let source = busy();
    let image = source.save(GENERATION, Instant::ZERO).unwrap();
    let (one, _) = restored(&image, 2, Instant::ZERO);
    let (other, _) = restored(&image, 3, Instant::ZERO);
    let mut keys: Vec<u64> = [source, one, other].iter().flat_map(|s| s.key_fingerprints()).map(|(_, k)| k).collect();
    let all = keys.len();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), all);
    assert_eq!(all, 21);
}

#[test]
fn every_flipped_byte_and_every_truncation_is_refused() {
    let image = busy().save(GENERATION, Instant::ZERO).unwrap();
    for at in 0..image.len() {
        let mut flipped = image.clone();
        flipped[at] ^= 0x10;
        assert!(Decoded::open(&flipped, &Limits::default()).is_err(), "byte {at}");
        assert!(Decoded::open(&image[..at], &Limits::default()).is_err(), "length {at}");
    }
}

#[test]
fn a_save_that_would_write_timers_too_long_is_refused() {
    let mut stack = busy();
    let now = Instant::from_secs(10);
    let error = stack.save(GENERATION, now).unwrap_err();
    assert!(error.to_string().ends_with("call poll first"), "{error}");
    stack.poll(now);
    assert!(stack.save(GENERATION, now).is_ok());
}

#[test]
fn a_stack_without_rules_restores_closed() {
    let source = Stack::new(config(Ruleset::default()), Entropy::from_test_seed(1), Instant::ZERO).unwrap();
    let (mut heir, _) = restored(&source.save(GENERATION, Instant::ZERO).unwrap(), 2, Instant::ZERO);
    play(&mut heir, Version::V4, "in", "udp client:1 > server:53");
    assert_eq!(outcome(&mut heir, Version::V4), ["drop policy"]);
}

/// The image with another body in one section, all checksums right.
fn with_section<T: serde::Serialize>(image: &[u8], id: SectionId, body: &T) -> Vec<u8> {
    let limits = Limits::default();
    let image = Image::parse(image, &limits).unwrap();
    let mut writer = ImageWriter::new(image.header());
    for section in image.sections() {
        writer.section(section.id, section.version, Requirement::Required, section.body);
    }
    writer.section(id, 1, Requirement::Required, &encode(body).unwrap());
    writer.finish()
}

#[test]
fn a_sound_container_with_unsound_values_is_refused_with_the_place() {
    let image = busy().save(GENERATION, Instant::ZERO).unwrap();
    let refused = |image: Vec<u8>| {
        let decoded = Decoded::open(&image, &Limits::default()).unwrap();
        decoded.validate(&mut Entropy::from_test_seed(1), Instant::ZERO).unwrap_err().to_string()
    };
    let links = |change: &dyn Fn(&mut LinksSection)| {
        let mut links = LinksSection { links: config(Ruleset::open()).links, routes: Vec::new() };
        change(&mut links);
        with_section(&image, crate::image::LINKS, &links.save())
    };
    let rules = |text: &str| {
        with_section(&image, crate::image::RULES, &RulesSection::of(&Ruleset::from_json(text).unwrap()).save())
    };
    for (image, expected) in [
        (links(&|links| links.links[1].mtu = 10), "section LINK: links[1].mtu: found 10, expected 1280 to 65535"),
        (links(&|links| links.links[1].name = "in".into()), "section LINK: two links are named `in`"),
        (links(&|links| links.links.truncate(1)), "section RULE: chain `srcnat`, rule 0: no link is named `out`"),
        (
            rules(r#"[{"chain":"forward","action":"masquerade"}]"#),
            "section RULE: chain `forward`, rule 0: `masquerade` cannot be done here: expected a nat chain at postrouting",
        ),
        (
            with_section(&image, crate::image::LINEAGE, &LineageSection { parents: vec![GENERATION; 65] }.save()),
            "section LINE: parents: found 65 generations, expected at most 64",
        ),
        (
            with_section(&image, crate::image::LOCAL, &(Some(0_u16), None::<u16>)),
            "section LOCL: udp_echo: found port 0, expected 1 to 65535",
        ),
    ] {
        assert_eq!(refused(image), expected);
    }
    let unknown = with_section(&image, SectionId::new(*b"NEWS"), &1_u8);
    let error = Decoded::open(&unknown, &Limits::default()).unwrap_err().to_string();
    assert!(error.starts_with("section NEWS (version 1) is required and not known"), "{error}");
}

#[test]
fn an_image_and_all_that_is_seen_do_not_depend_on_the_keys() {
    let rules = r#"[{"chain":"srcnat","match":{"oif":"out"},"action":"masquerade"}]"#;
    let run = |seed| {
        let config = config(Ruleset::from_json(rules).unwrap());
        let mut stack = Stack::new(config, Entropy::from_test_seed(seed), Instant::ZERO).unwrap();
        let mut seen = Vec::new();
        for version in [Version::V4, Version::V6] {
            for port in 1000..1100 {
                play(&mut stack, version, "in", &format!("tcp client:{port} > server:80 S"));
                play(&mut stack, version, "in", &format!("udp other:{port} > server:53"));
                play(&mut stack, version, "out", &format!("tcp server:80 > public:{port} SA ack=1"));
                while let Some(event) = stack.next_event() {
                    seen.push(format!("{event:?}"));
                }
                seen.extend(outcome(&mut stack, version));
            }
        }
        (stack.save(GENERATION, Instant::ZERO).unwrap(), seen)
    };
    let first = run(1);
    for seed in 2..6 {
        assert!(run(seed) == first, "seed {seed}");
    }
}

#[test]
fn the_schema_changes_only_on_purpose() {
    insta::assert_snapshot!(crate::image::SCHEMA.text());
}
