//! Connections in every state, saved, killed and restored.
//!
//! Each connection is brought into its state by what the link loses; all of them stand there when the stack is saved. Then
//! the link loses nothing more, and every connection must come to its end in order, each byte in its place.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use super::Figures;
use crate::flow::compare;
use crate::kernel::{self, End};
use crate::lab::{Counters, Host, Lab, SOON, kernel_addr, stack_addr, wait};
use crate::protocol::{Block, HostConfig, Request, Settings, StatsReply, StreamReply};

/// Which end of the connection is the stack's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Role {
    Connects,
    Accepts,
}

/// The states, each with what is lost to stay there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Scene {
    /// The SYN is lost, or its answer.
    SynSent {
        answered: bool,
    },
    /// The SYN-ACK is lost, or the acknowledgement of it. A stack that connects meets a SYN on its way.
    SynReceived {
        answered: bool,
    },
    Established,
    /// Data and FIN are lost, or their acknowledgement.
    FinWait1 {
        answered: bool,
    },
    FinWait2,
    CloseWait,
    Closing,
    LastAck {
        answered: bool,
    },
    /// The acknowledgement of the FIN is lost.
    TimeWait,
}

/// One connection.
struct Case {
    role: Role,
    v6: bool,
    scene: Scene,
    end: End,
    /// The stack has ended its direction.
    stack_shut: bool,
    /// The kernel has.
    kernel_shut: bool,
}

struct Stage<'a> {
    host: &'a mut Host,
    blocks: Vec<Block>,
    next_port: u16,
}

/// With the kernel's defaults.
pub(super) fn every_state(figures: &mut Figures) -> Result<()> {
    let counts = play(&[])?;
    figures.insert("connections".into(), json!(counts.values().sum::<usize>()));
    figures.insert("by state".into(), json!(counts));
    figures.insert("OutRsts, EstabResets, PAWSEstab, InCsumErrors".into(), json!([0, 0, 0, 0]));
    Ok(())
}

/// With every combination of the kernel's options.
pub(super) fn every_option(figures: &mut Figures) -> Result<()> {
    let mut connections = 0;
    for bits in 0..8_u8 {
        let is = |bit: u8| if bits & bit == 0 { "0" } else { "1" };
        let sysctls = [("ipv4/tcp_window_scaling", is(1)), ("ipv4/tcp_sack", is(2)), ("ipv4/tcp_timestamps", is(4))];
        // A thread's next namespace: the last one's connections are over.
        let counts = std::thread::scope(|scope| {
            let played = scope.spawn(|| play(&sysctls));
            played.join().unwrap_or_else(|_| Err(anyhow::anyhow!("it panicked")))
        });
        connections += counts.with_context(|| format!("{sysctls:?}"))?.values().sum::<usize>();
    }
    figures.insert("combinations".into(), json!(8));
    figures.insert("connections".into(), json!(connections));
    figures.insert("OutRsts, EstabResets, PAWSEstab, InCsumErrors".into(), json!([0, 0, 0, 0]));
    Ok(())
}

/// All connections of one kernel; how many stood in each state.
fn play(sysctls: &[(&str, &str)]) -> Result<BTreeMap<String, usize>> {
    let lab = Lab::new(sysctls)?;
    let mut host = lab.start(&HostConfig::neighbour())?;
    host.tell(&Request::Listen { port: PORT, backlog: 64, half_open: 64, settings: Settings::default(), echo: false })?;
    let mut stage = Stage { host: &mut host, blocks: Vec::new(), next_port: FIRST_PORT };
    let mut cases = Vec::new();
    for v6 in [false, true] {
        for role in [Role::Connects, Role::Accepts] {
            for scene in SCENES.iter().copied().filter(|scene| scene.suits(role)) {
                let case = stage.set(role, v6, scene);
                cases.push(case.with_context(|| format!("{role:?}, v6 {v6}, {scene:?}: before the save"))?);
            }
        }
    }
    let mut counts = BTreeMap::new();
    for case in &cases {
        let state = state_of(&mut host, case.end.port)?;
        anyhow::ensure!(state == case.scene.name(), "{}: {state} before the save", case.name());
        *counts.entry(state).or_default() += 1;
    }
    // Two in a row: what a restored stack saves is as good.
    let (again, saved) = lab.checkpoint(host)?;
    anyhow::ensure!(saved.streams >= cases.len(), "{} of {} streams were saved", saved.streams, cases.len());
    host = lab.checkpoint(again)?.0;
    for case in &mut cases {
        let name = case.name();
        case.finish(&mut host).with_context(|| format!("{name}: after the restore"))?;
    }
    let stats: StatsReply = host.call(&Request::Stats)?;
    for (port, count) in &stats.resets_by_port {
        // The kernel's end is in TIME-WAIT and answers every segment that comes again; the first answer ends LAST-ACK, and
        // to the others there is only CLOSED to answer (RFC 9293, section 3.10.7.1).
        let case = cases.iter().find(|case| case.end.port == *port);
        let expected = case.is_some_and(|case| matches!(case.scene, Scene::LastAck { .. }));
        anyhow::ensure!(expected, "the stack sent {count} resets to {:?}", case.map(Case::name));
    }
    Counters::must_be_zero()?;
    Ok(counts)
}

impl Scene {
    fn suits(self, role: Role) -> bool {
        match self {
            Self::SynSent { .. } => role == Role::Connects,
            // Its SYN-ACK would have to be lost at the kernel.
            Self::SynReceived { answered } => role == Role::Accepts || !answered,
            _ => true,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::SynSent { .. } => "SynSent",
            Self::SynReceived { .. } => "SynReceived",
            Self::Established => "Established",
            Self::FinWait1 { .. } => "FinWait1",
            Self::FinWait2 => "FinWait2",
            Self::CloseWait => "CloseWait",
            Self::Closing => "Closing",
            Self::LastAck { .. } => "LastAck",
            Self::TimeWait => "TimeWait",
        }
    }
}

impl Stage<'_> {
    /// Opens a connection and brings it into its state.
    fn set(&mut self, role: Role, v6: bool, scene: Scene) -> Result<Case> {
        let mut case = match scene {
            Scene::SynSent { answered } => self.syn_sent(v6, answered)?,
            Scene::SynReceived { answered } if role == Role::Accepts => self.syn_received(v6, answered)?,
            Scene::SynReceived { .. } => self.crossing(v6)?,
            _ => self.established(role, v6)?,
        };
        (case.role, case.scene) = (role, scene);
        match scene {
            Scene::SynReceived { answered: true } => {
                // The SYN has come through; now nothing more may, whatever is said of other ports.
                self.becomes(&case, scene.name())?;
                self.lose(case.end.port, Some(0), false)?;
            }
            Scene::SynSent { .. } | Scene::SynReceived { .. } => {}
            Scene::Established => {
                self.unread(&mut case)?;
                self.lose(case.end.port, None, true)?;
                self.stack(&case, UNDER_WAY, None, false)?;
            }
            Scene::FinWait1 { answered } => {
                self.unread(&mut case)?;
                self.lose(case.end.port, answered.then_some(0), !answered)?;
                self.shut_stack(&mut case, UNDER_WAY)?;
            }
            Scene::FinWait2 => {
                self.shut_stack(&mut case, 0)?;
                self.becomes(&case, "FinWait2")?;
                self.unread(&mut case)?;
            }
            Scene::CloseWait => {
                self.unread(&mut case)?;
                self.shut_kernel(&mut case)?;
                self.becomes(&case, "CloseWait")?;
                self.lose(case.end.port, None, true)?;
                self.stack(&case, UNDER_WAY, None, false)?;
            }
            Scene::Closing => {
                self.unread(&mut case)?;
                self.lose(case.end.port, None, true)?;
                self.shut_stack(&mut case, UNDER_WAY)?;
                self.becomes(&case, "FinWait1")?;
                self.shut_kernel(&mut case)?;
            }
            Scene::LastAck { answered } => {
                self.unread(&mut case)?;
                self.shut_kernel(&mut case)?;
                self.becomes(&case, "CloseWait")?;
                self.lose(case.end.port, answered.then_some(0), !answered)?;
                self.shut_stack(&mut case, UNDER_WAY)?;
            }
            Scene::TimeWait => {
                self.shut_stack(&mut case, 0)?;
                self.becomes(&case, "FinWait2")?;
                self.unread(&mut case)?;
                self.lose(case.end.port, None, true)?;
                self.shut_kernel(&mut case)?;
            }
        }
        self.becomes(&case, scene.name())?;
        Ok(case)
    }

    fn syn_sent(&mut self, v6: bool, answered: bool) -> Result<Case> {
        let listener = kernel::listen(v6, 0)?;
        let port = listener.local_addr()?.port();
        self.lose(port, answered.then_some(0), !answered)?;
        self.connect(v6, port, None)?;
        // The kernel's end is there once the SYN gets through.
        if answered {
            wait(SOON, "the kernel's half", || Ok(kernel::states_at(port)?.len() > 1))?;
        }
        let end = End::unborn(listener, port);
        Ok(Case { v6, end, ..Case::of(port)? })
    }

    fn syn_received(&mut self, v6: bool, answered: bool) -> Result<Case> {
        let port = self.port();
        self.lose(port, answered.then_some(1), !answered)?;
        let end = End::connect(v6, port, PORT)?;
        Ok(Case { v6, end, ..Case::of(port)? })
    }

    /// Both connect at once; what the stack sends is lost.
    fn crossing(&mut self, v6: bool) -> Result<Case> {
        let (port, own) = (self.port(), self.port());
        self.lose(port, None, true)?;
        self.connect(v6, port, Some(own))?;
        let end = End::connect(v6, port, own)?;
        Ok(Case { v6, end, ..Case::of(port)? })
    }

    /// A connection that has carried bytes both ways.
    fn established(&mut self, role: Role, v6: bool) -> Result<Case> {
        let mut end = match role {
            Role::Accepts => {
                let port = self.port();
                End::connect(v6, port, PORT)?
            }
            Role::Connects => {
                let listener = kernel::listen(v6, 0)?;
                let port = listener.local_addr()?.port();
                self.connect(v6, port, None)?;
                End::unborn(listener, port)
            }
        };
        let port = end.port;
        wait(SOON, "the connection", || Ok(end.pump()? | (state_of(self.host, port)? == "Established")))?;
        wait(SOON, "the program's end", || Ok(self.host.tell(&set(port, FIRST, None, false)).is_ok()))?;
        end.flow.goal = FIRST;
        wait(SOON, "the first bytes", || {
            end.pump()?;
            Ok(end.flow.got.bytes == FIRST && reply(self.host, port)?.got.bytes == FIRST)
        })?;
        Ok(Case { v6, end, ..Case::of(port)? })
    }

    /// The kernel sends what the stack's program does not read.
    fn unread(&mut self, case: &mut Case) -> Result<()> {
        self.stack(case, 0, Some(false), false)?;
        case.end.flow.goal += UNREAD;
        wait(SOON, "bytes for nobody", || {
            case.end.pump()?;
            Ok(case.end.flow.sent.bytes == case.end.flow.goal && kernel::unacked_at(case.end.port)? == 0)
        })
    }

    fn shut_stack(&mut self, case: &mut Case, more: u64) -> Result<()> {
        case.stack_shut = true;
        self.stack(case, more, None, true)
    }

    fn shut_kernel(&mut self, case: &mut Case) -> Result<()> {
        case.kernel_shut = true;
        case.end.flow.closing = true;
        case.end.pump().map(drop)
    }

    fn becomes(&mut self, case: &Case, state: &str) -> Result<()> {
        wait(SOON, state, || Ok(state_of(self.host, case.end.port)? == state))
    }

    fn stack(&mut self, case: &Case, more: u64, reading: Option<bool>, close: bool) -> Result<()> {
        self.host.tell(&set(case.end.port, more, reading, close))
    }

    fn connect(&mut self, v6: bool, port: u16, own: Option<u16>) -> Result<()> {
        let from = own.map(|own| (stack_addr(v6), own).into());
        let (to, settings) = ((kernel_addr(v6), port).into(), Settings::default());
        self.host.call::<u16>(&Request::Connect { id: port.into(), from, to, settings }).map(drop)
    }

    fn lose(&mut self, port: u16, inward: Option<u32>, outward: bool) -> Result<()> {
        self.blocks.retain(|block| block.port != port);
        self.blocks.push(Block { port, inward, outward });
        self.host.tell(&Request::Block(self.blocks.clone()))
    }

    fn port(&mut self) -> u16 {
        self.next_port += 1;
        self.next_port
    }
}

impl Case {
    fn of(port: u16) -> Result<Self> {
        anyhow::ensure!(port != 0, "the kernel gave no port");
        Ok(Self {
            role: Role::Accepts,
            v6: false,
            scene: Scene::Established,
            end: End::nowhere(port),
            stack_shut: false,
            kernel_shut: false,
        })
    }

    fn name(&self) -> String {
        let Self { role, v6, scene, end, .. } = self;
        format!("{} {scene:?}, the stack {role:?}, port {}", if *v6 { "IPv6" } else { "IPv4" }, end.port)
    }

    /// Lets the connection come to its end: each side sends what it still may, then ends.
    fn finish(&mut self, host: &mut Host) -> Result<()> {
        let port = self.end.port;
        wait(LONG, "the handshake", || {
            self.end.pump()?;
            Ok(self.end.is_born() && host.tell(&set(port, 0, Some(true), false)).is_ok())
        })?;
        let more = if self.stack_shut { 0 } else { LAST };
        host.tell(&set(port, more, Some(true), true))?;
        if !self.kernel_shut {
            self.end.flow.goal += LAST;
            // A kernel that has closed answers what comes again with a reset. So it closes when the stack knows that all it
            // has sent has arrived.
            wait(LONG, "the acknowledgement of the stack's FIN", || {
                self.end.pump()?;
                Ok(state_of(host, port)? == "FinWait2")
            })?;
        }
        self.end.flow.closing = true;
        let mut last = None;
        wait(LONG, "the end in order", || {
            self.end.pump()?;
            let stack = reply(host, port)?;
            let over = self.end.flow.is_over() && stack.over;
            anyhow::ensure!(stack.failure.is_none(), "the stack's end: {:?}", stack.failure);
            last = Some(stack);
            Ok(over)
        })
        .with_context(|| format!("the stack's end {last:?}"))?;
        let stack = last.context("no answer")?;
        compare("kernel to stack", &self.end.flow.sent.sum(), &stack.got)?;
        compare("stack to kernel", &stack.sent, &self.end.flow.got.sum())?;
        // The kernel's end has heard that its FIN arrived, and the stack has answered all.
        wait(LONG, "the kernel's end is closed", || {
            let states = kernel::states_at(port)?;
            Ok(states.iter().all(|state| [kernel::LISTEN, kernel::TIME_WAIT].contains(state)))
        })
    }
}

fn set(port: u16, more: u64, reading: Option<bool>, close: bool) -> Request {
    Request::Set { id: port.into(), more, reading, close }
}

fn reply(host: &mut Host, port: u16) -> Result<StreamReply> {
    let mut replies: Vec<StreamReply> = host.call(&Request::Streams(vec![port.into()]))?;
    replies.pop().with_context(|| format!("the stack knows no stream {port}"))
}

fn state_of(host: &mut Host, port: u16) -> Result<String> {
    let replies: Vec<StreamReply> = host.call(&Request::Streams(vec![port.into()]))?;
    Ok(replies.last().map_or_else(String::new, |reply| reply.state.clone()))
}

const SCENES: &[Scene] = &[
    Scene::SynSent { answered: false },
    Scene::SynSent { answered: true },
    Scene::SynReceived { answered: false },
    Scene::SynReceived { answered: true },
    Scene::Established,
    Scene::FinWait1 { answered: false },
    Scene::FinWait1 { answered: true },
    Scene::FinWait2,
    Scene::CloseWait,
    Scene::Closing,
    Scene::LastAck { answered: false },
    Scene::LastAck { answered: true },
    Scene::TimeWait,
];

/// Where the stack accepts.
const PORT: u16 = 80;
/// The kernel's ports of connections it opens; below those it gives out itself.
const FIRST_PORT: u16 = 20_000;
/// Bytes each way before all else.
const FIRST: u64 = 10_000;
/// Bytes that wait at the stack for a program that does not read.
const UNREAD: u64 = 20_000;
/// Bytes the stack sends and nobody acknowledges before the save.
const UNDER_WAY: u64 = 30_000;
/// Bytes each way after the restore.
const LAST: u64 = 100_000;
/// Some retransmissions may have to be waited for.
const LONG: Duration = Duration::from_secs(60);
