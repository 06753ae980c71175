//! A stack behind a guest's network card, checkpointed with the guest, and forked: what `docs/embedding.md` explains.
//!
//! Guest and server are stacks too, so that it runs anywhere, in memory: `cargo run -p hibernet-netstack --example embed`. The
//! guest's own image stands for the memory of a virtual machine.

use std::error::Error;

use hibernet_netstack::{
    Cidr, ClonePolicy, Decoded, ForkRules, LinkConfig, LinkId, LocalServices, Medium, RestorePolicy, RestoreReport,
    Route, Ruleset, Stack, StackConfig, StreamError, StreamOptions, Supplied, TcpStream, TimePolicy,
};
use hibernet_snapshot::image::Limits;
use hibernet_snapshot::{Entropy, GenerationId, Instant};

/// A network card, or an uplink: frames each way.
#[derive(Default)]
struct Wire {
    to_stack: Vec<Vec<u8>>,
    from_stack: Vec<Vec<u8>>,
}

/// A stack between a guest and the world. This and its two functions are all that stands between the library and a
/// virtual machine monitor's event loop.
struct Gateway {
    stack: Stack,
    guest: LinkId,
    world: LinkId,
}

impl Gateway {
    fn around(stack: Stack) -> Option<Self> {
        let (guest, world) = (stack.link("guest0")?, stack.link("world0")?);
        Some(Self { stack, guest, world })
    }

    /// One turn of the loop. Comes back with when the next is due if no frame comes before.
    fn turn(&mut self, nic: &mut Wire, uplink: &mut Wire, now: Instant) -> Option<Instant> {
        for (link, wire) in [(self.guest, &mut *nic), (self.world, &mut *uplink)] {
            for frame in wire.to_stack.drain(..) {
                self.stack.ingress(link, frame, now);
            }
        }
        self.stack.poll(now);
        while let Some(out) = self.stack.egress() {
            let wire = if out.link == self.guest { &mut *nic } else { &mut *uplink };
            wire.from_stack.push(out.datagram);
        }
        while let Some(_event) = self.stack.next_event() {}
        self.stack.next_deadline(now)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    for line in run()? {
        println!("{line}");
    }
    Ok(())
}

/// Runs it all; gives what there is to say.
pub(crate) fn run() -> Result<Vec<String>, Box<dyn Error>> {
    let mut said = Vec::new();
    // A live program takes Entropy::from_os(), and a clock.
    let mut entropy = Entropy::from_test_seed(1);
    let mut now = Instant::from_secs(1);
    let mut world = host("203.0.113.9/24", None, Some(7), &mut entropy)?;
    let mut guest = host("10.0.0.2/24", Some("10.0.0.1"), None, &mut entropy)?;
    let mut gateway = Gateway::around(router(&mut entropy)?).ok_or("its links have these names")?;

    let echo = "203.0.113.9:7".parse()?;
    let stream = guest.tcp_connect(None, echo, StreamOptions::default(), now)?;
    said.push(format!("echo: {}", ask(&mut guest, stream, "one", &mut gateway, &mut world, &mut now)?.text));

    // A checkpoint: the guest stands still first, then what it has sent is taken in, then both are saved.
    let image = gateway.stack.save(entropy.public_id(), now)?;
    let memory = guest.save(GenerationId([1; 16]), now)?;
    drop((gateway, guest));

    // Both come back, an hour later. The guest has not noticed; for what faces the world the hour counts.
    let policy = RestorePolicy {
        time: TimePolicy::Elapse,
        elapsed: core::time::Duration::from_secs(3600),
        inside: vec!["guest0".to_owned()],
        ..RestorePolicy::default()
    };
    let (stack, report) = restore(&image, policy, &mut entropy, now)?;
    let (mut guest, _) = restore(&memory, RestorePolicy::default(), &mut entropy, now)?;
    let mut gateway = Gateway::around(stack).ok_or("its links have these names")?;
    said.push(format!("moved: {}", told(&report)));
    said.push(format!("echo: {}", ask(&mut guest, stream, "two", &mut gateway, &mut world, &mut now)?.text));

    // A fork: the same image and memory once more, while the first go on.
    let policy = RestorePolicy {
        clone: ClonePolicy::Fork(ForkRules::from_json(r#"{"rules": [], "default": "reset"}"#)?),
        inside: vec!["guest0".to_owned()],
        ..RestorePolicy::default()
    };
    let image = gateway.stack.save(entropy.public_id(), now)?;
    let memory = guest.save(GenerationId([2; 16]), now)?;
    let (stack, report) = restore(&image, policy, &mut entropy, now)?;
    let (mut clone_guest, _) = restore(&memory, RestorePolicy::default(), &mut entropy, now)?;
    let mut clone = Gateway::around(stack).ok_or("its links have these names")?;
    said.push(format!("forked: {}", told(&report)));
    // `report.instance` goes to the guest's vmgenid device.
    assert_ne!(report.instance, GenerationId::default());

    let asked = ask(&mut clone_guest, stream, "three", &mut clone, &mut world, &mut now)?;
    said.push(format!("the clone's guest: {}, {} datagrams went out", asked.text, asked.outward));
    let fresh = clone_guest.tcp_connect(None, echo, StreamOptions::default(), now)?;
    let asked = ask(&mut clone_guest, fresh, "four", &mut clone, &mut world, &mut now)?;
    said.push(format!("a new connection of the clone: {}", asked.text));
    let asked = ask(&mut guest, stream, "five", &mut gateway, &mut world, &mut now)?;
    said.push(format!("the first guest's goes on: {}", asked.text));
    Ok(said)
}

/// An image as a stack under keys of its own. An error leaves nothing behind: try another image, or start afresh.
fn restore(
    image: &[u8],
    policy: RestorePolicy,
    entropy: &mut Entropy,
    now: Instant,
) -> Result<(Stack, RestoreReport), Box<dyn Error>> {
    let decoded = Decoded::open(image, &Limits::default())?;
    let validated = decoded.validate(entropy, now)?;
    let rehashed = validated.rehash(entropy.fork(), policy)?;
    Ok(rehashed.open(Supplied::default()))
}

fn told(report: &RestoreReport) -> String {
    format!("{} flows kept, {} reset, {} dropped", report.kept, report.reset, report.dropped)
}

/// What became of a question.
struct Asked {
    text: String,
    /// Datagrams that the gateway has sent to the world for it.
    outward: usize,
}

/// The guest writes to its stream, and frames go to and fro until there is an answer or an end.
fn ask(
    guest: &mut Stack,
    stream: TcpStream,
    question: &str,
    gateway: &mut Gateway,
    world: &mut Stack,
    now: &mut Instant,
) -> Result<Asked, Box<dyn Error>> {
    let (mut nic, mut uplink) = (Wire::default(), Wire::default());
    let (guest_link, world_link) = (guest.link("eth0").ok_or("eth0")?, world.link("eth0").ok_or("eth0")?);
    let (mut unsent, mut outward, mut room) = (question.as_bytes(), 0, [0; 64]);
    for _ in 0..1000 {
        match guest.tcp_write(stream, unsent, *now) {
            Ok(taken) => unsent = unsent.get(taken..).unwrap_or_default(),
            Err(StreamError::WouldBlock) => {}
            Err(error) => return Ok(Asked { text: error.to_string(), outward }),
        }
        pass(guest, guest_link, &mut nic, *now);
        gateway.turn(&mut nic, &mut uplink, *now);
        outward = outward.saturating_add(uplink.from_stack.len());
        pass(world, world_link, &mut uplink, *now);
        match guest.tcp_read(stream, &mut room, *now) {
            Ok(read) => {
                let text = String::from_utf8_lossy(room.get(..read).unwrap_or_default()).into_owned();
                return Ok(Asked { text, outward });
            }
            Err(StreamError::WouldBlock) => {}
            Err(error) => return Ok(Asked { text: error.to_string(), outward }),
        }
        *now = now.saturating_add(core::time::Duration::from_millis(10));
    }
    Err("no answer in ten seconds".into())
}

/// One turn of the stack at a wire's other end.
fn pass(host: &mut Stack, link: LinkId, wire: &mut Wire, now: Instant) {
    for frame in wire.from_stack.drain(..) {
        host.ingress(link, frame, now);
    }
    host.poll(now);
    while let Some(out) = host.egress() {
        wire.to_stack.push(out.datagram);
    }
}

fn router(entropy: &mut Entropy) -> Result<Stack, Box<dyn Error>> {
    let config = StackConfig {
        links: vec![link("guest0", "10.0.0.1/24")?, link("world0", "203.0.113.1/24")?],
        rules: Ruleset::from_json(
            r#"{"policy": {"forward": "drop"}, "rules": [
                {"chain": "forward", "match": {"ctstate": ["established", "related"]}, "action": "accept"},
                {"chain": "forward", "match": {"iif": "guest0", "ctstate": ["new"]}, "action": "accept"},
                {"chain": "srcnat", "match": {"oif": "world0"}, "action": "masquerade fully-random"}]}"#,
        )?,
        ..StackConfig::default()
    };
    Ok(Stack::new(config, entropy.fork(), Instant::from_secs(1))?)
}

fn host(addr: &str, via: Option<&str>, tcp_echo: Option<u16>, entropy: &mut Entropy) -> Result<Stack, Box<dyn Error>> {
    let route = |via: &str| -> Result<Route, Box<dyn Error>> {
        Ok(Route { destination: Cidr::all_v4(), via: Some(via.parse()?), link: "eth0".into() })
    };
    let config = StackConfig {
        links: vec![link("eth0", addr)?],
        routes: via.map(route).transpose()?.into_iter().collect(),
        rules: Ruleset::open(),
        services: LocalServices { tcp_echo, udp_echo: None },
        ..StackConfig::default()
    };
    Ok(Stack::new(config, entropy.fork(), Instant::from_secs(1))?)
}

fn link(name: &str, addr: &str) -> Result<LinkConfig, Box<dyn Error>> {
    Ok(LinkConfig { name: name.into(), mtu: 1500, addrs: vec![addr.parse()?], medium: Medium::Ip })
}
