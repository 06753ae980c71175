//! What a gateway's restore brings back, and what it cannot: the host's sockets are gone with the process that had them.

use std::time::Duration;

use hibernet_netstack::Supplied;
use hibernet_netstack::TcpStream as StreamId;
use hibernet_snapshot::codec;
use hibernet_snapshot::image::Limits;
use serde::Serialize;
use tokio::time::sleep;

use super::KIND;
use super::Saved;
use crate::control::RunState;
use crate::fault::Fault;
use crate::gateway::Engine;
use crate::gateway::RestoreRequest;
use crate::gateway::dhcp;
use crate::gateway::dns;
use crate::runtime::Net;

/// What did not survive. The guest is told of connections as soon as its link is up.
#[derive(Debug, Serialize)]
pub(super) struct Lost {
    /// Connections whose other end was a socket of the host, by their ends.
    resets: Vec<String>,
    /// Flows of UDP forwards: the next datagram opens another.
    udp_flows: usize,
    /// DNS questions without an answer: the guest asks again.
    dns_questions: u32,
    #[serde(skip)]
    streams: Vec<StreamId>,
}

impl Lost {
    pub(super) fn streams(&self) -> Vec<StreamId> {
        self.streams.clone()
    }

    /// For people: a line each, if there is anything.
    pub(super) fn text(&self) -> String {
        let Self { resets, udp_flows, dns_questions, streams: _ } = self;
        let mut text = String::new();
        for reset in resets {
            text.push_str(&format!("  reset: {reset}: its socket of the host is gone\n"));
        }
        if *udp_flows > 0 {
            text.push_str(&format!("  {udp_flows} UDP flows of forwards begin anew\n"));
        }
        if *dns_questions > 0 {
            text.push_str(&format!("  {dns_questions} DNS questions were not answered; the guest asks again\n"));
        }
        text
    }
}

/// The stack and the gateway's state from an image.
pub(super) fn restored(request: &RestoreRequest) -> anyhow::Result<(Engine, Saved)> {
    let mut engine = Engine::restored(request, Supplied::default())?;
    let foreign = || {
        let what = format!("the image {} holds no guest's gateway", request.path.display());
        Fault::new(what, "give one that was saved from `sandbox-demo gateway`; others are for `restore` and `serve`")
    };
    let state = engine.application_state().ok_or_else(foreign)?;
    let saved: Saved = codec::decode(&state, &Limits::default()).map_err(|_| foreign())?;
    if saved.kind != KIND {
        return Err(foreign().into());
    }
    Ok((engine, saved))
}

/// Tells what of the stack's sockets goes on from what does not, and closes UDP sockets nobody will read any more.
pub(super) fn sort(engine: &mut Engine, dns_questions: u32) -> Lost {
    let (stack, _) = engine.stack();
    let streams = stack.tcp_streams();
    let ends = |id: &StreamId| {
        let (own, peer) = (stack.tcp_local_addr(*id)?, stack.tcp_peer_addr(*id)?);
        Some(format!("{peer} with {own}"))
    };
    let resets = streams.iter().filter_map(ends).collect();
    let is_of_service = |port| matches!(port, dhcp::SERVER_PORT | dns::PORT);
    let sockets: Vec<_> = stack.udp_sockets().collect();
    let orphans =
        sockets.into_iter().filter(|id| !stack.udp_local_addr(*id).is_some_and(|at| is_of_service(at.port())));
    let orphans: Vec<_> = orphans.collect();
    for id in &orphans {
        stack.udp_close(*id);
    }
    Lost { resets, udp_flows: orphans.len(), dns_questions, streams }
}

/// Resets what has lost its other end, once the guest can hear it: traffic passes and its link is up.
pub(super) async fn reset_when_up(net: Net, link: String, streams: Vec<StreamId>) {
    if streams.is_empty() {
        return;
    }
    while !net.with_engine(|engine| engine.state() == RunState::Running && engine.is_up(&link)) {
        sleep(LOOK).await;
    }
    net.with_engine(|engine| {
        let (stack, now) = engine.stack();
        for stream in streams {
            stack.tcp_abort(stream, now);
        }
    });
}

/// How often it is looked whether the guest is there.
const LOOK: Duration = Duration::from_millis(20);
