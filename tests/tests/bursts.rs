//! Frames that come together lead to what they lead to one by one: events, what is sent and in which order, images.

use std::time::Duration;

use hibernet_netstack::{Ingress, Offload, Stack};
use hibernet_snapshot::Instant;
use hibernet_tests::traffic::{GENERATION, Gateway, Step, Trace};

/// All that a stack shows at one time.
type Shown = (Vec<String>, Vec<(String, Vec<u8>)>, Vec<u8>);

fn shown(stack: &mut Stack, now: Instant, with_image: bool) -> Shown {
    let events = std::iter::from_fn(|| stack.next_event()).map(|event| format!("{event:?}")).collect();
    let egress: Vec<_> = std::iter::from_fn(|| stack.egress()).collect();
    let sent = egress.into_iter().map(|sent| (format!("{:?}", sent.link), sent.datagram)).collect();
    let image = if with_image { stack.save(GENERATION, now).unwrap() } else { Vec::new() };
    (events, sent, image)
}

/// Frames of one link at one time; time alone where there is no link.
type Burst = (Instant, Option<&'static str>, Vec<Vec<u8>>);

/// Steps that follow each other on one link within 500 ms, as one burst at the time of the last.
fn bursts(steps: &[Step]) -> Vec<Burst> {
    let mut bursts: Vec<Burst> = Vec::new();
    for step in steps {
        let link = step.frame.as_ref().map(|frame| frame.link);
        let bytes = step.frame.as_ref().map(|frame| frame.bytes.clone());
        match bursts.last_mut() {
            Some((at, on, frames))
                if link.is_some() && *on == link && step.at.saturating_since(*at) < Duration::from_millis(500) =>
            {
                *at = step.at;
                frames.extend(bytes);
            }
            _ => bursts.push((step.at, link, bytes.into_iter().collect())),
        }
    }
    bursts
}

fn hold_against_each_other(gateway: &Gateway, seed: u64) {
    // What comes in was drawn while it came in one by one; sorted by link it makes longer bursts, of which some make no sense.
    let mut steps = Trace::of(gateway, seed, seed, 6000).steps;
    for part in steps.chunks_mut(60) {
        let times: Vec<_> = part.iter().map(|step| step.at).collect();
        part.sort_by_key(|step| step.frame.as_ref().map(|frame| frame.link));
        part.iter_mut().zip(times).for_each(|(step, at)| step.at = at);
    }
    let (mut together, mut one_by_one) = (gateway.open(seed), gateway.open(seed));
    let (mut longest, mut told) = (0, 0);
    for (number, (now, link, frames)) in bursts(&steps).into_iter().enumerate() {
        longest = longest.max(frames.len());
        match link.map(|link| together.link(link).unwrap()) {
            Some(link) => {
                for frame in &frames {
                    one_by_one.ingress(link, frame.clone(), now);
                }
                let burst = frames.into_iter().map(|frame| Ingress { frame, offload: Offload::NONE });
                together.ingress_burst(link, burst, now);
            }
            None => [&mut together, &mut one_by_one].into_iter().for_each(|stack| stack.poll(now)),
        }
        let with_image = number % 32 == 0;
        let (one, other) = (shown(&mut together, now, with_image), shown(&mut one_by_one, now, with_image));
        told += one.0.len();
        assert!(one == other, "seed {seed}, burst {number}:\n{:#?}\n{:#?}", one.0, other.0);
    }
    assert!(longest > 16 && told > 1000, "{longest} {told}");
    assert_eq!(together.stats(), one_by_one.stats());
    assert_eq!(together.rules(), one_by_one.rules());
}

#[test]
fn a_burst_of_random_traffic_leads_to_what_its_frames_lead_to_one_by_one() {
    for seed in 1..6 {
        hold_against_each_other(&Gateway::with_room_for(4000), seed);
    }
}

#[test]
fn so_it_does_where_the_table_is_full_and_flows_go_for_others() {
    for seed in 6..9 {
        hold_against_each_other(&Gateway::with_room_for(60), seed);
    }
}
