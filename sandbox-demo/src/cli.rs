//! The command line.

mod gateway;
mod restoring;
mod vm;

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Context;
use clap::ArgGroup;
use clap::Args;
use clap::Parser;
use clap::Subcommand;
use hibernet_netstack::Cidr;

use self::gateway::GatewayArgs;
use self::restoring::RestoreArgs;
use self::vm::VmCommand;
use crate::commands;
use crate::control::SaveForm;
use crate::control::SaveKind;
use crate::demo;
use crate::demo::LinkChoice;
use crate::egress;
use crate::egress::EgressLimits;
use crate::egress::EgressOptions;
use crate::gateway::ImageFiles;
use crate::gateway::RestoreRequest;
use crate::gateway::Start;
use crate::gateway::run;
use crate::gateway::serve_guest;
use crate::link::LinkSpec;
use crate::netns;
use crate::peers;
use crate::serve;
use crate::serve::Place;
use crate::serve::ServeOptions;
use crate::serve::ServeStart;

/// Runs the program: 0 if all went well, 1 if something failed, 2 if the command line made no sense. `diff` is as diff(1): 0 for
/// no difference, 1 for some, 2 for trouble.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    let is_diff = matches!(cli.command, Some(Command::Diff { .. }));
    match write_errors_for_large_files().and_then(|()| cli.run()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("sandbox-demo: {error:#}");
            if is_diff { ExitCode::from(DIFF_TROUBLE) } else { ExitCode::FAILURE }
        }
    }
}

/// A file beyond the limit of its size (`ulimit -f`) is an error of the save, not the end of the gateway.
fn write_errors_for_large_files() -> anyhow::Result<()> {
    let seen = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(libc::SIGXFSZ, seen).context("watching for signals")?;
    Ok(())
}

/// A gateway with connection tracking and NAT that can be saved to a file, killed, and restored with new keys.
///
/// Without a subcommand it runs the demonstration: 1,000 kernel TCP connections go through a gateway which is saved,
/// killed with SIGKILL and restored, twice. It needs no root where the system allows user namespaces.
#[derive(Debug, Parser)]
#[command(version, about, long_about, propagate_version = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// Print one JSON object instead of text for people.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the demonstration (the default).
    ///
    /// It makes its own namespaces, a guest and a world with kernel TCP in both, and a gateway process between them. Four
    /// fifths of the connections go through the gateway, one fifth ends in its own TCP stack. Under
    /// traffic the gateway is saved, killed with SIGKILL, and a new process restores the image with new keys; then once
    /// more. Two controls follow: the same with an empty table, where the connections must break, and a permissive router.
    /// Exit code 1 if any point fails, and it says which.
    Demo {
        /// What joins the peers to the gateway. Without it the first that can be had, in this order; with it that one or none.
        #[arg(long, value_name = "KIND")]
        links: Option<LinkChoice>,
    },
    /// Run a gateway between network devices.
    ///
    /// The gateway reads and writes IP datagrams or Ethernet frames on existing devices and passes them through its
    /// hooks, as the configuration says:
    #[command(after_long_help = EXAMPLE)]
    Run(RunArgs),
    /// Run an HTTP and an echo server inside a sandbox's own TCP stack.
    ///
    /// The server's sockets are the stack's, not the kernel's: what arrives on the device is for the addresses given here.
    /// `sandbox-demo save` writes the stack with all open connections and how far each download is; a server started with
    /// --restore goes on with them under new keys. Clients notice a pause.
    #[command(after_long_help = SERVE_EXAMPLE)]
    Serve(ServeArgs),
    /// Run the network of one guest, such as a virtual machine of QEMU, without privileges.
    ///
    /// The guest's network card is a unix socket. The gateway gives the guest an address by DHCP, forwards its DNS questions,
    /// answers ARP, neighbour discovery and pings, takes connections to the host in to it, and with an uplink lets it out. All
    /// of it is saved with `sandbox-demo save` and goes on in another process. What the guest may not do is refused at once.
    #[command(after_long_help = gateway::EXAMPLE)]
    Gateway(Box<GatewayArgs>),
    /// Check an egress policy, or give a running gateway another.
    Policy {
        #[command(subcommand)]
        command: PolicyCommand,
    },
    /// Print a gateway's last events: why packets were dropped, and what rules have logged.
    ///
    /// The newest 4,096 are kept, each with a number.
    Events {
        /// Only those behind this number.
        #[arg(long, value_name = "NUMBER")]
        after: Option<u64>,
        #[command(flatten)]
        control: Control,
    },
    /// Print how many host sockets a gateway's guests have, and the egress policy.
    Egress {
        #[command(flatten)]
        control: Control,
    },
    /// Save a running gateway or server to a file.
    ///
    /// The file appears whole or not at all, readable by its owner only. It holds flows, NAT bindings, rules and users'
    /// bytes, but no key. Its checksums find damage; only a seal (--seal-key) keeps others from reading or changing it. With --hold the gateway stands still afterwards, so that another process can take over from the
    /// file; without it traffic goes on, and the file is a copy of the past.
    Save {
        /// The file to write.
        image: PathBuf,
        /// Stand still afterwards, until `resume` or the end.
        #[arg(long)]
        hold: bool,
        /// Let deltas continue this image: from now on the gateway notes what changes.
        #[arg(long)]
        base: bool,
        /// Write what has changed since the last --base or --delta alone. `restore` wants that image and all deltas since.
        #[arg(long, conflicts_with_all = ["base", "compress"])]
        delta: bool,
        /// Compress the flow records. What users send is never compressed: its length would tell of it.
        #[arg(long)]
        compress: bool,
        #[command(flatten)]
        seal: Seal,
        #[command(flatten)]
        control: Control,
    },
    /// Run a gateway restored from an image: `run --restore IMAGE`.
    ///
    /// Configuration, rules, flows and bindings come from the image; keys are drawn afresh. The devices must have the names
    /// that the saved gateway's had.
    Restore {
        /// The image to start from, and the deltas behind it in their order.
        #[arg(required = true, value_name = "IMAGE [DELTA]...")]
        images: Vec<PathBuf>,
        #[command(flatten)]
        seal: Seal,
        #[command(flatten)]
        how: RestoreArgs,
        #[command(flatten)]
        at: RunPlace,
    },
    /// Let a gateway take in what waits on its links, and stand still.
    ///
    /// To checkpoint a guest: stop the guest, pause the gateway, save it, then save the guest. `vm save` does all of it.
    Pause {
        #[command(flatten)]
        control: Control,
    },
    /// Print what a gateway is doing, and how it came out of its image.
    Status {
        #[command(flatten)]
        control: Control,
    },
    /// Put an image in place of a paused gateway's stack, on the same links.
    ///
    /// A refused image changes nothing. The gateway stays paused until `resume`.
    Load {
        /// The image, and the deltas behind it in their order.
        #[arg(required = true, value_name = "IMAGE [DELTA]...")]
        images: Vec<PathBuf>,
        #[command(flatten)]
        seal: Seal,
        #[command(flatten)]
        how: RestoreArgs,
        #[command(flatten)]
        control: Control,
    },
    /// Let a gateway go on that was started or saved with --hold.
    Resume {
        #[command(flatten)]
        control: Control,
    },
    /// Print a gateway's flow table, in the format of `conntrack -L`.
    List {
        #[command(flatten)]
        control: Control,
    },
    /// Print a gateway's neighbours on Ethernet links, in the format of `ip neigh`.
    Neighbours {
        #[command(flatten)]
        control: Control,
    },
    /// Print a gateway's hooks, with everything that stands on them, in running order.
    Hooks {
        #[command(flatten)]
        control: Control,
    },
    /// Print a gateway's drops by reason, and what passed its links.
    Stats {
        #[command(flatten)]
        control: Control,
    },
    /// Checkpoint a QEMU virtual machine together with its network, and bring it back.
    #[command(subcommand)]
    Vm(VmCommand),
    /// Print what an image holds: its header, sections and counts; of a delta, what it continues.
    ///
    /// Of a sealed image, without its key, what its header says is printed, and that nobody has checked it.
    Inspect {
        /// The image, and deltas behind it in their order: then what they come to together.
        #[arg(required = true, value_name = "IMAGE [DELTA]...")]
        images: Vec<PathBuf>,
        #[command(flatten)]
        seal: Seal,
    },
    /// Print what changed between two images.
    ///
    /// Links, routes, rules, settings, counters, flows, fragments, sockets, neighbours: `+` is there now, `-` is gone, `~` changed,
    /// with a line for each field that did. A flow is told by its original tuple and its zone. Order and spelling are
    /// the same each time. Not compared are the generation, its parents, and when an image was saved. On a terminal it has colours, unless NO_COLOR is set.
    ///
    /// Exit code as of diff(1): 0 if nothing differs, 1 if something does, 2 if an image cannot be read.
    Diff {
        /// The earlier image.
        before: PathBuf,
        /// The later image.
        after: PathBuf,
        /// A delta behind the earlier image. Give it once per delta, in their order.
        #[arg(long = "before-delta", value_name = "DELTA")]
        before_deltas: Vec<PathBuf>,
        /// A delta behind the later image. Give it once per delta, in their order.
        #[arg(long = "after-delta", value_name = "DELTA")]
        after_deltas: Vec<PathBuf>,
        #[command(flatten)]
        seal: Seal,
    },
    /// A traffic peer of the demonstration.
    #[command(hide = true)]
    Peer {
        /// The supervisor's process id.
        #[arg(long)]
        parent: u32,
    },
}

#[derive(Debug, Subcommand)]
enum PolicyCommand {
    /// Read a policy file and print what it means; exit code 1 with the line if it cannot be read.
    #[command(after_long_help = POLICY_EXAMPLE)]
    Check {
        /// The policy file (TOML).
        file: PathBuf,
    },
    /// Put a policy file in force in a running gateway, at once.
    ///
    /// New flows meet the new rules. Flows that the new policy does not allow end: TCP connections are reset on both sides.
    Load {
        /// The policy file (TOML).
        file: PathBuf,
        #[command(flatten)]
        control: Control,
    },
}

/// Egress by the host's own sockets.
#[derive(Debug, Args)]
struct EgressArgs {
    /// Let guests out by this process's own sockets, which takes no privileges, as far as this policy allows
    /// (see `policy check`). A restored gateway that was saved with a policy needs none: its image's is in force from the first frame,
    /// and a file given here replaces it before that.
    #[arg(long = "egress-policy", value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Most TCP connections of guests by host sockets, and as many flows of UDP.
    #[arg(long = "egress-flows", value_name = "NUMBER", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    flows: u32,
    /// How long a host socket may connect, in seconds. Linux gives up after 127.
    #[arg(long = "egress-connect-timeout", value_name = "SECONDS", default_value_t = 127, value_parser = clap::value_parser!(u64).range(1..=3600))]
    connect: u64,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("start").required(true))]
struct RunArgs {
    /// Start with this configuration and an empty flow table.
    #[arg(long, value_name = "FILE", group = "start")]
    config: Option<PathBuf>,
    /// Start from this image, and the deltas behind it; configuration and rules come with it.
    #[arg(long, value_name = "IMAGE", group = "start", num_args = 1..)]
    restore: Option<Vec<PathBuf>>,
    #[command(flatten)]
    seal: Seal,
    #[command(flatten)]
    how: RestoreArgs,
    #[command(flatten)]
    at: RunPlace,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("stack").required(true).multiple(true))]
struct ServeArgs {
    /// The device to serve on: `tun:NAME`, or the name of one for a packet socket (see `run`); `@PATH` behind it names the
    /// network namespace it is in.
    #[arg(long, value_name = "DEVICE")]
    link: LinkSpec,
    /// An address of the server with its network, such as 10.9.0.2/24. Give it once per address.
    #[arg(long = "addr", value_name = "CIDR", group = "stack", conflicts_with = "restore")]
    addrs: Vec<Cidr>,
    /// Start from this image; addresses, ports and open connections come with it.
    #[arg(long, value_name = "IMAGE", group = "stack", conflicts_with_all = ["via", "mtu", "http", "echo", "discard", "chargen", "buffer"])]
    restore: Option<PathBuf>,
    /// The router beyond the server's own networks. Give it once per family.
    #[arg(long, value_name = "ADDRESS")]
    via: Vec<IpAddr>,
    /// The device's largest datagram.
    #[arg(long, value_name = "BYTES", default_value_t = 1500)]
    mtu: u32,
    /// Port of the HTTP server.
    #[arg(long, value_name = "PORT", default_value_t = 80)]
    http: u16,
    /// Port of the echo server, TCP and UDP (RFC 862).
    #[arg(long, value_name = "PORT", default_value_t = 7)]
    echo: u16,
    /// Port of a server that takes everything and says nothing (RFC 863). None unless given.
    #[arg(long, value_name = "PORT")]
    discard: Option<u16>,
    /// Port of a server that sends characters without end (RFC 864). None unless given.
    #[arg(long, value_name = "PORT")]
    chargen: Option<u16>,
    /// Size of each stream's two buffers, a power of two from 2048 to 67108864: they take memory as they are used.
    #[arg(long, value_name = "BYTES", default_value_t = 65_536)]
    buffer: u32,
    /// Whether the device and the server leave checksums and segmentation to each other, `on` or `off`.
    #[arg(long, value_name = "on|off", default_value = "on")]
    offload: OffloadChoice,
    /// The directory whose files are handed out.
    #[arg(long, value_name = "DIRECTORY", default_value = ".")]
    root: PathBuf,
    /// Most connections at once, for each of the two. More wait, and beyond that their SYNs are dropped.
    #[arg(long, value_name = "NUMBER", default_value_t = 256, value_parser = clap::value_parser!(u16).range(1..))]
    max_connections: u16,
    /// Pass no traffic until `sandbox-demo resume`.
    #[arg(long)]
    hold: bool,
    #[command(flatten)]
    seal: Seal,
    #[command(flatten)]
    control: Control,
}

/// Where a gateway runs.
#[derive(Debug, Args)]
struct RunPlace {
    /// A device to join to the stack's link of that name: `eth0` (a packet socket, on a point-to-point IP link or an
    /// Ethernet link), `tun:NAME` (IP) or `tap:NAME` (Ethernet); `@PATH` behind it names the network namespace it is in
    /// (`tun:NAME@/run/netns/guest`). Give it once per link.
    #[arg(long = "link", value_name = "DEVICE", required = true)]
    links: Vec<LinkSpec>,
    /// Whether the devices leave checksums and segmentation to each other: packets of 64 KiB then pass whole, and TCP is
    /// several times as fast. `on`, `off`, or the names of the links where it is on.
    #[arg(long, value_name = "on|off|LINK,..", default_value = "on")]
    offload: OffloadChoice,
    /// Pass no traffic until `sandbox-demo resume`.
    #[arg(long)]
    hold: bool,
    #[command(flatten)]
    egress: EgressArgs,
    #[command(flatten)]
    control: Control,
    /// End with the process of this id.
    #[arg(long, hide = true)]
    parent: Option<u32>,
}

/// Links with offload.
#[derive(Debug, Clone, PartialEq, Eq)]
enum OffloadChoice {
    On,
    Off,
    Of(Vec<String>),
}

impl FromStr for OffloadChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "on" => Ok(Self::On),
            "off" => Ok(Self::Off),
            names if names.split(',').all(|name| !name.is_empty()) => {
                Ok(Self::Of(names.split(',').map(str::to_owned).collect()))
            }
            other => Err(format!("found `{other}`, expected `on`, `off` or names of links with commas between")),
        }
    }
}

impl OffloadChoice {
    /// Refuses the name of a link that there is not.
    fn check(&self, links: &[LinkSpec]) -> anyhow::Result<()> {
        let Self::Of(names) = self else { return Ok(()) };
        let known: Vec<&str> = links.iter().map(LinkSpec::name).collect();
        for name in names {
            anyhow::ensure!(
                known.contains(&name.as_str()),
                "--offload names the link {name}, expected `on`, `off` or one of {}",
                known.join(", ")
            );
        }
        Ok(())
    }

    /// The device with its choice.
    fn chosen(&self, link: LinkSpec) -> LinkSpec {
        let is_on = match self {
            Self::On => true,
            Self::Off => false,
            Self::Of(names) => names.iter().any(|name| name == link.name()),
        };
        link.with_offload(is_on)
    }
}

/// The key of sealed images.
#[derive(Debug, Args)]
struct Seal {
    /// The file with the key that images are sealed with (XChaCha20-Poly1305): 32 bytes, or 64 hexadecimal digits, readable by its
    /// owner only. Make one with `(umask 077; head -c 32 /dev/urandom >key)`. With a key, an image that is not sealed with it
    /// is refused; a gateway or server started with one seals every image that it saves.
    #[arg(long = "seal-key", value_name = "FILE")]
    key: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Control {
    /// The gateway's control socket.
    #[arg(long = "control", value_name = "SOCKET", default_value = "sandbox-demo.sock")]
    socket: PathBuf,
}

impl Cli {
    fn run(self) -> anyhow::Result<ExitCode> {
        let json = self.json;
        match self.command.unwrap_or(Command::Demo { links: None }) {
            Command::Demo { links } => return demo::demo(links, json),
            Command::Run(RunArgs { config, restore, seal: Seal { key }, how, at }) => {
                let start = match (config, restore) {
                    (Some(config), _) => {
                        how.expect_none()?;
                        Start::Fresh(config)
                    }
                    (None, Some(images)) => Start::Restored(Box::new(how.request(images, key.clone())?)),
                    (None, None) => anyhow::bail!("give --config or --restore"),
                };
                at.run(&start, key, json)?;
            }
            Command::Serve(args) => serve::serve(args.options(json)?)?,
            Command::Restore { images, seal: Seal { key }, how, at } => {
                at.run(&Start::Restored(Box::new(how.request(images, key.clone())?)), key, json)?;
            }
            Command::Gateway(args) => serve_guest((*args).options(json)?)?,
            Command::Pause { control } => commands::pause(&control.socket, json)?,
            Command::Status { control } => commands::status(&control.socket, json)?,
            Command::Load { images, seal: Seal { key }, how, control } => {
                commands::load(&control.socket, how.request(images, key)?, json)?;
            }
            Command::Save { image, hold, base, delta, compress, seal: Seal { key: seal_key }, control } => {
                let kind = match (base, delta) {
                    (_, true) => SaveKind::Delta,
                    (true, false) => SaveKind::Base,
                    (false, false) => SaveKind::Full,
                };
                commands::save(&control.socket, &image, hold, SaveForm { kind, compress, seal_key }, json)?;
            }
            Command::Resume { control } => commands::resume(&control.socket, json)?,
            Command::List { control } => commands::list(&control.socket, json)?,
            Command::Neighbours { control } => commands::neighbours(&control.socket, json)?,
            Command::Hooks { control } => commands::hooks(&control.socket, json)?,
            Command::Policy { command: PolicyCommand::Check { file } } => commands::policy_check(&file, json)?,
            Command::Policy { command: PolicyCommand::Load { file, control } } => {
                commands::policy_load(&file, &control.socket, json)?;
            }
            Command::Events { after, control } => commands::events(&control.socket, after, json)?,
            Command::Egress { control } => commands::egress(&control.socket, json)?,
            Command::Stats { control } => commands::stats(&control.socket, json)?,
            Command::Vm(command) => return command.run(json),
            Command::Inspect { images, seal: Seal { key: seal_key } } => {
                commands::inspect(&ImageFiles { paths: images, seal_key }, json)?;
            }
            Command::Diff { before, after, before_deltas, after_deltas, seal } => {
                let files = |image, deltas: Vec<PathBuf>| {
                    let paths = std::iter::once(image).chain(deltas).collect();
                    ImageFiles { paths, seal_key: seal.key.clone() }
                };
                let differs = commands::diff(&files(before, before_deltas), &files(after, after_deltas), json)?;
                return Ok(ExitCode::from(u8::from(differs)));
            }
            Command::Peer { parent } => peers::serve(parent)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl EgressArgs {
    fn limits(&self) -> EgressLimits {
        let (most, connect) = (self.flows as usize, Duration::from_secs(self.connect));
        EgressLimits { tcp: most, udp: most, connect, ..EgressLimits::default() }
    }
}

impl RunPlace {
    fn run(&self, start: &Start, seal_key: Option<PathBuf>, json: bool) -> anyhow::Result<()> {
        if let Some(parent) = self.parent {
            netns::die_with(parent)?;
        }
        self.offload.check(&self.links)?;
        let links: Vec<LinkSpec> = self.links.iter().cloned().map(|link| self.offload.chosen(link)).collect();
        let mut engine = start.engine(&links)?;
        engine.seal_with(seal_key)?;
        if self.egress.policy.is_some() || egress::has_policy(engine.stack().0.rules()) {
            let options = EgressOptions { policy: self.egress.policy.clone(), limits: self.egress.limits() };
            return egress::run(engine, &links, &self.control.socket, self.hold, json, &options);
        }
        run(engine, &links, &self.control.socket, self.hold, json)
    }
}

impl ServeArgs {
    fn options(self, json: bool) -> anyhow::Result<ServeOptions> {
        let Self { link, addrs, restore, via, mtu, http, echo, discard, chargen, buffer, offload, .. } = self;
        offload.check(std::slice::from_ref(&link))?;
        let link = offload.chosen(link);
        let (root, max_connections, hold, control) = (self.root, self.max_connections, self.hold, self.control);
        let seal_key = self.seal.key;
        let start = match restore {
            Some(image) => ServeStart::Restored(Box::new(RestoreRequest {
                seal_key: seal_key.clone(),
                ..RestoreRequest::moved(image)
            })),
            None => ServeStart::Fresh(Place { addrs, via, mtu, http, echo, discard, chargen, buffer }),
        };
        Ok(ServeOptions { start, link, root, most: max_connections, control: control.socket, hold, seal_key, json })
    }
}

/// Exit code of `diff` where there is nothing to say of differences.
const DIFF_TROUBLE: u8 = 2;

const EXAMPLE: &str = concat!(
    "An example configuration (chains and their spelling are netfilter's; a chain's policy is accept unless named; ",
    "sysctls have the kernel's names):\n\n",
    include_str!("../example-gateway.json"),
    "\nA link carries IP unless its `medium` says otherwise. Behind a packet socket that is a point-to-point IP link: the \
     device must be up and without ARP, and its other end must have the same hardware address, as the demonstration sets \
     its own up. With `--offload off` the device's own offloads must be off too (`ethtool -K DEVICE tx off tso off gso off \
     gro off`): what comes without a checksum is not read.\n\n\
     {\"name\": \"eth0\", \"mtu\": 1500, \"addrs\": [\"10.0.0.1/24\"], \"medium\": \"ethernet\", \"mac\": \"02:00:00:00:00:01\"}\n\n\
     is an Ethernet link: the gateway speaks ARP and neighbour discovery itself, and has a link-local IPv6 address that \
     follows from its hardware address. Without `mac` it takes the device's, over `tap:NAME` a random one; an image keeps it. \
     The device should have no IP addresses of its own. Rules must let ICMPv6 in (chain input) for neighbour discovery to \
     work, as in nft."
);

const POLICY_EXAMPLE: &str = concat!("An example policy:\n\n", include_str!("../example-egress.toml"));

const SERVE_EXAMPLE: &str = "\
An example, as root; the client is the kernel of a namespace:

  ip netns add client
  ip -n client tuntap add mode tun name box0
  ip -n client addr add 10.9.0.1/24 dev box0
  ip -n client addr add fd00:9::1/64 dev box0 nodad
  ip -n client link set box0 up
  sandbox-demo serve --link tun:box0@/run/netns/client --addr 10.9.0.2/24 --addr fd00:9::2/64 --root /usr/share &
  ip netns exec client curl http://10.9.0.2/
  ip netns exec client curl -g http://[fd00:9::2]/

In the middle of a slow download (`curl --limit-rate 100k -O ..`), the server moves to another process:

  sandbox-demo save --hold state.hib
  kill -KILL %1
  sandbox-demo serve --link tun:box0@/run/netns/client --restore state.hib --root /usr/share

The directory must have the same files then; a download whose file has another length is reset.";

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn no_subcommand_means_the_demonstration() {
        let cli = Cli::try_parse_from(["sandbox-demo", "--json"]).expect("a command line");
        assert!(cli.command.is_none() && cli.json);
    }

    #[test]
    fn offload_is_on_for_all_links_for_none_or_for_those_that_are_named() {
        let links: Vec<LinkSpec> = ["tap:a0", "tap:b0"].map(|text| text.parse().expect("a device")).to_vec();
        let chosen = |text: &str| {
            let choice: OffloadChoice = text.parse().expect("a choice");
            links.iter().map(|link| choice.chosen(link.clone()) == link.clone().with_offload(true)).collect::<Vec<_>>()
        };
        assert_eq!((chosen("on"), chosen("off")), (vec![true, true], vec![false, false]));
        assert_eq!((chosen("b0"), chosen("b0,a0")), (vec![false, true], vec![true, true]));
        assert!("a0,".parse::<OffloadChoice>().is_err() && "".parse::<OffloadChoice>().is_err());
        let error = OffloadChoice::Of(vec!["c0".into()]).check(&links).expect_err("no such link").to_string();
        assert!(error.contains("c0") && error.contains("a0, b0"), "{error}");
    }

    #[test]
    fn a_gateway_starts_from_a_configuration_or_an_image_not_both() {
        let parse = |args: &[&str]| Cli::try_parse_from([&["sandbox-demo", "run", "--link", "a0"], args].concat());
        assert!(parse(&["--config", "x"]).is_ok());
        assert!(parse(&["--restore", "x"]).is_ok());
        assert!(parse(&[]).is_err());
        assert!(parse(&["--config", "x", "--restore", "y"]).is_err());
    }
}
