//! After a restore: the host's ends of the guest's connections ended with the process that had them.

use std::net::SocketAddr;

use hibernet_netstack::TcpStream as StreamId;

use crate::gateway::Engine;

/// A stream that came out of an image, whose other end was a host socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RestoredStream {
    pub(crate) id: StreamId,
    /// The guest's end.
    pub(crate) guest: SocketAddr,
    /// Where it was connected to.
    pub(crate) server: SocketAddr,
}

/// Resets the guest's streams whose host socket is not there any more, and has the restore's report say so.
///
/// `reattach` is asked first: for which stream it brings the host's socket back (TCP_REPAIR), that one is kept, and comes
/// back to be spliced again ([`Egress::adopt`](super::Egress::adopt)). To be called before the stack is resumed: the resets are then the first frames the guest gets. A guest
/// that does not take one (its acknowledgements were under way) is reset by its next segment, as the stack knows the
/// connection no more.
pub(crate) fn end_lost_streams(
    engine: &mut Engine,
    mut reattach: impl FnMut(RestoredStream) -> Option<std::net::TcpStream>,
) -> Vec<(RestoredStream, std::net::TcpStream)> {
    let (mut ended, mut kept) = (Vec::new(), Vec::new());
    let (stack, now) = engine.stack();
    for id in stack.tcp_streams() {
        let ends = stack.tcp_peer_addr(id).zip(stack.tcp_local_addr(id));
        if let Some((guest, server)) = ends {
            let stream = RestoredStream { id, guest, server };
            if let Some(host) = reattach(stream) {
                kept.push((stream, host));
                continue;
            }
            ended.push(format!("{guest} to {server}: its host socket ended with the saved process"));
        }
        stack.tcp_abort(id, now);
    }
    if let Some(summary) = engine.summary_mut() {
        summary.lose_streams(ended);
    }
    kept
}
