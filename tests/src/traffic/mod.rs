//! Random but repeatable traffic through whole stacks, and what can be seen of it.
//!
//! A [`Gateway`] stands between hosts that open TCP connections and carry them on, send datagrams, ping each other, reach
//! services behind and on the gateway, and send junk; in IPv4 and IPv6, masqueraded (fully random too), translated inward,
//! routed and local. A [`Trace`] is one such run, written down with the numbers that the stack chose for the wire; it can be
//! played again under other keys, with reseeds and restores in between, and [`difference`] says what came out differently.
//!
//! It needs no operating system: frames, time and chance are all from a seed.

mod dice;
mod gateway;
mod hosts;
mod keys;
mod network;
mod openings;
mod records;
mod sample;
mod seen;
mod session;
mod trace;

pub use gateway::{GENERATION, Gateway, START, restored};
pub use keys::{Keys, tuple_hash};
pub use network::{Frame, Step};
pub use records::{Record, body, records_at, reframed, with_body, with_records};
pub use sample::{play_line, sample};
pub use seen::{Seen, difference};
pub use session::Session;
pub use trace::{Meddling, Trace};
