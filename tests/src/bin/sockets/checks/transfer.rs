//! A long transfer, saved, killed and restored at random moments, over links that lose, double and reorder.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;

use super::Figures;
use crate::flow::{Lot, compare};
use crate::kernel::{self, End};
use crate::lab::{Counters, Host, Lab, SOON, kernel_addr, wait};
use crate::protocol::{HostConfig, Request, Settings, StatsReply, StreamReply, Weather};

/// What one transfer was like.
struct Course {
    seconds: f64,
    saves: [u64; 2],
    frames: [u64; 3],
    counters: Counters,
}

pub(super) fn clean(figures: &mut Figures) -> Result<()> {
    all(figures, Weather::default())
}

pub(super) fn half_a_percent(figures: &mut Figures) -> Result<()> {
    all(figures, Weather { seed: 0, lost: 50, doubled: 50, late: 50 })
}

pub(super) fn three_percent(figures: &mut Figures) -> Result<()> {
    all(figures, Weather { seed: 0, lost: 300, doubled: 100, late: 100 })
}

/// Every seed, all at once: most of a lossy transfer is waiting.
fn all(figures: &mut Figures, weather: Weather) -> Result<()> {
    let run = |seed: u64| transfer(Weather { seed, ..weather }).with_context(|| format!("seed {seed}"));
    let courses: Vec<Course> = std::thread::scope(|scope| {
        let threads: Vec<_> = (1..=SEEDS).map(|seed| scope.spawn(move || run(seed))).collect();
        let joined = threads.into_iter().map(std::thread::ScopedJoinHandle::join);
        joined.map(|result| result.unwrap_or_else(|_| Err(anyhow::anyhow!("it panicked")))).collect::<Result<_>>()
    })?;
    let slowest = courses.iter().map(|course| course.seconds).fold(0.0, f64::max);
    let sum = |at: fn(&Course) -> u64| courses.iter().map(at).sum::<u64>();
    let per_save =
        |at: usize| courses.iter().map(|course| course.saves[at]).sum::<u64>() / (SEEDS * CHECKPOINTS) / 1000;
    figures.insert("seeds".into(), json!(courses.len()));
    figures.insert("checkpoints".into(), json!(SEEDS * CHECKPOINTS));
    figures.insert("slowest s".into(), json!((slowest * 10.0).round() / 10.0));
    figures.insert("mean save us".into(), json!(per_save(0)));
    figures.insert("mean restore us".into(), json!(per_save(1)));
    figures.insert(
        "frames lost, doubled, late".into(),
        json!([sum(|course| course.frames[0]), sum(|course| course.frames[1]), sum(|course| course.frames[2])]),
    );
    figures.insert("OutRsts".into(), json!(sum(|course| course.counters.out_rsts)));
    figures.insert("PAWSEstab".into(), json!(sum(|course| course.counters.paws_estab)));
    figures.insert("InCsumErrors".into(), json!(sum(|course| course.counters.in_csum_errors)));
    Ok(())
}

/// One connection, 32 MB each way.
fn transfer(weather: Weather) -> Result<Course> {
    let lab = Lab::new(&[])?;
    let mut host = lab.start(&HostConfig::neighbour())?;
    let (v6, stack_connects) = (weather.seed % 2 == 1, weather.seed % 4 >= 2);
    let mut end = open(&mut host, v6, stack_connects, weather.lost > 0)?;
    let id = u64::from(end.port);
    let mut lot = Lot(weather.seed);
    let mut moments: Vec<u64> = (0..CHECKPOINTS).map(|_| lot.below(2 * BYTES)).collect();
    moments.sort_unstable_by(|one, other| other.cmp(one));
    host.tell(&Request::Weather(weather))?;
    host.tell(&Request::Set { id, more: BYTES, reading: None, close: true })?;
    (end.flow.goal, end.flow.closing) = (BYTES, true);
    let begun = Instant::now();
    let (mut saves, mut frames) = ([0, 0], [0, 0, 0]);
    let mut moved = begun;
    let mut checks = 0_u32;
    let stack = loop {
        if end.pump()? {
            moved = Instant::now();
        } else {
            end.wait()?;
        }
        anyhow::ensure!(
            moved.elapsed() < HANG,
            "nothing has moved for {} s: {} bytes sent, {} arrived, the stack's end {:?}",
            HANG.as_secs(),
            end.flow.sent.bytes,
            end.flow.got.bytes,
            stream(&mut host, id)?
        );
        let passed = end.flow.sent.bytes + end.flow.got.bytes;
        if moments.last().is_some_and(|moment| *moment <= passed) {
            moments.pop();
            count(&mut host, &mut frames)?;
            let (heir, saved) = lab.checkpoint(host)?;
            host = heir;
            saves = [saves[0] + saved.nanos, saves[1] + host.hello.nanos];
            // Another seed: the weather does not repeat itself.
            host.tell(&Request::Weather(Weather { seed: lot.below(u64::MAX), ..weather }))?;
        }
        checks += 1;
        if end.flow.is_over() && checks.is_multiple_of(16) {
            let stack = stream(&mut host, id)?;
            anyhow::ensure!(stack.failure.is_none(), "the stack's end: {:?}", stack.failure);
            if stack.over {
                break stack;
            }
        }
    };
    let seconds = begun.elapsed().as_secs_f64();
    anyhow::ensure!(moments.is_empty(), "{} checkpoints were not made", moments.len());
    compare("kernel to stack", &end.flow.sent.sum(), &stack.got)?;
    compare("stack to kernel", &stack.sent, &end.flow.got.sum())?;
    anyhow::ensure!(stack.sent.bytes == BYTES && stack.got.bytes == BYTES, "not all of the bytes were sent");
    count(&mut host, &mut frames)?;
    let counters = Counters::read()?;
    anyhow::ensure!(
        counters.out_rsts + counters.estab_resets + counters.in_csum_errors == 0,
        "the kernel counted {counters:?}"
    );
    let reorders = weather.late + weather.doubled > 0;
    anyhow::ensure!(reorders || counters.paws_estab == 0, "the kernel counted {counters:?}");
    Ok(Course { seconds, saves, frames, counters })
}

/// Opens a connection, either way around, and waits until both ends have it.
pub(super) fn open(host: &mut Host, v6: bool, stack_connects: bool, lossy: bool) -> Result<End> {
    let settings = Settings { receive: Some(BUFFER), send: Some(BUFFER), lossy };
    let mut end = if stack_connects {
        let listener = kernel::listen(v6, 0)?;
        let port = listener.local_addr()?.port();
        let to = (kernel_addr(v6), port).into();
        host.call::<u16>(&Request::Connect { id: port.into(), from: None, to, settings })?;
        End::unborn(listener, port)
    } else {
        host.tell(&Request::Listen { port: PORT, backlog: 8, half_open: 8, settings, echo: false })?;
        End::connect(v6, 0, PORT)?
    };
    let id = u64::from(end.port);
    wait(SOON, "the connection", || {
        end.pump()?;
        Ok(end.is_born() && host.tell(&Request::Set { id, more: 0, reading: None, close: false }).is_ok())
    })?;
    Ok(end)
}

/// How a stream of the stack stands.
pub(super) fn stream(host: &mut Host, id: u64) -> Result<StreamReply> {
    let mut replies: Vec<StreamReply> = host.call(&Request::Streams(vec![id]))?;
    replies.pop().with_context(|| format!("the stack knows no stream {id}"))
}

fn count(host: &mut Host, frames: &mut [u64; 3]) -> Result<()> {
    let stats: StatsReply = host.call(&Request::Stats)?;
    for (sum, more) in frames.iter_mut().zip(stats.weather) {
        *sum += more;
    }
    Ok(())
}

const SEEDS: u64 = 5;
const CHECKPOINTS: u64 = 20;
/// Each way.
const BYTES: u64 = 32 << 20;
const PORT: u16 = 80;
/// A quarter of a megabyte may be under way.
const BUFFER: u32 = 1 << 18;
/// The link is never silent for long: an end that waits so long for a timer has lost its way.
const HANG: Duration = Duration::from_secs(30);
