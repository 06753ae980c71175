//! Ethernet links: frames, ARP, neighbour discovery and the neighbour table.
//!
//! Everything above is IP. A frame loses its header where it comes in ([`Stack::accept_frame`](crate::Stack)) and a datagram
//! gets one where it leaves, forwarded and local traffic alike. ARP passes no hook; the messages of neighbour discovery are
//! ICMPv6 and pass PREROUTING and INPUT, or OUTPUT and POSTROUTING, untracked, so that rules see them.
//!
//! As the kernel by default: requests for any address of this host are answered (`arp_ignore` 0), announcements update
//! neighbours that are known and make none (`arp_accept` 0), a claim to an own address changes nothing, and own
//! addresses are used without a search for duplicates (as with `nodad`). Router solicitations, router advertisements
//! and redirects are ignored: this is a router, and none that advertises itself. Group membership is not reported (no
//! MLD, no IGMP).

mod aged;
mod arp;
mod frame;
mod mac;
mod ndp;
mod neighbours;
mod saved;
mod station;
#[cfg(test)]
mod tests;

pub(crate) use self::frame::HEADER;
pub use self::mac::{MacAddr, MacAddrError};
pub use self::neighbours::NeighbourState;
pub(crate) use self::neighbours::Neighbours;
pub(crate) use self::saved::{CheckedNeighbours, NeighboursSection};
pub use self::station::NeighbourEntry;
pub(crate) use self::station::is_about_neighbours;
