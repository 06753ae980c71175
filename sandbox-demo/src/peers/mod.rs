//! The peers: processes in namespaces of their own whose kernels speak TCP, UDP and ICMP through the gateway.
//!
//! They know nothing of the gateway. They send numbered data, check what arrives, and report.

mod counters;
mod handle;
mod ping;
mod protocol;
mod serve;
mod stream;
mod tcp;
mod udp;

pub(crate) use self::counters::KernelCounters;
pub(crate) use self::handle::Peer;
pub(crate) use self::protocol::DatagramPlan;
pub(crate) use self::protocol::DatagramReport;
pub(crate) use self::protocol::PeerReport;
pub(crate) use self::protocol::PeerRequest;
pub(crate) use self::protocol::Progress;
pub(crate) use self::protocol::StreamCounts;
pub(crate) use self::protocol::StreamPlan;
pub(crate) use self::protocol::StreamReport;
pub(crate) use self::serve::FILES_NEEDED;
pub(crate) use self::serve::serve;
pub(crate) use self::stream::Passed;
pub(crate) use self::stream::Pattern;
pub(crate) use self::stream::Sender;
