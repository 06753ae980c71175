//! Hardware addresses of Ethernet.

use core::fmt;
use core::net::Ipv6Addr;
use core::str::FromStr;

use hibernet_snapshot::Snapshot;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

/// A hardware address of Ethernet (EUI-48), written `02:00:00:00:00:01`. In JSON it is a string.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Snapshot)]
pub struct MacAddr {
    #[snapshot(saved)]
    octets: [u8; 6],
}

impl MacAddr {
    /// The address of all stations of a link.
    pub const BROADCAST: Self = Self::new([0xff; 6]);

    /// The address of these octets, in the order of the wire.
    pub const fn new(octets: [u8; 6]) -> Self {
        Self { octets }
    }

    /// A unicast address outside the manufacturers' space (the U/L bit is set, the I/G bit is not) with these bits: what a
    /// virtual device that has no address of its own is given.
    pub const fn locally_administered(bits: [u8; 6]) -> Self {
        let [first, b, c, d, e, f] = bits;
        Self::new([first & !GROUP | LOCAL, b, c, d, e, f])
    }

    /// The octets, in the order of the wire.
    pub const fn octets(self) -> [u8; 6] {
        self.octets
    }

    /// Whether it can be the address of one station: not of a group, and not zero.
    pub fn is_unicast(self) -> bool {
        self.octets != [0; 6] && !self.is_group()
    }

    /// Whether it is a multicast address or the broadcast address.
    pub const fn is_group(self) -> bool {
        let [first, ..] = self.octets;
        first & GROUP != 0
    }

    /// The link-local address that follows from it: `fe80::/64` and the modified EUI-64 (RFC 4291, appendix A).
    pub const fn link_local(self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.octets;
        let [high, low] = [u16::from_be_bytes([a ^ LOCAL, b]), u16::from_be_bytes([e, f])];
        Ipv6Addr::new(0xfe80, 0, 0, 0, high, u16::from_be_bytes([c, 0xff]), u16::from_be_bytes([0xfe, d]), low)
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, last] = self.octets;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{last:02x}")
    }
}

impl FromStr for MacAddr {
    type Err = MacAddrError;

    fn from_str(text: &str) -> Result<Self, MacAddrError> {
        let octet = |part: &str| match part.len() {
            2 if part.bytes().all(|digit| digit.is_ascii_hexdigit()) => u8::from_str_radix(part, 16).ok(),
            _ => None,
        };
        let octets: Option<Vec<u8>> = text.split(':').map(octet).collect();
        let octets = octets.and_then(|octets| octets.try_into().ok());
        octets.map(Self::new).ok_or_else(|| MacAddrError { found: text.to_owned() })
    }
}

impl Serialize for MacAddr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

/// A text is no [`MacAddr`].
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("`{found}` is no hardware address: expected six pairs of hexadecimal digits like 02:00:00:00:00:01")]
pub struct MacAddrError {
    /// The text.
    pub found: String,
}

/// The I/G bit of the first octet: set in the address of a group.
const GROUP: u8 = 1;
/// The U/L bit of the first octet: set in an address that no manufacturer gave.
const LOCAL: u8 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hardware_address_is_read_as_it_is_written() {
        let mac: MacAddr = "02:00:5E:10:00:ff".parse().unwrap();
        assert_eq!(mac.to_string(), "02:00:5e:10:00:ff");
        assert_eq!(serde_json::from_str::<MacAddr>("\"02:00:5e:10:00:ff\"").unwrap(), mac);
        assert_eq!(serde_json::to_string(&mac).unwrap(), "\"02:00:5e:10:00:ff\"");
        for bad in
            ["", "02:00:00:00:00", "02:00:00:00:00:00:00", "2:0:0:0:0:1", "02-00-00-00-00-01", "+2:00:00:00:00:01"]
        {
            assert!(bad.parse::<MacAddr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_link_local_address_is_the_modified_eui_64() {
        let link_local = |mac: &str| mac.parse::<MacAddr>().unwrap().link_local().to_string();
        assert_eq!(link_local("02:00:00:00:00:01"), "fe80::ff:fe00:1");
        assert_eq!(link_local("34:56:78:9a:bc:de"), "fe80::3656:78ff:fe9a:bcde");
    }

    #[test]
    fn groups_and_zero_are_no_stations_and_drawn_addresses_are() {
        for (mac, unicast) in [
            ("02:00:00:00:00:01", true),
            ("ff:ff:ff:ff:ff:ff", false),
            ("33:33:00:00:00:01", false),
            ("00:00:00:00:00:00", false),
        ] {
            assert_eq!(mac.parse::<MacAddr>().unwrap().is_unicast(), unicast, "{mac}");
        }
        assert!(MacAddr::locally_administered([0xff; 6]).is_unicast());
        assert!(MacAddr::locally_administered([0; 6]).is_unicast());
    }
}
