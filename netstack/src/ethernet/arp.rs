//! The Address Resolution Protocol (RFC 826) between Ethernet and IPv4.

use core::net::Ipv4Addr;

use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr, EthernetAddress};

use super::mac::MacAddr;

/// A request or a reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Arp {
    pub(crate) reply: bool,
    pub(crate) sender_mac: MacAddr,
    pub(crate) sender: Ipv4Addr,
    pub(crate) target_mac: MacAddr,
    pub(crate) target: Ipv4Addr,
}

impl Arp {
    /// Asks who has `target`.
    pub(crate) const fn request(sender_mac: MacAddr, sender: Ipv4Addr, target: Ipv4Addr) -> Self {
        Self { reply: false, sender_mac, sender, target_mac: MacAddr::new([0; 6]), target }
    }

    /// Answers this request: `own` has what it asks for.
    pub(crate) const fn answered_by(&self, own: MacAddr) -> Self {
        Self { reply: true, sender_mac: own, sender: self.target, target_mac: self.sender_mac, target: self.sender }
    }

    /// Reads the payload of a frame; `None` for anything but a request or reply between Ethernet and IPv4 whose addresses
    /// can be those of hosts (RFC 1812, section 3.3.2: no group's hardware address is believed). Padding is not looked at.
    pub(crate) fn parse(payload: &[u8]) -> Option<Self> {
        let ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr: EthernetAddress(sender_mac),
            source_protocol_addr: sender,
            target_hardware_addr: EthernetAddress(target_mac),
            target_protocol_addr: target,
        } = ArpRepr::parse(&ArpPacket::new_checked(payload).ok()?).ok()?
        else {
            return None;
        };
        let reply = match operation {
            ArpOperation::Request => false,
            ArpOperation::Reply => true,
            ArpOperation::Unknown(_) => return None,
        };
        let (sender_mac, target_mac) = (MacAddr::new(sender_mac), MacAddr::new(target_mac));
        let many = |addr: Ipv4Addr| addr.is_multicast() || addr.is_broadcast() || addr.is_loopback();
        let sound = sender_mac.is_unicast() && !many(sender) && !many(target);
        sound.then_some(Self { reply, sender_mac, sender, target_mac, target })
    }

    /// Whether it tells of its sender's own address (RFC 5227, section 3, calls it an announcement), as the kernel judges.
    pub(crate) fn is_gratuitous(&self) -> bool {
        self.sender == self.target && (!self.reply || self.target_mac == self.sender_mac || self.target_mac.is_group())
    }

    /// The payload of a frame.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let Self { reply, sender_mac, sender, target_mac, target } = *self;
        let repr = ArpRepr::EthernetIpv4 {
            operation: if reply { ArpOperation::Reply } else { ArpOperation::Request },
            source_hardware_addr: EthernetAddress(sender_mac.octets()),
            source_protocol_addr: sender,
            target_hardware_addr: EthernetAddress(target_mac.octets()),
            target_protocol_addr: target,
        };
        let mut bytes = vec![0; repr.buffer_len()];
        repr.emit(&mut ArpPacket::new_unchecked(bytes.as_mut_slice()));
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Arp {
        let mac = MacAddr::new([2, 0, 0, 0, 0, 9]);
        Arp::request(mac, "10.0.0.2".parse().unwrap(), "10.0.0.1".parse().unwrap())
    }

    #[test]
    fn a_request_and_its_answer_are_read_as_they_were_written_padding_or_not() {
        let answer = request().answered_by(MacAddr::new([2, 0, 0, 0, 0, 1]));
        for arp in [request(), answer] {
            let mut bytes = arp.bytes();
            assert_eq!(bytes.len(), 28);
            bytes.extend([0; 18]);
            assert_eq!(Arp::parse(&bytes), Some(arp));
        }
        assert_eq!((answer.target, answer.target_mac), (request().sender, request().sender_mac));
    }

    #[test]
    fn what_cannot_be_of_a_host_is_not_read() {
        let changed = |at: usize, value: u8| {
            let mut bytes = request().bytes();
            bytes[at] = value;
            Arp::parse(&bytes)
        };
        assert!(changed(27, 2).is_some());
        // Hardware type, protocol type, their lengths, operation, sender's hardware address, sender, target.
        for (at, value) in
            [(1, 6), (2, 0x86), (4, 8), (5, 16), (7, 3), (7, 0), (8, 0x01), (14, 224), (14, 127), (24, 127)]
        {
            assert_eq!(changed(at, value), None, "byte {at} = {value}");
        }
        assert_eq!(Arp::parse(&request().bytes()[..27]), None);
        assert_eq!(Arp::parse(&[]), None);
    }

    #[test]
    fn an_announcement_names_its_sender_twice() {
        let mut arp = request();
        assert!(!arp.is_gratuitous());
        arp.target = arp.sender;
        assert!(arp.is_gratuitous());
        arp.reply = true;
        arp.target_mac = arp.sender_mac;
        assert!(arp.is_gratuitous());
        arp.target_mac = MacAddr::new([2, 0, 0, 0, 0, 7]);
        assert!(!arp.is_gratuitous());
    }
}
