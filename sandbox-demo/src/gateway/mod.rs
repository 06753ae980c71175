//! The gateway: links on both sides, a stack between them, and a control socket.

mod application;
mod config;
mod engine;
mod run;

pub(crate) use self::config::GatewayConfig;
pub(crate) use self::config::GatewayLink;
pub(crate) use self::config::MediumName;
pub(crate) use self::engine::Engine;
pub(crate) use self::run::Place;
pub(crate) use self::run::Start;
pub(crate) use self::run::run;
