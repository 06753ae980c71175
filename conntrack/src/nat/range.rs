//! What a NAT rule allows.

use core::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Addresses and ports a rule maps to (`struct nf_nat_range2`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct NatRange {
    /// First and last address; `None` leaves the address.
    pub addrs: Option<(IpAddr, IpAddr)>,
    /// First and last port or ICMP identifier; `None` leaves it to the search.
    pub ports: Option<(u16, u16)>,
    /// Search a port from a random start on, even where the flow's own is free.
    pub random: bool,
    /// Never try the port the flow came with, always draw.
    pub fully_random: bool,
    /// One client keeps one address of the range.
    pub persistent: bool,
    /// The address was chosen by masquerade: the flow goes when the link loses it.
    pub masquerade: bool,
}

impl NatRange {
    /// One address, ports as they come.
    pub const fn address(address: IpAddr) -> Self {
        Self {
            addrs: Some((address, address)),
            ports: None,
            random: false,
            fully_random: false,
            persistent: false,
            masquerade: false,
        }
    }

    pub(crate) fn allows(&self, address: IpAddr, port: u16) -> bool {
        self.addrs.is_none_or(|(first, last)| (first..=last).contains(&address)) && self.allows_port(port)
    }

    pub(crate) fn allows_port(&self, port: u16) -> bool {
        self.ports.is_none_or(|(first, last)| (first..=last).contains(&port))
    }
}
