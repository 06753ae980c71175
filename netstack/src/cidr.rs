//! An address with the length of its network's prefix.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::str::FromStr;

use hibernet_snapshot::{Invalid, Snapshot};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

/// An address and a prefix length: a network, or an address on a link with the network it belongs to.
///
/// Host bits are kept (`10.0.0.1/24` is the address of a link); [`Cidr::contains`] looks at the prefix alone.
/// In JSON it is a string; without a length it is a single address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Snapshot)]
#[snapshot(validate = prefix_fits)]
pub struct Cidr {
    #[snapshot(saved)]
    addr: IpAddr,
    #[snapshot(saved)]
    prefix: u8,
}

impl Cidr {
    /// An address with a prefix length; refused when the length is more than the address has bits.
    pub fn new(addr: IpAddr, prefix: u8) -> Result<Self, CidrError> {
        let longest = width(addr);
        if prefix > longest {
            return Err(CidrError::PrefixTooLong { found: prefix, longest });
        }
        Ok(Self { addr, prefix })
    }

    /// One address alone.
    pub const fn host(addr: IpAddr) -> Self {
        Self { addr, prefix: width(addr) }
    }

    /// All addresses of IPv4: the destination of a default route.
    pub const fn all_v4() -> Self {
        Self { addr: IpAddr::V4(Ipv4Addr::UNSPECIFIED), prefix: 0 }
    }

    /// All addresses of IPv6: the destination of a default route.
    pub const fn all_v6() -> Self {
        Self { addr: IpAddr::V6(Ipv6Addr::UNSPECIFIED), prefix: 0 }
    }

    /// The address, host bits and all.
    pub const fn addr(&self) -> IpAddr {
        self.addr
    }

    /// Length of the prefix in bits.
    pub const fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether an address is of this network. False for an address of the other family.
    pub fn contains(&self, addr: IpAddr) -> bool {
        match (self.addr, addr) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                (own.to_bits() ^ other.to_bits()).checked_shr(32 - u32::from(self.prefix)).unwrap_or(0) == 0
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                (own.to_bits() ^ other.to_bits()).checked_shr(128 - u32::from(self.prefix)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }

    /// The directed broadcast address of an IPv4 network; none for prefixes of 31 and 32 bits (RFC 3021).
    pub fn broadcast(&self) -> Option<Ipv4Addr> {
        match self.addr {
            IpAddr::V4(addr) if self.prefix < 31 => {
                Some(Ipv4Addr::from_bits(addr.to_bits() | u32::MAX.checked_shr(u32::from(self.prefix)).unwrap_or(0)))
            }
            _ => None,
        }
    }

    /// The subnet-router anycast address of an IPv6 network (RFC 4291, section 2.6.1); none for 127 and 128 bits.
    pub fn router_anycast(&self) -> Option<Ipv6Addr> {
        match self.addr {
            IpAddr::V6(addr) if self.prefix < 127 => {
                let hosts = u128::MAX.checked_shr(u32::from(self.prefix)).unwrap_or(0);
                Some(Ipv6Addr::from_bits(addr.to_bits() & !hosts))
            }
            _ => None,
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix)
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let (addr, prefix) = match text.split_once('/') {
            Some((addr, prefix)) => (addr, Some(prefix)),
            None => (text, None),
        };
        let bad_addr = || CidrError::NotAnAddress { found: text.to_owned() };
        let addr: IpAddr = addr.parse().map_err(|_| bad_addr())?;
        match prefix {
            None => Ok(Self::host(addr)),
            Some(prefix) => Self::new(addr, prefix.parse().map_err(|_| bad_addr())?),
        }
    }
}

impl Serialize for Cidr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.prefix == width(self.addr) { serializer.collect_str(&self.addr) } else { serializer.collect_str(self) }
    }
}

impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

/// Why a text is no [`Cidr`].
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum CidrError {
    /// Neither an address nor an address with a length.
    #[error("`{found}` is no address: expected one like 10.0.0.1, 10.0.0.0/8 or fd00::/64")]
    NotAnAddress {
        /// The text.
        found: String,
    },
    /// The prefix is longer than the address.
    #[error("prefix length {found}: an address of this family has {longest} bits")]
    PrefixTooLong {
        /// The length given.
        found: u8,
        /// The bits there are.
        longest: u8,
    },
}

const fn width(addr: IpAddr) -> u8 {
    match addr {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

fn prefix_fits(cidr: &Cidr) -> Result<(), Invalid> {
    if cidr.prefix <= width(cidr.addr) {
        return Ok(());
    }
    Err(Invalid {
        field: "prefix".into(),
        found: cidr.prefix.to_string(),
        expected: format!("at most {}", width(cidr.addr)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn a_prefix_holds_the_addresses_that_share_it() {
        for (net, inside, outside) in [
            ("10.0.0.1/24", "10.0.0.255", "10.0.1.0"),
            ("0.0.0.0/0", "203.0.113.9", "::1"),
            ("10.0.0.1", "10.0.0.1", "10.0.0.2"),
            ("fd00:10::1/64", "fd00:10::ffff", "fd00:11::1"),
            ("::/0", "2001:db8::1", "10.0.0.1"),
            ("::1", "::1", "::2"),
        ] {
            assert!(cidr(net).contains(inside.parse().unwrap()), "{inside} in {net}");
            assert!(!cidr(net).contains(outside.parse().unwrap()), "{outside} not in {net}");
        }
    }

    #[test]
    fn only_networks_with_room_for_hosts_have_a_broadcast_address() {
        assert_eq!(cidr("10.0.0.1/24").broadcast(), Some(Ipv4Addr::new(10, 0, 0, 255)));
        assert_eq!(cidr("10.0.0.1/31").broadcast(), None);
        assert_eq!(cidr("0.0.0.0/0").broadcast(), Some(Ipv4Addr::BROADCAST));
        assert_eq!(cidr("fd00::1/64").broadcast(), None);
        assert_eq!(cidr("fd00:1::5/64").router_anycast(), Some("fd00:1::".parse().unwrap()));
    }

    #[test]
    fn a_prefix_longer_than_the_address_is_refused() {
        assert_eq!("10.0.0.1/33".parse::<Cidr>(), Err(CidrError::PrefixTooLong { found: 33, longest: 32 }));
        assert!("10.0.0/8".parse::<Cidr>().is_err());
    }

    #[test]
    fn json_spells_it_as_people_do() {
        for text in ["\"10.0.0.0/8\"", "\"10.0.0.1\"", "\"fd00::/8\""] {
            let cidr: Cidr = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&cidr).unwrap(), text);
        }
    }
}
