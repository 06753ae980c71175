//! The supervisor's end of a peer.

use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::process::Child;
use std::process::ChildStdin;
use std::process::ChildStdout;
use std::process::Command;
use std::process::Stdio;

use anyhow::Context;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::counters::KernelCounters;
use super::protocol::PeerRequest;

/// A running peer. It ends with this value.
pub(crate) struct Peer {
    name: &'static str,
    process: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Peer {
    /// Starts a peer process; it is in its own network namespace when this returns.
    pub(crate) fn start(name: &'static str) -> anyhow::Result<Self> {
        let mut process = Command::new("/proc/self/exe")
            .args(["peer", "--parent", &std::process::id().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting the {name} peer"))?;
        let requests = process.stdin.take().context("the peer has no standard input")?;
        let answers = BufReader::new(process.stdout.take().context("the peer has no standard output")?);
        let mut peer = Self { name, process, requests, answers };
        peer.answer::<Value>()?;
        Ok(peer)
    }

    /// Its process id, by which its network namespace is named.
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Tells it something and waits for its answer.
    pub(crate) fn call<T: DeserializeOwned>(&mut self, request: &PeerRequest) -> anyhow::Result<T> {
        self.tell(request)?;
        self.answer()
    }

    /// Tells it something whose answer holds nothing.
    pub(crate) fn run(&mut self, request: &PeerRequest) -> anyhow::Result<()> {
        self.call::<Value>(request).map(drop)
    }

    /// What its kernel has counted.
    pub(crate) fn counters(&mut self) -> anyhow::Result<KernelCounters> {
        self.call(&PeerRequest::Counters)
    }

    fn tell(&mut self, request: &PeerRequest) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(request).context("writing to a peer")?;
        line.push(b'\n');
        self.requests.write_all(&line).with_context(|| format!("the {} peer is gone", self.name))
    }

    fn answer<T: DeserializeOwned>(&mut self) -> anyhow::Result<T> {
        let mut line = String::new();
        let read = self.answers.read_line(&mut line).with_context(|| format!("hearing the {} peer", self.name))?;
        anyhow::ensure!(read > 0, "the {} peer ended; its own message is above", self.name);
        let answer: Result<Value, String> = serde_json::from_str(&line).context("reading a peer's answer")?;
        let value = answer.map_err(|error| anyhow::anyhow!("the {} peer: {error}", self.name))?;
        serde_json::from_value(value).context("reading a peer's answer")
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}
