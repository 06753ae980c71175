//! The arguments of `gateway`.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use hibernet_netstack::Cidr;
use hibernet_netstack::MacAddr;

use super::Control;
use super::EgressArgs;
use super::Seal;
use super::restoring::RestoreArgs;
use crate::gateway::EgressChoice;
use crate::gateway::Forward;
use crate::gateway::GuestOptions;
use crate::gateway::GuestPlace;
use crate::gateway::GuestStart;
use crate::gateway::Resolvers;
use crate::link::LinkSpec;

#[derive(Debug, Args)]
pub(super) struct GatewayArgs {
    /// The guest's network card: `stream:NAME@SOCKET` listens for QEMU's `-netdev stream`, `stream-to:NAME@SOCKET` connects to
    /// it, `dgram:NAME@SOCKET[,PEER]` is for `-netdev dgram` and vfkit, `tap:NAME` is a TAP device. NAME is the link's.
    #[arg(long, value_name = "LINK")]
    link: LinkSpec,
    /// An address of the gateway on the guest's link with its network. Give it once per address.
    #[arg(long = "addr", value_name = "CIDR", default_value = "10.0.2.2/24", conflicts_with = "restore")]
    addrs: Vec<Cidr>,
    /// Start from this image; addresses, leases, connections, forwards and rules come with it.
    #[arg(long, value_name = "IMAGE")]
    restore: Option<PathBuf>,
    /// The gateway's hardware address; without it one that follows from its IPv4 address.
    #[arg(long, value_name = "MAC", conflicts_with = "restore", value_parser = mac)]
    mac: Option<MacAddr>,
    /// The link's largest datagram, which DHCP tells the guest.
    #[arg(long, value_name = "BYTES", default_value_t = 1500, conflicts_with = "restore",
          value_parser = clap::value_parser!(u16).range(1280..))]
    mtu: u16,
    /// The first address that DHCP gives out; the next 255 follow. Without it host 15 of the network.
    #[arg(long, value_name = "ADDRESS", conflicts_with = "restore")]
    dhcp_first: Option<Ipv4Addr>,
    /// For how long an address is given out.
    #[arg(long, value_name = "SECONDS", default_value_t = 86_400, conflicts_with = "restore",
          value_parser = clap::value_parser!(u32).range(60..))]
    dhcp_lease: u32,
    /// Give no addresses out.
    #[arg(long, conflicts_with_all = ["restore", "dhcp_first", "dhcp_lease"])]
    no_dhcp: bool,
    /// A resolver that the guest's questions go to, instead of those of the host. Give it once per resolver.
    #[arg(long = "dns", value_name = "ADDRESS[:PORT]", value_parser = resolver)]
    resolvers: Vec<SocketAddr>,
    /// Answer no DNS questions.
    #[arg(long, conflicts_with = "resolvers")]
    no_dns: bool,
    /// Take what comes to a port of the host to a port of the guest: `[tcp:|udp:][ADDRESS:]PORT:[GUEST:]PORT`. The host listens
    /// on 127.0.0.1 unless an address is given. With an uplink it is the uplink's port, and a rule. Give it once per port.
    #[arg(long = "forward", value_name = "FORWARD")]
    forwards: Vec<Forward>,
    /// A device that leads to the world, for frames or datagrams as in `run`: the guest leaves by it behind its address.
    #[arg(long, value_name = "DEVICE")]
    uplink: Option<LinkSpec>,
    /// An address of the gateway on the uplink with its network. Give it once per address.
    #[arg(long = "uplink-addr", value_name = "CIDR", requires = "uplink", conflicts_with = "restore")]
    uplink_addrs: Vec<Cidr>,
    /// The router beyond the uplink's own networks. Give it once per family.
    #[arg(long, value_name = "ADDRESS", requires = "uplink", conflicts_with = "restore")]
    via: Vec<IpAddr>,
    #[command(flatten)]
    egress: EgressArgs,
    /// Port of an echo service at the gateway's addresses, TCP and UDP (RFC 862).
    #[arg(long, value_name = "PORT", conflicts_with = "restore", value_parser = clap::value_parser!(u16).range(1..))]
    echo: Option<u16>,
    #[command(flatten)]
    how: RestoreArgs,
    /// Pass no traffic until `sandbox-demo resume`.
    #[arg(long)]
    hold: bool,
    #[command(flatten)]
    seal: Seal,
    #[command(flatten)]
    control: Control,
}

impl GatewayArgs {
    pub(super) fn options(self, json: bool) -> anyhow::Result<GuestOptions> {
        let Self { link, addrs, restore, mac, mtu, dhcp_first, dhcp_lease, no_dhcp, .. } = self;
        let Self {
            resolvers, no_dns, forwards, uplink, uplink_addrs, via, egress, echo, hold, how, seal, control, ..
        } = self;
        let is_restore = restore.is_some();
        let start = match restore {
            Some(image) => {
                let mut request = how.request(vec![image], seal.key.clone())?;
                if request.inside.is_empty() {
                    request.inside.push(link.name().to_owned());
                }
                GuestStart::Restored(Box::new(request))
            }
            None => {
                how.expect_none()?;
                GuestStart::Fresh(GuestPlace {
                    addrs,
                    mac,
                    mtu,
                    dhcp: (!no_dhcp).then_some(dhcp_first),
                    lease: Duration::from_secs(dhcp_lease.into()),
                    echo,
                    uplink_addrs,
                    via,
                })
            }
        };
        let dns = match resolvers.is_empty() {
            true if no_dns => Some(Resolvers::Nobody),
            true if is_restore => None,
            true => Some(Resolvers::OfHost),
            false => Some(Resolvers::These(resolvers)),
        };
        let forwards = (!is_restore || !forwards.is_empty()).then_some(forwards);
        let egress = EgressChoice { limits: egress.limits(), policy: egress.policy };
        Ok(GuestOptions {
            start,
            link,
            uplink,
            dns,
            forwards,
            egress,
            control: control.socket,
            hold,
            seal_key: seal.key,
            json,
        })
    }
}

fn mac(text: &str) -> Result<MacAddr, String> {
    let mac: MacAddr = text.parse().map_err(|error| format!("{error}"))?;
    if mac.is_unicast() { Ok(mac) } else { Err(format!("found {mac}, expected the address of one station")) }
}

fn resolver(text: &str) -> Result<SocketAddr, String> {
    let addr = text.parse::<IpAddr>().map(|addr| SocketAddr::new(addr, DNS_PORT));
    addr.or_else(|_| text.parse()).map_err(|_| format!("found `{text}`, expected an IP address, or one with a port"))
}

const DNS_PORT: u16 = 53;

pub(super) const EXAMPLE: &str = "\
An example, without any rights; the guest is a virtual machine of QEMU:

  sandbox-demo gateway --link stream:guest@guest.sock --forward 8080:80 --echo 7 &
  qemu-system-x86_64 .. -netdev stream,id=n0,server=off,addr.type=unix,addr.path=guest.sock \\
    -device virtio-net-pci,netdev=n0

The guest asks for its address by DHCP: 10.0.2.15, with the gateway 10.0.2.2 as router and name server. Both move to other
processes, once the virtual machine stands still (`stop` of QMP, then `migrate` to a file and `quit`):

  sandbox-demo save --hold network.hib
  kill -KILL %1
  sandbox-demo gateway --link stream:guest@guest.sock --restore network.hib

Connections of the guest with the gateway itself, and by the uplink with the world, go on. Those with a socket of the host
(forwards) are reset as soon as the guest is there again: the socket went with the old process.

Without privileges the guest gets out by sockets of the host, where a policy lets it (`policy check --help` shows one):

  sandbox-demo gateway --link stream:guest@guest.sock --egress-policy egress.toml

With an uplink, as root, the guest reaches the world behind an address of its own, and its connections survive:

  sandbox-demo gateway --link stream:guest@guest.sock --uplink tap:net0 --uplink-addr 192.0.2.2/24 --via 192.0.2.1";

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: GatewayArgs,
    }

    fn parse(args: &[&str]) -> Result<GuestOptions, String> {
        let all = ["gateway", "--link", "stream:g@/s"].iter().chain(args);
        Line::try_parse_from(all)
            .map_err(|error| error.to_string())
            .and_then(|line| line.args.options(false).map_err(|error| error.to_string()))
    }

    #[test]
    fn what_comes_with_an_image_cannot_be_said_again() {
        assert!(parse(&["--restore", "x"]).is_ok());
        for given in [["--addr", "10.0.0.1/24"], ["--mtu", "1500"], ["--echo", "7"], ["--mac", "02:00:00:00:00:01"]] {
            assert!(parse(&[&["--restore", "x"], &given[..]].concat()).is_err(), "{given:?}");
        }
    }

    #[test]
    fn forwards_and_resolvers_of_an_image_stay_unless_others_are_given() {
        let options = parse(&["--restore", "x"]).expect("a command line");
        assert_eq!((options.dns, options.forwards), (None, None));
        let options = parse(&["--restore", "x", "--dns", "192.0.2.1", "--forward", "1:2"]).expect("a command line");
        assert_eq!(options.dns, Some(Resolvers::These(vec!["192.0.2.1:53".parse().expect("an end")])));
        assert_eq!(options.forwards.map(|forwards| forwards.len()), Some(1));
        let options = parse(&[]).expect("a command line");
        assert_eq!((options.dns, options.forwards), (Some(Resolvers::OfHost), Some(Vec::new())));
    }

    #[test]
    fn values_that_cannot_be_are_refused_with_what_was_expected() {
        let refused = |args: &[&str]| parse(args).err().expect("it cannot be");
        assert!(refused(&["--dns", "example.org"]).contains("an IP address"));
        assert!(refused(&["--mac", "01:00:5e:00:00:01"]).contains("one station"));
        assert!(refused(&["--forward", "80"]).contains("[tcp:|udp:]"));
        assert!(refused(&["--uplink-addr", "192.0.2.1/24"]).contains("--uplink"));
    }
}
