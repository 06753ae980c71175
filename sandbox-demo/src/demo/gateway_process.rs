//! A gateway process under the supervisor's hand.

use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;

use super::watch::Watch;
use crate::control::ControlClient;
use crate::control::Request;
use crate::link::LinkSpec;

/// A running gateway. It is killed with this value.
pub(super) struct GatewayProcess {
    process: Child,
    client: ControlClient,
}

impl GatewayProcess {
    /// Starts a gateway with an empty table.
    pub(super) fn fresh(config: &Path, links: &[LinkSpec], control: PathBuf, watch: &Watch) -> anyhow::Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        command.arg("run").arg("--config").arg(config);
        Self::start(command, links, control, watch)
    }

    /// Starts a gateway from an image, held. It is told the image's path and the devices' names, nothing else.
    pub(super) fn restored(image: &Path, links: &[LinkSpec], control: PathBuf, watch: &Watch) -> anyhow::Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        command.arg("restore").arg("--hold").arg(image);
        Self::start(command, links, control, watch)
    }

    /// Asks it something.
    pub(super) fn call<T: serde::de::DeserializeOwned>(&mut self, request: &Request) -> anyhow::Result<T> {
        self.client.call(request)
    }

    /// Lets a held gateway go on.
    pub(super) fn resume(&mut self) -> anyhow::Result<()> {
        self.call::<Value>(&Request::Resume).map(drop)
    }

    /// Ends it with SIGKILL and waits until it is gone.
    pub(super) fn kill(mut self) -> anyhow::Result<()> {
        self.process.kill().context("killing the gateway")?;
        self.process.wait().context("waiting for the gateway's end").map(drop)
    }

    fn start(mut command: Command, links: &[LinkSpec], control: PathBuf, watch: &Watch) -> anyhow::Result<Self> {
        for link in links {
            command.arg("--link").arg(link.to_string());
        }
        command.arg("--control").arg(&control).arg("--parent").arg(std::process::id().to_string());
        let mut process =
            command.stdin(Stdio::null()).stdout(Stdio::null()).env_clear().spawn().context("starting the gateway")?;
        let mut client = None;
        let answered = watch.wait(START_TIME, || {
            if let Some(status) = process.try_wait().context("watching the gateway")? {
                anyhow::bail!("the gateway ended at once ({status}); its own message is above");
            }
            client = ControlClient::connect(&control).ok();
            Ok(client.is_some())
        });
        match (answered, client) {
            (Ok(true), Some(client)) => Ok(Self { process, client }),
            (answered, _) => {
                drop(process.kill());
                drop(process.wait());
                answered?;
                anyhow::bail!("the gateway did not answer within {} s", START_TIME.as_secs())
            }
        }
    }
}

impl Drop for GatewayProcess {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// A gateway that takes longer to listen is broken, however busy the machine.
const START_TIME: Duration = Duration::from_secs(10);
