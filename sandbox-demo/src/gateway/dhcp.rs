//! A DHCP server for the guests of one link (RFC 2131), without I/O: a message and the time go in, an answer comes out.
//!
//! A client is told apart by its hardware address. Relays (`giaddr`) are not served: there is one link, and it is this one.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use hibernet_netstack::Cidr;
use hibernet_netstack::MacAddr;
use hibernet_snapshot::Instant;
use serde::Deserialize;
use serde::Serialize;
use smoltcp::wire::DHCP_MAX_DNS_SERVER_COUNT;
use smoltcp::wire::DhcpMessageType as Kind;
use smoltcp::wire::DhcpOption;
use smoltcp::wire::DhcpPacket;
use smoltcp::wire::DhcpRepr;

/// What clients are told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DhcpConfig {
    /// The server, which is the router too.
    pub(crate) server: Ipv4Addr,
    /// Length of the network's prefix.
    pub(crate) prefix: u8,
    /// The first address that is given out; the rest of the network follows it.
    pub(crate) first: Ipv4Addr,
    /// Name servers, if there are any.
    pub(crate) dns: Vec<Ipv4Addr>,
    /// The link's MTU.
    pub(crate) mtu: u16,
    /// For how long.
    pub(crate) lease: Duration,
}

/// The server with its leases.
#[derive(Debug)]
pub(crate) struct DhcpServer {
    config: DhcpConfig,
    leases: BTreeMap<Ipv4Addr, Lease>,
}

/// An answer, and where it goes: to port 68 there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DhcpAnswer {
    pub(crate) to: Ipv4Addr,
    pub(crate) message: Vec<u8>,
}

/// A lease as it is saved: what remains of it, in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedLease {
    addr: Ipv4Addr,
    mac: [u8; 6],
    holds: Hold,
    remaining_ms: u64,
}

impl SavedLease {
    /// Lets `gone` of its time pass.
    pub(crate) fn age(&mut self, gone: Duration) {
        self.remaining_ms = self.remaining_ms.saturating_sub(u64::try_from(gone.as_millis()).unwrap_or(u64::MAX));
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Lease {
    mac: MacAddr,
    holds: Hold,
    until: Instant,
}

/// What an address is held for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Hold {
    /// Offered, not asked for yet.
    Offer,
    /// Leased.
    Lease,
    /// A client says that somebody else uses it.
    Declined,
}

/// A message of a client, as far as it matters here.
struct Asked<'a> {
    repr: &'a DhcpRepr<'a>,
    mac: MacAddr,
    /// The client's identifier, which goes back with every answer (RFC 6842).
    identifier: Option<&'a [u8]>,
}

impl DhcpServer {
    pub(crate) fn new(config: DhcpConfig) -> Self {
        Self { config, leases: BTreeMap::new() }
    }

    /// The server as it was saved. A lease that cannot be of this network is forgotten.
    pub(crate) fn restored(config: DhcpConfig, leases: &[SavedLease], now: Instant) -> Self {
        let mut server = Self::new(config);
        for SavedLease { addr, mac, holds, remaining_ms } in leases {
            if server.config.gives_out(*addr) {
                let until = now.saturating_add(Duration::from_millis(*remaining_ms));
                server.leases.insert(*addr, Lease { mac: MacAddr::new(*mac), holds: *holds, until });
            }
        }
        server
    }

    /// The leases with what remains of them; those that are over are not saved.
    pub(crate) fn saved(&self, now: Instant) -> Vec<SavedLease> {
        let saved = |(addr, lease): (&Ipv4Addr, &Lease)| {
            let remaining = lease.until.saturating_since(now);
            let remaining_ms = u64::try_from(remaining.as_millis()).unwrap_or(u64::MAX);
            let Lease { mac, holds, until: _ } = *lease;
            (remaining_ms > 0).then_some(SavedLease { addr: *addr, mac: mac.octets(), holds, remaining_ms })
        };
        self.leases.iter().filter_map(saved).collect()
    }

    /// Who has which address, for how many seconds more.
    pub(crate) fn leases(&self, now: Instant) -> impl Iterator<Item = (Ipv4Addr, MacAddr, u64)> {
        let leased = self.leases.iter().filter(move |(_, lease)| lease.holds == Hold::Lease && lease.until > now);
        leased.map(move |(addr, lease)| (*addr, lease.mac, lease.until.saturating_since(now).as_secs()))
    }

    /// Answers a client's message; `None` where the server has to keep silent.
    pub(crate) fn handle(&mut self, message: &[u8], now: Instant) -> Option<DhcpAnswer> {
        let packet = DhcpPacket::new_checked(message).ok()?;
        let repr = DhcpRepr::parse(&packet).ok()?;
        let mac = MacAddr::new(repr.client_hardware_address.0);
        if !mac.is_unicast() || !repr.relay_agent_ip.is_unspecified() {
            return None;
        }
        let identifier = packet.options().find(|option| option.kind == CLIENT_ID).map(|option| option.data);
        let asked = Asked { repr: &repr, mac, identifier };
        self.leases.retain(|_, lease| lease.until > now || lease.holds == Hold::Lease);
        match repr.message_type {
            Kind::Discover => {
                let addr = self.choose(&asked, now)?;
                let is_leased = self.leases.get(&addr).is_some_and(|lease| lease.holds == Hold::Lease);
                if !is_leased {
                    self.hold(addr, &asked, Hold::Offer, OFFER, now);
                }
                self.answer(&asked, Kind::Offer, Some(addr))
            }
            Kind::Request => self.request(&asked, now),
            Kind::Decline => {
                let addr = repr.requested_ip.filter(|addr| self.is_held_by(addr, mac))?;
                self.hold(addr, &asked, Hold::Declined, self.config.lease, now);
                None
            }
            Kind::Release => {
                if self.is_held_by(&repr.client_ip, mac) {
                    self.leases.remove(&repr.client_ip);
                }
                None
            }
            Kind::Inform if !repr.client_ip.is_unspecified() => self.answer(&asked, Kind::Ack, None),
            _ => None,
        }
    }

    /// A request: for what was offered, for what the client had before, or for more time (RFC 2131, section 4.3.2).
    fn request(&mut self, asked: &Asked<'_>, now: Instant) -> Option<DhcpAnswer> {
        let DhcpRepr { server_identifier, requested_ip, client_ip, .. } = asked.repr;
        if server_identifier.is_some_and(|server| server != self.config.server) {
            // It took another's offer.
            self.leases.retain(|_, lease| lease.mac != asked.mac || lease.holds != Hold::Offer);
            return None;
        }
        let renews = !client_ip.is_unspecified();
        let addr = if renews { *client_ip } else { (*requested_ip)? };
        if self.is_held_by(&addr, asked.mac) {
            self.hold(addr, asked, Hold::Lease, self.config.lease, now);
            return self.answer(asked, Kind::Ack, Some(addr));
        }
        // It cannot have that one. Of an address nobody has, a server without a record says nothing.
        let is_wrong = server_identifier.is_some() || !self.config.gives_out(addr) || self.leases.contains_key(&addr);
        if is_wrong { self.answer(asked, Kind::Nak, None) } else { None }
    }

    /// The address a client gets: its own, else the one it would like, else the first that is free, else the one whose lease
    /// ended first.
    fn choose(&self, asked: &Asked<'_>, now: Instant) -> Option<Ipv4Addr> {
        let own = self.leases.iter().find(|(addr, _)| self.is_held_by(addr, asked.mac)).map(|(addr, _)| *addr);
        let is_free = |addr: &Ipv4Addr| self.config.gives_out(*addr) && !self.leases.contains_key(addr);
        let liked = || asked.repr.requested_ip.filter(is_free);
        let first = || self.config.pool().find(is_free);
        let ended = || {
            let over = self.leases.iter().filter(|(_, lease)| lease.until <= now);
            over.min_by_key(|(_, lease)| lease.until).map(|(addr, _)| *addr)
        };
        own.or_else(liked).or_else(first).or_else(ended)
    }

    fn is_held_by(&self, addr: &Ipv4Addr, mac: MacAddr) -> bool {
        self.leases.get(addr).is_some_and(|lease| lease.mac == mac && lease.holds != Hold::Declined)
    }

    fn hold(&mut self, addr: Ipv4Addr, asked: &Asked<'_>, holds: Hold, time: Duration, now: Instant) {
        self.leases.insert(addr, Lease { mac: asked.mac, holds, until: now.saturating_add(time) });
    }

    fn answer(&self, asked: &Asked<'_>, kind: Kind, addr: Option<Ipv4Addr>) -> Option<DhcpAnswer> {
        let DhcpConfig { server, prefix, first: _, dns, mtu, lease } = &self.config;
        let network = Cidr::new((*server).into(), *prefix).ok()?;
        let is_nak = kind == Kind::Nak;
        let mtu = mtu.to_be_bytes();
        let broadcast = network.broadcast().map(|addr| addr.octets());
        let mut more = Vec::new();
        if !is_nak {
            more.push(DhcpOption { kind: INTERFACE_MTU, data: &mtu });
            more.extend(broadcast.as_ref().map(|data| DhcpOption { kind: BROADCAST, data }));
        }
        more.extend(asked.identifier.map(|data| DhcpOption { kind: CLIENT_ID, data }));
        let seconds = u32::try_from(lease.as_secs()).unwrap_or(u32::MAX);
        let times = addr.filter(|_| !is_nak).map(|_| seconds);
        // T1 and T2 as clients would choose them (RFC 2131, section 4.4.5).
        let [renewal, rebinding] = [seconds / 2, seconds / 8 * 7].map(u32::to_be_bytes);
        if times.is_some() {
            more.push(DhcpOption { kind: RENEWAL_TIME, data: &renewal });
            more.push(DhcpOption { kind: REBINDING_TIME, data: &rebinding });
        }
        let servers = dns.iter().copied().take(DHCP_MAX_DNS_SERVER_COUNT).collect();
        let nobody = Ipv4Addr::UNSPECIFIED;
        let client_ip = if is_nak { nobody } else { asked.repr.client_ip };
        let repr = DhcpRepr {
            message_type: kind,
            transaction_id: asked.repr.transaction_id,
            secs: 0,
            client_hardware_address: asked.repr.client_hardware_address,
            client_ip,
            your_ip: addr.unwrap_or(nobody),
            server_ip: nobody,
            router: (!is_nak).then_some(*server),
            subnet_mask: (!is_nak).then_some(mask(*prefix)),
            relay_agent_ip: nobody,
            broadcast: asked.repr.broadcast,
            requested_ip: None,
            client_identifier: None,
            server_identifier: Some(*server),
            parameter_request_list: None,
            dns_servers: (!is_nak && !dns.is_empty()).then_some(servers),
            max_size: None,
            lease_duration: times,
            renew_duration: None,
            rebind_duration: None,
            additional_options: &more,
        };
        let mut message = vec![0; repr.buffer_len()];
        repr.emit(&mut DhcpPacket::new_unchecked(message.as_mut_slice())).ok()?;
        // A client without an address hears broadcasts alone, whatever its flag says.
        let to = if client_ip.is_unspecified() { Ipv4Addr::BROADCAST } else { client_ip };
        message.resize(message.len().max(LEAST_MESSAGE), 0);
        Some(DhcpAnswer { to, message })
    }
}

impl DhcpConfig {
    /// Addresses that are given out, in that order.
    fn pool(&self) -> impl Iterator<Item = Ipv4Addr> {
        let first = self.first.to_bits();
        (first..=first.saturating_add(MOST_LEASES)).map(Ipv4Addr::from_bits).filter(|addr| self.gives_out(*addr))
    }

    /// Whether an address is one of the pool.
    pub(crate) fn gives_out(&self, addr: Ipv4Addr) -> bool {
        let mask = mask(self.prefix).to_bits();
        let (network, host) = (self.server.to_bits() & mask, addr.to_bits() & !mask);
        let in_network = addr.to_bits() & mask == network;
        let offset = addr.to_bits().checked_sub(self.first.to_bits());
        let in_pool = offset.is_some_and(|offset| offset <= MOST_LEASES);
        in_network && in_pool && host != 0 && host != !mask && addr != self.server
    }
}

fn mask(prefix: u8) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0))
}

/// Where clients send to.
pub(crate) const SERVER_PORT: u16 = 67;
/// Where clients are.
pub(crate) const CLIENT_PORT: u16 = 68;
/// Addresses behind the first one, at most.
const MOST_LEASES: u32 = 255;
/// For a client to take an offer.
const OFFER: Duration = Duration::from_secs(60);
/// RFC 2132, section 5.1.
const INTERFACE_MTU: u8 = 26;
/// RFC 2132, section 5.3.
const BROADCAST: u8 = 28;
/// RFC 2132, section 9.14.
const CLIENT_ID: u8 = 61;
/// RFC 2132, sections 9.11 and 9.12.
const RENEWAL_TIME: u8 = 58;
const REBINDING_TIME: u8 = 59;
/// What old clients expect at least (RFC 1542, section 2.1).
const LEAST_MESSAGE: usize = 300;

#[cfg(test)]
mod tests;
