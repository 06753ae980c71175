//! A kernel in a network namespace of its own, a link from it to the stack's namespace, and the stack's process.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use sandbox_demo::parts::{Netlink, calm_kernel, enter_network, switch_off_offloads, within};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::protocol::{HelloReply, HostConfig, Request, SaveReply};

/// A kernel and its link. It belongs to the thread that made it, and its sockets are the kernel's.
pub(super) struct Lab {
    device: String,
    files: tempfile::TempDir,
    images: AtomicU32,
}

/// The stack's process. It is killed with this value.
pub(super) struct Host {
    process: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    pub(super) hello: HelloReply,
}

/// Counters of the kernel that must not move.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Counters {
    pub(super) out_rsts: u64,
    pub(super) estab_resets: u64,
    pub(super) paws_estab: u64,
    pub(super) in_csum_errors: u64,
}

impl Lab {
    /// Moves this thread into a new namespace with one link to the stack's. `sysctls` are this kernel's own.
    pub(super) fn new(sysctls: &[(&str, &str)]) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        enter_network().context("making a network namespace")?;
        calm_kernel();
        for (name, value) in sysctls {
            let path = format!("/proc/sys/net/{name}");
            fs::write(&path, value).with_context(|| format!("writing {value} to {path}"))?;
            let found = fs::read_to_string(&path)?;
            anyhow::ensure!(found.trim() == *value, "{path} is {} after {value} was written", found.trim());
        }
        let device = format!("hib{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let mut own = Netlink::open()?;
        own.add_veth(KERNEL_DEVICE, &device, std::process::id(), MAC, 1500)?;
        switch_off_offloads(KERNEL_DEVICE)?;
        for (addr, prefix) in [(KERNEL_V4, 24), (KERNEL_V6, 64)] {
            own.add_address(KERNEL_DEVICE, addr, prefix)?;
        }
        own.set_up("lo")?;
        own.set_up(KERNEL_DEVICE)?;
        within(&stack_namespace(), || {
            switch_off_offloads(&device)?;
            Netlink::open()?.set_up(&device)
        })?;
        let files = tempfile::tempdir().context("making a directory for images")?;
        Ok(Self { device, files, images: AtomicU32::new(0) })
    }

    /// Starts a stack.
    pub(super) fn start(&self, config: &HostConfig) -> Result<Host> {
        let mut host = self.spawn(None)?;
        host.write(&serde_json::to_vec(config)?)?;
        host.answer::<Value>()?;
        Ok(host)
    }

    /// Starts a stack from an image.
    pub(super) fn restore(&self, image: &Path) -> Result<Host> {
        self.spawn(Some(image))
    }

    /// Saves the stack, ends its process with SIGKILL and goes on with a new one, unless a stream was lost.
    pub(super) fn checkpoint(&self, host: Host) -> Result<(Host, SaveReply)> {
        let (image, saved) = self.save_and_kill(host)?;
        let host = self.restore(&image)?;
        anyhow::ensure!(host.hello.lost.is_empty(), "not kept: {}", host.hello.lost.join(", "));
        anyhow::ensure!(host.hello.parent == saved.generation, "another generation was restored");
        Ok((host, saved))
    }

    /// Saves the stack and ends its process with SIGKILL.
    pub(super) fn save_and_kill(&self, mut host: Host) -> Result<(PathBuf, SaveReply)> {
        let image = self.files.path().join(format!("{}.image", self.images.fetch_add(1, Ordering::Relaxed)));
        let saved = host.call(&Request::Save(image.clone()))?;
        host.process.kill().context("killing the stack")?;
        host.process.wait().context("waiting for the stack's end")?;
        Ok((image, saved))
    }

    fn spawn(&self, image: Option<&Path>) -> Result<Host> {
        let mut command = Command::new("/proc/self/exe");
        command.args(["host", "--parent", &std::process::id().to_string()]);
        command.args(["--link", &format!("{}@{}", self.device, stack_namespace().display())]);
        if let Some(image) = image {
            command.arg("--image").arg(image);
        }
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("starting the stack")?;
        let requests = process.stdin.take().context("the stack has no standard input")?;
        let answers = BufReader::new(process.stdout.take().context("the stack has no standard output")?);
        let mut host = Host { process, requests, answers, hello: HelloReply::default() };
        host.hello = host.answer()?;
        Ok(host)
    }
}

impl Host {
    /// Asks the process something.
    pub(super) fn call<T: DeserializeOwned>(&mut self, request: &Request) -> Result<T> {
        self.write(&serde_json::to_vec(request)?)?;
        self.answer().with_context(|| format!("{request:?}"))
    }

    /// Tells the process something.
    pub(super) fn tell(&mut self, request: &Request) -> Result<()> {
        self.call::<Value>(request).map(drop)
    }

    fn write(&mut self, line: &[u8]) -> Result<()> {
        self.requests.write_all(&[line, b"\n"].concat()).context("the stack is gone")
    }

    fn answer<T: DeserializeOwned>(&mut self) -> Result<T> {
        let mut line = String::new();
        let read = self.answers.read_line(&mut line).context("hearing the stack")?;
        anyhow::ensure!(read > 0, "the stack's process ended; its own message is above");
        let answer: Result<Value, String> = serde_json::from_str(&line).context("the stack's answer")?;
        serde_json::from_value(answer.map_err(anyhow::Error::msg)?).context("the stack's answer")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

impl Counters {
    /// Those of this thread's namespace.
    pub(super) fn read() -> Result<Self> {
        let net =
            |file: &str| fs::read_to_string(format!("/proc/thread-self/net/{file}")).context("the kernel's counters");
        let (snmp, netstat) = (net("snmp")?, net("netstat")?);
        let value = |text: &str, group: &str, name: &str| -> Result<u64> {
            let mut rows = text.lines().filter_map(|line| line.strip_prefix(group));
            let (names, values) = rows.next().zip(rows.next()).with_context(|| format!("no group {group}"))?;
            let mut pairs = names.split_whitespace().zip(values.split_whitespace());
            let (_, value) = pairs.find(|(found, _)| *found == name).with_context(|| format!("no counter {name}"))?;
            value.parse().context("a counter")
        };
        Ok(Self {
            out_rsts: value(&snmp, "Tcp:", "OutRsts")?,
            estab_resets: value(&snmp, "Tcp:", "EstabResets")?,
            paws_estab: value(&netstat, "TcpExt:", "PAWSEstab")?,
            in_csum_errors: value(&snmp, "Tcp:", "InCsumErrors")?,
        })
    }

    /// Fails unless all are zero.
    pub(super) fn must_be_zero() -> Result<()> {
        let found = Self::read()?;
        let zero = Self { out_rsts: 0, estab_resets: 0, paws_estab: 0, in_csum_errors: 0 };
        anyhow::ensure!(found == zero, "the kernel counted {found:?}");
        Ok(())
    }
}

impl HostConfig {
    /// The stack that is the kernel's neighbour; open unless told otherwise.
    pub(super) fn neighbour() -> Self {
        let addrs = ["10.0.0.2/24", "fd00::2/64"].iter().filter_map(|addr| addr.parse().ok()).collect();
        Self { addrs, gateway: KERNEL_V4, rules: None, sysctls: Vec::new(), capacity: 65_536 }
    }
}

/// Waits until something is so, and fails after `limit`: a limit that only what hangs will reach.
pub(super) fn wait(limit: Duration, what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + limit;
    while !is_so()? {
        anyhow::ensure!(Instant::now() < end, "{what}: not within {} s", limit.as_secs());
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// The namespace of the stack's devices: that of this process's first thread.
fn stack_namespace() -> PathBuf {
    PathBuf::from(format!("/proc/{}/ns/net", std::process::id()))
}

/// The stack's address.
pub(super) const fn stack_addr(v6: bool) -> IpAddr {
    if v6 { IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2)) } else { IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2)) }
}

/// The kernel's address.
pub(super) const fn kernel_addr(v6: bool) -> IpAddr {
    if v6 { KERNEL_V6 } else { KERNEL_V4 }
}

const KERNEL_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const KERNEL_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1));
/// The kernel's device besides `lo`.
pub(super) const KERNEL_DEVICE: &str = "eth0";
/// The hardware address of both ends of a link.
const MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x05];
/// For what takes milliseconds.
pub(super) const SOON: Duration = Duration::from_secs(20);
