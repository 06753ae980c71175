//! The gateway: links on both sides, a stack between them, and a control socket.

mod application;
mod config;
mod dhcp;
mod dns;
mod engine;
mod events;
mod forward;
mod guest;
mod guest_rules;
mod images;
mod restoring;
mod run;
mod splice;

pub(crate) use self::application::has_application;
pub(crate) use self::config::GatewayConfig;
pub(crate) use self::config::GatewayLink;
pub(crate) use self::config::MediumName;
pub(crate) use self::engine::Engine;
pub(crate) use self::forward::Forward;
pub(crate) use self::guest::EgressChoice;
pub(crate) use self::guest::GuestOptions;
pub(crate) use self::guest::GuestPlace;
pub(crate) use self::guest::GuestStart;
pub(crate) use self::guest::Resolvers;
pub(crate) use self::guest::serve_guest;
pub(crate) use self::images::ImageFiles;
pub(crate) use self::images::threads;
pub(crate) use self::restoring::CloneKind;
pub(crate) use self::restoring::RestoreRequest;
pub(crate) use self::restoring::SAVED_AT;
pub(crate) use self::restoring::Span;
pub(crate) use self::restoring::TimeChoice;
pub(crate) use self::run::Start;
pub(crate) use self::run::run;
pub(crate) use self::run::stop_on_signals;
