//! A stream of the stack and a socket of the host, each other's ends.

use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::TcpStream as HostStream;

use crate::runtime::TcpStream;

/// Carries bytes both ways until both sides have ended or one breaks. An end of one side is an end at the other, and the
/// other way goes on; a break is a break at both. At most [`BUFFER`] bytes wait in between each way: who sends faster than
/// the other takes is held up by his own window.
pub(crate) async fn splice(mut inside: TcpStream, mut host: HostStream) {
    // Small answers are not to wait for large ones; the stack decides by itself.
    drop(host.set_nodelay(true));
    if copy_bidirectional_with_sizes(&mut inside, &mut host, BUFFER, BUFFER).await.is_err() {
        inside.abort();
        drop(host.set_zero_linger());
    }
}

/// Bytes that wait in between, each way.
const BUFFER: usize = 64 * 1024;
