//! The gateway: links on both sides, a stack between them, and a control socket.

mod application;
mod config;
mod engine;
mod images;
mod run;

pub(crate) use self::config::GatewayConfig;
pub(crate) use self::config::GatewayLink;
pub(crate) use self::config::MediumName;
pub(crate) use self::engine::Engine;
pub(crate) use self::images::ImageFiles;
pub(crate) use self::images::threads;
pub(crate) use self::run::Start;
pub(crate) use self::run::run;
