//! The gateway: links on both sides, a stack between them, and a control socket.

mod application;
mod config;
mod engine;
mod restoring;
mod run;

pub(crate) use self::config::GatewayConfig;
pub(crate) use self::config::GatewayLink;
pub(crate) use self::config::MediumName;
pub(crate) use self::engine::Engine;
pub(crate) use self::restoring::CloneKind;
pub(crate) use self::restoring::RestoreRequest;
pub(crate) use self::restoring::Span;
pub(crate) use self::restoring::TimeChoice;
pub(crate) use self::run::Start;
pub(crate) use self::run::read_image;
pub(crate) use self::run::run;
pub(crate) use self::run::stop_on_signals;
