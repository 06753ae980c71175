//! The control socket of a running gateway: HTTP/1.1 with JSON over a unix socket. `docs/control.md` describes it.

mod client;
mod http;
mod protocol;
mod server;
mod tasks;

pub(crate) use self::client::ControlClient;
pub(crate) use self::http::Refused;
pub(crate) use self::protocol::After;
pub(crate) use self::protocol::CanaryReply;
pub(crate) use self::protocol::DropCount;
pub(crate) use self::protocol::EgressReply;
pub(crate) use self::protocol::EventReply;
pub(crate) use self::protocol::EventsReply;
pub(crate) use self::protocol::HookReply;
pub(crate) use self::protocol::HooksReply;
pub(crate) use self::protocol::KeysReply;
pub(crate) use self::protocol::LinkReply;
pub(crate) use self::protocol::ListReply;
pub(crate) use self::protocol::NeighbourReply;
pub(crate) use self::protocol::NeighboursReply;
pub(crate) use self::protocol::PauseReply;
pub(crate) use self::protocol::PolicyReply;
pub(crate) use self::protocol::Request;
pub(crate) use self::protocol::RestoreSummary;
pub(crate) use self::protocol::RunState;
pub(crate) use self::protocol::SaveForm;
pub(crate) use self::protocol::SaveKind;
pub(crate) use self::protocol::SaveReply;
pub(crate) use self::protocol::StatsReply;
pub(crate) use self::protocol::StatusReply;
pub(crate) use self::server::Answer;
pub(crate) use self::server::ControlServer;
pub(crate) use self::tasks::ControlTasks;
