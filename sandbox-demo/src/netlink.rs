//! Network devices, addresses and routes over rtnetlink: what the `ip` command does, without needing it installed.

use std::io;
use std::net::IpAddr;

use anyhow::Context;
use netlink_packet_core::NLM_F_ACK;
use netlink_packet_core::NLM_F_CREATE;
use netlink_packet_core::NLM_F_EXCL;
use netlink_packet_core::NLM_F_REQUEST;
use netlink_packet_core::NetlinkHeader;
use netlink_packet_core::NetlinkMessage;
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::address::AddressHeaderFlags;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::InfoData;
use netlink_packet_route::link::InfoKind;
use netlink_packet_route::link::InfoVeth;
use netlink_packet_route::link::LinkAttribute;
use netlink_packet_route::link::LinkFlags;
use netlink_packet_route::link::LinkInfo;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::route::RouteAddress;
use netlink_packet_route::route::RouteAttribute;
use netlink_packet_route::route::RouteHeader;
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::route::RouteScope;
use netlink_packet_route::route::RouteType;
use netlink_sys::Socket;
use netlink_sys::SocketAddr;
use netlink_sys::protocols::NETLINK_ROUTE;
use rustix::io::Errno;

use crate::fault::errno_fault;

/// A conversation with rtnetlink about the namespace this process is in.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

/// What the kernel says about one device.
#[derive(Debug, Clone)]
pub struct Device {
    /// Its number in this namespace.
    pub index: u32,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// Its largest datagram.
    pub mtu: u32,
    /// It is up.
    pub up: bool,
}

impl Netlink {
    /// Opens the conversation.
    pub fn open() -> anyhow::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE).context("opening a netlink socket")?;
        socket.bind_auto().context("binding a netlink socket")?;
        socket.connect(&SocketAddr::new(0, 0)).context("connecting a netlink socket")?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Looks a device up by name.
    pub fn device(&mut self, name: &str) -> anyhow::Result<Device> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let answer = self
            .request(RouteNetlinkMessage::GetLink(message), 0)
            .map_err(|errno| errno_fault(format_args!("device {name}"), errno))?;
        let Some(RouteNetlinkMessage::NewLink(link)) = answer else {
            anyhow::bail!("the kernel answered a question about device {name} with {answer:?}");
        };
        let mut device =
            Device { index: link.header.index, mac: [0; 6], mtu: 1500, up: link.header.flags.contains(LinkFlags::Up) };
        for attribute in link.attributes {
            match attribute {
                LinkAttribute::Mtu(mtu) => device.mtu = mtu,
                LinkAttribute::Address(bytes) => device.mac = bytes.try_into().unwrap_or([0; 6]),
                _ => {}
            }
        }
        Ok(device)
    }

    /// Makes a veth pair `near` <-> `far`, the far end in the network namespace of process `pid`. Both ends get the
    /// same hardware address and no ARP, so that the pair is a plain point-to-point link for IP datagrams.
    pub fn add_veth(&mut self, near: &str, far: &str, pid: u32, mac: [u8; 6], mtu: u32) -> anyhow::Result<()> {
        let mut peer = point_to_point(far, mac, mtu);
        peer.attributes.push(LinkAttribute::NetNsPid(pid));
        let mut message = point_to_point(near, mac, mtu);
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        self.request(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
            .map_err(|errno| errno_fault(format_args!("making the veth pair {near}, {far}"), errno))?;
        Ok(())
    }

    /// Sets a device's largest datagram, and how many may wait for whoever reads them.
    pub(crate) fn set_queue(&mut self, name: &str, mtu: u32, datagrams: u32) -> anyhow::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = self.device(name)?.index;
        message.attributes = vec![LinkAttribute::Mtu(mtu), LinkAttribute::TxQueueLen(datagrams)];
        self.request(RouteNetlinkMessage::SetLink(message), 0)
            .map_err(|errno| errno_fault(format_args!("setting the queue of {name}"), errno))?;
        Ok(())
    }

    /// Brings a device up.
    pub fn set_up(&mut self, name: &str) -> anyhow::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = self.device(name)?.index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.request(RouteNetlinkMessage::SetLink(message), 0)
            .map_err(|errno| errno_fault(format_args!("bringing {name} up"), errno))?;
        Ok(())
    }

    /// Gives a device an address, usable at once (no duplicate address detection).
    pub fn add_address(&mut self, name: &str, address: IpAddr, prefix_len: u8) -> anyhow::Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = family(address);
        message.header.prefix_len = prefix_len;
        message.header.flags = AddressHeaderFlags::Nodad;
        message.header.index = self.device(name)?.index;
        message.attributes.push(AddressAttribute::Local(address));
        message.attributes.push(AddressAttribute::Address(address));
        self.request(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)
            .map_err(|errno| errno_fault(format_args!("giving {name} the address {address}/{prefix_len}"), errno))?;
        Ok(())
    }

    /// Adds a default route of the gateway's family.
    pub fn add_default_route(&mut self, gateway: IpAddr) -> anyhow::Result<()> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(gateway);
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        message.attributes.push(RouteAttribute::Gateway(RouteAddress::from(gateway)));
        self.request(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL)
            .map_err(|errno| errno_fault(format_args!("adding the default route via {gateway}"), errno))?;
        Ok(())
    }

    /// Sends one request and reads its answer: the message asked for, or none for a mere acknowledgement.
    fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<Option<RouteNetlinkMessage>, Errno> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.sequence_number = self.sequence;
        header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map_err(|error| errno_of(&error))?;
        self.answer()
    }

    /// Reads messages up to the acknowledgement of the last request.
    fn answer(&mut self) -> Result<Option<RouteNetlinkMessage>, Errno> {
        let mut answer = None;
        loop {
            let (bytes, _) = self.socket.recv_from_full().map_err(|error| errno_of(&error))?;
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(|_| Errno::BADMSG)?;
                let length = (message.header.length as usize).next_multiple_of(4).clamp(4, rest.len().max(4));
                rest = rest.get(length..).unwrap_or_default();
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::Error(error) => match error.code {
                        None => return Ok(answer),
                        Some(code) => return Err(Errno::from_raw_os_error(code.get().saturating_neg())),
                    },
                    NetlinkPayload::Done(_) => return Ok(answer),
                    NetlinkPayload::InnerMessage(inner) => answer = Some(inner),
                    _ => {}
                }
            }
        }
    }
}

fn point_to_point(name: &str, mac: [u8; 6], mtu: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.flags = LinkFlags::Noarp;
    message.header.change_mask = LinkFlags::Noarp;
    message.attributes =
        vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::Address(mac.to_vec()), LinkAttribute::Mtu(mtu)];
    message
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn errno_of(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}
