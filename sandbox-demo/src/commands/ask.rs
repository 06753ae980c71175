//! The subcommands that ask a running gateway.

use std::fmt::Write;
use std::path::Path;
use std::path::PathBuf;

use anyhow::Context;

use super::print;
use crate::control::After;
use crate::control::ControlClient;
use crate::control::EgressReply;
use crate::control::EventsReply;
use crate::control::HooksReply;
use crate::control::ListReply;
use crate::control::NeighboursReply;
use crate::control::PauseReply;
use crate::control::Request;
use crate::control::RestoreSummary;
use crate::control::RunState;
use crate::control::SaveForm;
use crate::control::SaveKind;
use crate::control::SaveReply;
use crate::control::StatsReply;
use crate::control::StatusReply;
use crate::gateway::RestoreRequest;

pub(crate) fn save(control: &Path, image: &Path, hold: bool, form: SaveForm, json: bool) -> anyhow::Result<()> {
    let mut gateway = ControlClient::connect(control)?;
    let path = std::path::absolute(image).with_context(|| format!("the path {}", image.display()))?;
    let after = if hold { After::Hold } else { After::GoOn };
    let absolute = |path: PathBuf| std::path::absolute(&path).with_context(|| format!("the path {}", path.display()));
    let seal_key = form.seal_key.map(absolute).transpose()?;
    let what = if form.kind == SaveKind::Delta { "changed flows" } else { "flows" };
    let saved: SaveReply = gateway.call(&Request::Save { path, after, form: SaveForm { seal_key, ..form } })?;
    print(json, &saved, || {
        format!(
            "{} {what} saved to {}{} as generation {}: {} bytes, packets waited {} ms, on disk after {} ms, \
             SHA-256 {}",
            saved.flows,
            saved.path.display(),
            if saved.sealed { ", sealed," } else { "" },
            saved.generation,
            saved.bytes,
            saved.pause_ms,
            saved.save_ms,
            saved.sha256
        )
    })
}

pub(crate) fn resume(control: &Path, json: bool) -> anyhow::Result<()> {
    let resumed: StatusReply = ControlClient::connect(control)?.call(&Request::Resume)?;
    print(json, &resumed, String::new)
}

pub(crate) fn pause(control: &Path, json: bool) -> anyhow::Result<()> {
    let paused: PauseReply = ControlClient::connect(control)?.call(&Request::Pause)?;
    print(json, &paused, || format!("paused; {} frames that waited on the links were taken in", paused.drained))
}

pub(crate) fn status(control: &Path, json: bool) -> anyhow::Result<()> {
    let status: StatusReply = ControlClient::connect(control)?.call(&Request::Status)?;
    print(json, &status, || {
        let state = match status.state {
            RunState::Running => "running",
            RunState::Paused => "paused",
        };
        let mut text = format!("{state}; process {}, {} flows\n", status.pid, status.flows);
        if let Some(restored) = &status.restored {
            text.push_str(&restored.text());
        }
        text
    })
}

pub(crate) fn load(control: &Path, mut request: RestoreRequest, json: bool) -> anyhow::Result<()> {
    for path in request.deltas.iter_mut().chain(request.seal_key.as_mut()) {
        *path = std::path::absolute(&path).with_context(|| format!("the path {}", path.display()))?;
    }
    request.path =
        std::path::absolute(&request.path).with_context(|| format!("the path {}", request.path.display()))?;
    let summary: RestoreSummary = ControlClient::connect(control)?.call(&Request::Restore(request))?;
    print(json, &summary, || summary.text())
}

pub(crate) fn list(control: &Path, json: bool) -> anyhow::Result<()> {
    let list: ListReply = ControlClient::connect(control)?.call(&Request::List)?;
    print(json, &list, || list.flows.join("\n"))
}

pub(crate) fn neighbours(control: &Path, json: bool) -> anyhow::Result<()> {
    let known: NeighboursReply = ControlClient::connect(control)?.call(&Request::Neighbours)?;
    print(json, &known, || known.neighbours.iter().map(|neighbour| format!("{}\n", neighbour.text)).collect())
}

pub(crate) fn hooks(control: &Path, json: bool) -> anyhow::Result<()> {
    let hooks: HooksReply = ControlClient::connect(control)?.call(&Request::Hooks)?;
    print(json, &hooks, || hooks.rows.iter().map(|row| format!("{}\n", row.text)).collect())
}

pub(crate) fn events(control: &Path, after: Option<u64>, json: bool) -> anyhow::Result<()> {
    let found: EventsReply = ControlClient::connect(control)?.call(&Request::Events { after })?;
    print(json, &found, || {
        let mut text: String =
            found.events.iter().map(|event| format!("{:>6} {}\n", event.number, event.text)).collect();
        if found.lost > 0 {
            text.push_str(&format!("{} older ones are not kept any more\n", found.lost));
        }
        text
    })
}

pub(crate) fn egress(control: &Path, json: bool) -> anyhow::Result<()> {
    let found: EgressReply = ControlClient::connect(control)?.call(&Request::Egress)?;
    print(json, &found, || {
        let EgressReply { tcp, udp, echo, policy } = &found;
        let policy = policy.as_deref().unwrap_or("     as it was saved\n");
        format!("host sockets: {tcp} of TCP, {udp} of UDP, {echo} of pings\negress policy:\n{policy}")
    })
}

pub(crate) fn stats(control: &Path, json: bool) -> anyhow::Result<()> {
    let stats: StatsReply = ControlClient::connect(control)?.call(&Request::Stats)?;
    print(json, &stats, || {
        let mut text = String::new();
        for link in &stats.links {
            let _ = writeln!(
                text,
                "link {}: {} received, {} sent, {} overrun, {} unreadable, {} not sent",
                link.name, link.received, link.sent, link.receive_overruns, link.unreadable, link.send_drops
            );
            if link.connects > 0 {
                let _ = writeln!(
                    text,
                    "link {}: peer came {} times, went {} times",
                    link.name, link.connects, link.disconnects
                );
            }
        }
        for drop in &stats.drops {
            let _ = writeln!(text, "drop {:>3} {:<24} {}", drop.number, drop.reason, drop.count);
        }
        text
    })
}
