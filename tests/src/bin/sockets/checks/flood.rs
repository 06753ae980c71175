//! A flood of spoofed SYNs, and honest clients among them.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hibernet_netstack::Medium;
use hibernet_tests::notation::build;
use sandbox_demo::parts::Link;
use serde_json::json;

use super::Figures;
use crate::flow::Lot;
use crate::lab::{Counters, KERNEL_DEVICE, Lab, stack_addr};
use crate::protocol::{HostConfig, Request, Settings, StatsReply};

pub(super) fn run(figures: &mut Figures) -> Result<()> {
    let lab = Lab::new(&[])?;
    let mut host = lab.start(&strict())?;
    host.tell(&Request::Listen { port: PORT, backlog: BACKLOG, half_open: HALF_OPEN, settings: SMALL, echo: true })?;
    let before: StatsReply = host.call(&Request::Stats)?;
    let begun = Instant::now();
    let flooded = AtomicU64::new(0);
    let mut most_streams = 0;
    // Threads of this one are in its namespace.
    let (flood, waits) = std::thread::scope(|scope| {
        let flood = scope.spawn(|| send_flood(begun, &flooded));
        let clients: Vec<_> = (0..CLIENTS).map(|number| scope.spawn(move || client(number, begun))).collect();
        while !clients.iter().all(std::thread::ScopedJoinHandle::is_finished) || !flood.is_finished() {
            if let Ok(stats) = host.call::<StatsReply>(&Request::Stats) {
                most_streams = most_streams.max(stats.streams);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let waits: Vec<_> = clients.into_iter().map(|client| client.join().unwrap_or_else(|_| panicked())).collect();
        (flood.join().unwrap_or_else(|_| panicked()), waits)
    });
    let took = flood?;
    let stats: StatsReply = host.call(&Request::Stats)?;
    figures.insert("SYNs".into(), json!(flooded.load(Ordering::Relaxed)));
    figures.insert("in s".into(), json!(took.as_millis() as f64 / 1000.0));
    figures.insert("seen by the stack".into(), json!(stats.received));
    figures.insert("overruns".into(), json!(stats.overruns));
    figures.insert("cookies sent".into(), json!(stats.cookies_sent));
    figures.insert("cookies back".into(), json!(stats.cookies_accepted));
    figures.insert("most flows".into(), json!(stats.most_flows));
    figures.insert("most streams".into(), json!(most_streams));
    figures.insert("memory grew by".into(), json!(stats.memory.saturating_sub(before.memory)));
    let mut served = Vec::new();
    let mut failures = Vec::new();
    for wait in waits {
        match wait {
            Ok(wait) => served.push(wait.as_millis() as u64),
            Err(error) => failures.push(format!("{error:#}")),
        }
    }
    served.sort_unstable();
    figures.insert("clients served".into(), json!(served.len()));
    figures.insert("median ms".into(), json!(served.get(served.len() / 2)));
    figures.insert("slowest ms".into(), json!(served.last()));
    anyhow::ensure!(failures.is_empty(), "{} clients failed, one: {}", failures.len(), failures[0]);
    anyhow::ensure!(served.last().is_some_and(|slowest| *slowest < 3000), "a client waited for more than 3 s");
    anyhow::ensure!(took < FLOOD_TIME + FLOOD_TIME / 2, "the flood took {took:?}: it was none");
    anyhow::ensure!(stats.cookies_sent > 0, "no cookie was sent: the flood did not fill the backlog");
    anyhow::ensure!(stats.most_flows <= TABLE, "{} flows in a table of {TABLE}", stats.most_flows);
    let bound = (HALF_OPEN + BACKLOG) as usize + CLIENTS;
    anyhow::ensure!(most_streams <= bound, "{most_streams} streams: at most {bound} were expected");
    Counters::must_be_zero()
}

/// Sends all SYNs, evenly.
fn send_flood(begun: Instant, flooded: &AtomicU64) -> Result<Duration> {
    let mut link = Link::open(&KERNEL_DEVICE.parse().map_err(anyhow::Error::msg)?, Medium::Ip)?;
    let mut lot = Lot(7);
    for number in 0..FLOOD {
        let due = FLOOD_TIME.mul_f64(number as f64 / FLOOD as f64);
        if let Some(early) = due.checked_sub(begun.elapsed()).filter(|early| *early > Duration::from_millis(1)) {
            std::thread::sleep(early);
        }
        // RFC 2544's addresses, which nobody has.
        let source = IpAddr::V4(Ipv4Addr::from_bits(0xc612_0000 + lot.below(1 << 17) as u32));
        let (from, seq) = (SocketAddr::new(source, 1024 + lot.below(60_000) as u16), lot.below(1 << 32));
        let to = SocketAddr::new(stack_addr(false), PORT);
        let syn = build(&format!("tcp {from} > {to} S seq={seq} win=65535 mss=1460"), None)?;
        link.flush();
        link.send(syn);
        flooded.fetch_add(1, Ordering::Relaxed);
    }
    Ok(begun.elapsed())
}

/// Connects some time within the flood, says something and hears it back; how long that took.
fn client(number: usize, begun: Instant) -> Result<Duration> {
    let start = FLOOD_TIME.mul_f64(0.05 + 0.85 * number as f64 / CLIENTS as f64);
    std::thread::sleep(start.saturating_sub(begun.elapsed()));
    let from = Instant::now();
    let to = SocketAddr::new(stack_addr(number % 2 == 1), PORT);
    let mut socket = TcpStream::connect_timeout(&to, PATIENCE).context("connecting")?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let word = format!("client {number}");
    socket.write_all(word.as_bytes()).context("speaking")?;
    let mut heard = vec![0; word.len()];
    socket.read_exact(&mut heard).context("hearing")?;
    let took = from.elapsed();
    anyhow::ensure!(heard == word.as_bytes(), "another echo");
    Ok(took)
}

fn panicked<T>() -> Result<T> {
    Err(anyhow::anyhow!("it panicked"))
}

/// Only connections to the port come in, and none is picked up in the middle.
fn strict() -> HostConfig {
    let sysctl = |name: &str, value: String| (name.to_owned(), value);
    HostConfig {
        rules: Some(json!({"policy": {"input": "drop"}, "rules": [
            {"chain": "input", "match": {"ctstate": ["established", "related"]}, "action": "accept"},
            {"chain": "input", "match": {"proto": "tcp", "dport": PORT, "ctstate": ["new"]}, "action": "accept"},
        ]})),
        sysctls: vec![sysctl("nf_conntrack_max", TABLE.to_string()), sysctl("nf_conntrack_tcp_loose", "0".to_owned())],
        capacity: TABLE,
        ..HostConfig::neighbour()
    }
}

const FLOOD: u64 = 100_000;
const FLOOD_TIME: Duration = Duration::from_secs(10);
const CLIENTS: usize = 100;
/// For one step of a client; what counts is the time of all its steps.
const PATIENCE: Duration = Duration::from_secs(9);
const TABLE: u32 = 8192;
const BACKLOG: u32 = 128;
const HALF_OPEN: u32 = 256;
const PORT: u16 = 80;
const SMALL: Settings = Settings { receive: Some(4096), send: Some(4096), lossy: false };
