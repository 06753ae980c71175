//! Asking a running gateway.

use std::io::ErrorKind;
use std::io::Read;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use serde::de::DeserializeOwned;

use super::http;
use super::protocol::Request;
use crate::fault::Fault;

/// A connection to a gateway's control socket.
pub(crate) struct ControlClient {
    stream: UnixStream,
}

impl ControlClient {
    /// Connects to the gateway that listens on `path`.
    pub(crate) fn connect(path: &Path) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(path).map_err(|error| connect_fault(path, &error))?;
        stream.set_read_timeout(Some(PATIENCE)).context("setting the control socket's timeout")?;
        stream.set_write_timeout(Some(PATIENCE)).context("setting the control socket's timeout")?;
        Ok(Self { stream })
    }

    /// Sends one request and waits for its answer.
    pub(crate) fn call<T: DeserializeOwned>(&mut self, request: &Request) -> anyhow::Result<T> {
        self.stream.write_all(&http::request(request)?).context("asking the gateway")?;
        let mut answer = Vec::new();
        let mut buffer = [0; 16 * 1024];
        loop {
            if let Some(result) = http::read_answer(&answer).context("reading the gateway's answer")? {
                let value = result.map_err(|refused| anyhow::anyhow!(refused.error))?;
                return serde_json::from_value(value).context("reading the gateway's answer");
            }
            let read = self.stream.read(&mut buffer).context("waiting for the gateway's answer")?;
            anyhow::ensure!(read > 0, "the gateway closed its control socket without an answer");
            answer.extend_from_slice(buffer.get(..read).unwrap_or_default());
        }
    }
}

fn connect_fault(path: &Path, error: &std::io::Error) -> Fault {
    let remedy = match error.kind() {
        ErrorKind::NotFound => "start one with `sandbox-demo run`, or name its socket with --control",
        ErrorKind::ConnectionRefused => "its gateway is gone: start it again with `sandbox-demo run` or `restore`",
        ErrorKind::PermissionDenied => "only the user who started the gateway may ask it",
        _ => "name the socket of a running gateway with --control",
    };
    Fault::new(format!("no gateway answers at {}: {error}", path.display()), remedy)
}

/// A gateway answers between two bursts of packets; only a save of a huge table to a slow disk takes seconds.
const PATIENCE: Duration = Duration::from_secs(30);
