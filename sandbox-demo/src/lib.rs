//! `sandbox-demo`: hibernet's gateway between two network devices, and its demonstration.
//!
//! Without a subcommand it runs the demonstration: a thousand kernel TCP connections run through a gateway that is
//! saved to a file, killed, and started again from that file with new keys, twice, and every connection goes on.
//!
//! This is the only crate of the workspace that does I/O. System calls come from rustix; the few it lacks are in
//! `sys.rs`, which with the allocator of `huge_pages.rs` is all that may hold unsafe code. [`parts`] is what other programs with kernel peers are made of.

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
mod egress;
mod fault;
mod gateway;
mod huge_pages;
mod image_file;
mod link;
mod netlink;
mod netns;
mod offload;
mod peers;
mod runtime;
mod serve;
mod sys;
mod vm;

use std::process::ExitCode;

/// Runs the program with the arguments of this process.
pub fn main() -> ExitCode {
    cli::main()
}

/// Namespaces, devices and links, for programs that put a stack between kernels.
pub mod parts {
    pub use crate::clock::monotonic;
    pub use crate::fault::{Fault, raise_file_limit};
    pub use crate::huge_pages::HugePages;
    pub use crate::link::{Link, LinkCounts, LinkSpec};
    pub use crate::netlink::{Device, Netlink};
    pub use crate::netns::{Rights, calm_kernel, die_with, enter_network, enter_router, silence_kernel, within};
    pub use crate::offload::switch_off_offloads;
}
