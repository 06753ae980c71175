//! `sandbox-demo`: hibernet's gateway between two network devices, and its demonstration.
//!
//! Without a subcommand it runs the demonstration: a thousand kernel TCP connections run through a gateway that is
//! saved to a file, killed, and started again from that file with new keys, twice, and every connection goes on.
//!
//! This is the only crate of the workspace that does I/O. System calls come from rustix; the few it lacks are in
//! `sys.rs`, the only module that may hold unsafe code.

#![deny(unsafe_code)]
#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "the list keeps I/O, clocks and sleeping out of the libraries; this crate is where they belong"
)]

mod cli;
mod clock;
mod commands;
mod control;
mod demo;
mod fault;
mod gateway;
mod link;
mod netlink;
mod netns;
mod offload;
mod peers;
mod runtime;
mod serve;
mod sys;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
