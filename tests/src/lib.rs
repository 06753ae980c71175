//! Cross-crate tests of hibernet, and the runner that plays recorded kernel scenarios through the stack.
//!
//! A scenario (`scenarios/kernel/NAME.json`) is a list of steps, mostly packets put into one of two links of a router;
//! beside it lie the records of what a Linux kernel did with each (`NAME.expected.jsonl`). The runner plays the steps on a
//! simulated clock and writes records of the same form.
//!
//! - [`notation`]: the packet notation, to bytes and back.
//! - [`scenario`]: the scenario files.
//! - [`variables`]: values captured from one packet and used in a later one.
//! - [`record`]: one record a step.
//! - [`compare`]: recorded answers against ours.
//! - [`corpus`]: where the recorded scenarios lie.
//! - [`play`]: a scenario through the stack.
//! - [`check`]: whether it passed.
//!
//! Apart from all that, [`golden`] has images of every format, and [`traffic`] sends random traffic through whole stacks, for the tests of save and restore.
//!
//! Not here: any way to ask the kernel. That is `oracle/oracle.py`, which recorded the answers.

pub mod check;
pub mod compare;
pub mod corpus;
pub mod golden;
pub mod notation;
pub mod play;
pub mod record;
pub mod scenario;
pub mod traffic;
pub mod variables;
