//! The command line.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::ArgGroup;
use clap::Args;
use clap::Parser;
use clap::Subcommand;
use hibernet_netstack::Cidr;
use hibernet_netstack::ForkAction;
use hibernet_netstack::ForkRule;
use hibernet_netstack::ForkRules;

use crate::commands;
use crate::demo;
use crate::demo::LinkChoice;
use crate::gateway;
use crate::gateway::CloneKind;
use crate::gateway::RestoreRequest;
use crate::gateway::Span;
use crate::gateway::Start;
use crate::gateway::TimeChoice;
use crate::link::LinkSpec;
use crate::netns;
use crate::peers;
use crate::serve;
use crate::serve::Place;
use crate::serve::ServeOptions;
use crate::serve::ServeStart;
use crate::vm::RestoreVm;
use crate::vm::SaveVm;

/// Runs the program: 0 if all went well, 1 if something failed, 2 if the command line made no sense.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("sandbox-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
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
    /// Save a running gateway or server to a file.
    ///
    /// The file appears whole or not at all, readable by its owner only. It holds flows, NAT bindings, rules and users'
    /// bytes, but no key. With --hold the gateway stands still afterwards, so that another process can take over from the
    /// file; without it traffic goes on, and the file is a copy of the past.
    Save {
        /// The file to write.
        image: PathBuf,
        /// Stand still afterwards, until `resume` or the end.
        #[arg(long)]
        hold: bool,
        #[command(flatten)]
        control: Control,
    },
    /// Run a gateway restored from an image: `run --restore IMAGE`.
    ///
    /// Configuration, rules, flows and bindings come from the image; keys are drawn afresh. The devices must have the names
    /// that the saved gateway's had.
    Restore {
        /// The image to start from.
        image: PathBuf,
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
        /// The image.
        image: PathBuf,
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
    /// Print what an image holds: its header, sections and counts.
    Inspect {
        /// The image.
        image: PathBuf,
    },
    /// Print what changed between two images.
    Diff {
        /// The earlier image.
        before: PathBuf,
        /// The later image.
        after: PathBuf,
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
enum VmCommand {
    /// Stop a machine, save it and its gateway to a directory, and end both.
    ///
    /// The machine is stopped first; then the gateway takes in what the machine had sent and is saved; then QEMU writes the
    /// machine's state. The directory appears whole or not at all. If anything fails, machine and gateway go on.
    #[command(after_long_help = VM_EXAMPLE)]
    Save {
        /// The directory to make: vm.state, net.hib and checkpoint.json.
        directory: PathBuf,
        /// Let machine and gateway go on; the checkpoint is a copy of the past. To run both, restore it with --fork.
        #[arg(long)]
        keep_running: bool,
        /// The machine's monitor (`-qmp unix:SOCKET,server=on,wait=off`).
        #[arg(long, value_name = "SOCKET", default_value = "qmp.sock")]
        qmp: PathBuf,
        #[command(flatten)]
        control: Control,
    },
    /// Restore a machine and its gateway from a directory, and stay until the machine ends.
    ///
    /// The gateway is restored and listens first, then QEMU reads the machine's state, then both go on. Behind `--` stands
    /// QEMU's command line as it was at the first start, but for -S, -qmp and -incoming, which are added.
    #[command(after_long_help = VM_EXAMPLE)]
    Restore {
        /// The directory that `vm save` has made.
        directory: PathBuf,
        /// As for `run`. Give it once per link.
        #[arg(long = "link", value_name = "DEVICE", required = true)]
        links: Vec<LinkSpec>,
        #[command(flatten)]
        how: RestoreArgs,
        /// Where the machine's monitor will listen.
        #[arg(long, value_name = "SOCKET", default_value = "qmp.sock")]
        qmp: PathBuf,
        #[command(flatten)]
        control: Control,
        /// QEMU's command line.
        #[arg(last = true, required = true, value_name = "QEMU")]
        qemu: Vec<String>,
    },
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("start").required(true))]
struct RunArgs {
    /// Start with this configuration and an empty flow table.
    #[arg(long, value_name = "FILE", group = "start")]
    config: Option<PathBuf>,
    /// Start from this image; configuration and rules come with it.
    #[arg(long, value_name = "IMAGE", group = "start")]
    restore: Option<PathBuf>,
    #[command(flatten)]
    how: RestoreArgs,
    #[command(flatten)]
    at: RunPlace,
}

/// How an image comes back.
#[derive(Debug, Args)]
#[command(next_help_heading = "Restoring")]
struct RestoreArgs {
    /// The saved gateway may still live: of its flows only those go on here that a rule keeps. Others end, and only the guest is
    /// told.
    #[arg(long)]
    fork: bool,
    /// A rule of the fork, `ACTION KEY=VALUE ..`, such as 'keep proto=tcp dport=22'. ACTION is keep, reset or drop; keys are
    /// proto, saddr, daddr, sport, dport, state, zone, mark, direction (outbound, inbound, internal, transit), iif and oif. The
    /// first rule that matches decides. Give it once per rule; these come before those of --fork-rules.
    #[arg(long = "fork-rule", value_name = "RULE", requires = "fork")]
    fork_rules: Vec<ForkRule>,
    /// A file of rules: a JSON list of {"match": {..}, "action": ".."}, or {"rules": [..], "default": ".."}.
    #[arg(long = "fork-rules", value_name = "FILE", requires = "fork")]
    fork_file: Option<PathBuf>,
    /// What becomes of flows to the outside that no rule matches: reset (if nothing else is said), keep or drop.
    #[arg(long, value_name = "ACTION", requires = "fork")]
    fork_default: Option<ForkAction>,
    /// A link that leads to the guest; the others lead outside. Give it once per link.
    #[arg(long, value_name = "LINK")]
    inside: Vec<String>,
    /// What the time since the save counts for: freeze (nothing), elapse (all of it), or cap=TIME (at most so much), such as
    /// cap=1h. Whatever faces an inside link stands still.
    #[arg(long, value_name = "POLICY", default_value = "freeze")]
    time: TimeChoice,
    /// How long ago the image was saved (90s, 15m, 1h, 2d), if the system's clock cannot say.
    #[arg(long, value_name = "TIME")]
    elapsed: Option<Span>,
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
    #[arg(long, value_name = "IMAGE", group = "stack", conflicts_with_all = ["via", "mtu", "http", "echo"])]
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
    /// Pass no traffic until `sandbox-demo resume`.
    #[arg(long)]
    hold: bool,
    #[command(flatten)]
    control: Control,
    /// End with the process of this id.
    #[arg(long, hide = true)]
    parent: Option<u32>,
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
            Command::Run(RunArgs { config, restore, how, at }) => {
                let start = match (config, restore) {
                    (Some(config), _) => {
                        how.expect_none()?;
                        Start::Fresh(config)
                    }
                    (None, Some(image)) => Start::Restored(Box::new(how.request(image)?)),
                    (None, None) => anyhow::bail!("give --config or --restore"),
                };
                at.run(&start, json)?;
            }
            Command::Serve(args) => serve::serve(args.options(json))?,
            Command::Restore { image, how, at } => at.run(&Start::Restored(Box::new(how.request(image)?)), json)?,
            Command::Pause { control } => commands::pause(&control.socket, json)?,
            Command::Status { control } => commands::status(&control.socket, json)?,
            Command::Load { image, how, control } => commands::load(&control.socket, how.request(image)?, json)?,
            Command::Save { image, hold, control } => commands::save(&control.socket, &image, hold, json)?,
            Command::Resume { control } => commands::resume(&control.socket, json)?,
            Command::List { control } => commands::list(&control.socket, json)?,
            Command::Neighbours { control } => commands::neighbours(&control.socket, json)?,
            Command::Hooks { control } => commands::hooks(&control.socket, json)?,
            Command::Stats { control } => commands::stats(&control.socket, json)?,
            Command::Vm(command) => return command.run(json),
            Command::Inspect { image } => commands::inspect(&image, json)?,
            Command::Diff { before, after } => commands::diff(&before, &after, json)?,
            Command::Peer { parent } => peers::serve(parent)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl VmCommand {
    fn run(self, json: bool) -> anyhow::Result<ExitCode> {
        match self {
            Self::Save { directory, keep_running, qmp, control } => {
                SaveVm { directory, qmp, control: control.socket, keep_running, json }.run()?;
                Ok(ExitCode::SUCCESS)
            }
            Self::Restore { directory, links, how, qmp, control, qemu } => {
                let mut gateway = how.arguments();
                gateway.extend(links.iter().flat_map(|link| ["--link".to_owned(), link.to_string()]));
                let status = RestoreVm { directory, qmp, control: control.socket, gateway, qemu, json }.run()?;
                Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
            }
        }
    }
}

impl RestoreArgs {
    /// The same arguments for another process.
    fn arguments(&self) -> Vec<String> {
        let Self { fork, fork_rules, fork_file, fork_default, inside, time, elapsed } = self;
        let mut arguments = vec![format!("--time={time}")];
        arguments.extend(fork.then(|| "--fork".to_owned()));
        arguments.extend(fork_rules.iter().map(|rule| format!("--fork-rule={rule}")));
        arguments.extend(fork_file.iter().map(|file| format!("--fork-rules={}", file.display())));
        arguments.extend(fork_default.iter().map(|action| format!("--fork-default={action}")));
        arguments.extend(inside.iter().map(|link| format!("--inside={link}")));
        arguments.extend(elapsed.iter().map(|elapsed| format!("--elapsed={elapsed}")));
        arguments
    }

    /// The request these arguments make.
    fn request(self, image: PathBuf) -> anyhow::Result<RestoreRequest> {
        let Self { fork, fork_rules, fork_file, fork_default, inside, time, elapsed } = self;
        let rules = match fork {
            false => None,
            true => {
                let mut rules = match &fork_file {
                    None => ForkRules::default(),
                    Some(file) => {
                        let text = std::fs::read_to_string(file)
                            .with_context(|| format!("reading the rules of the fork in {}", file.display()))?;
                        ForkRules::from_json(&text).with_context(|| format!("the rules in {}", file.display()))?
                    }
                };
                rules.rules.splice(0..0, fork_rules);
                rules.default = fork_default.unwrap_or(rules.default);
                Some(rules)
            }
        };
        let kind = if fork { CloneKind::Fork } else { CloneKind::Move };
        Ok(RestoreRequest { path: image, kind, rules, time, elapsed, inside })
    }

    /// Refused where there is no image to restore.
    fn expect_none(&self) -> anyhow::Result<()> {
        let is_default = !self.fork && self.inside.is_empty() && self.elapsed.is_none();
        let is_default = is_default && self.time == TimeChoice::default();
        anyhow::ensure!(
            is_default,
            "--fork, --inside, --time and --elapsed are about an image: give them with --restore"
        );
        Ok(())
    }
}

impl RunPlace {
    fn run(&self, start: &Start, json: bool) -> anyhow::Result<()> {
        if let Some(parent) = self.parent {
            netns::die_with(parent)?;
        }
        gateway::run(start, &self.links, &self.control.socket, self.hold, json)
    }
}

impl ServeArgs {
    fn options(self, json: bool) -> ServeOptions {
        let Self { link, addrs, restore, via, mtu, http, echo, root, max_connections, hold, control } = self;
        let start = match restore {
            Some(image) => ServeStart::Restored(Box::new(RestoreRequest::moved(image))),
            None => ServeStart::Fresh(Place { addrs, via, mtu, http, echo }),
        };
        ServeOptions { start, link, root, most: max_connections, control: control.socket, hold, json }
    }
}

const EXAMPLE: &str = concat!(
    "An example configuration (chains and their spelling are netfilter's; a chain's policy is accept unless named; ",
    "sysctls have the kernel's names):\n\n",
    include_str!("../example-gateway.json"),
    "\nA link carries IP unless its `medium` says otherwise. Behind a packet socket that is a point-to-point IP link: the \
     device must be up and without ARP, its other end must have the same hardware address, and offloads must be off, as \
     the demonstration sets its own up.\n\n\
     {\"name\": \"eth0\", \"mtu\": 1500, \"addrs\": [\"10.0.0.1/24\"], \"medium\": \"ethernet\", \"mac\": \"02:00:00:00:00:01\"}\n\n\
     is an Ethernet link: the gateway speaks ARP and neighbour discovery itself, and has a link-local IPv6 address that \
     follows from its hardware address. Without `mac` it takes the device's, over `tap:NAME` a random one; an image keeps it. \
     The device should have no IP addresses of its own, and offloads must be off. Rules must let ICMPv6 in (chain input) \
     for neighbour discovery to work, as in nft."
);

const VM_EXAMPLE: &str = "\
An example. `gateway.json` has an Ethernet link `guest0`; the gateway listens for QEMU first:

  sandbox-demo run --link stream:guest0@/tmp/net.sock .. --config gateway.json &
  qemu-system-x86_64 .. -netdev stream,id=n0,server=off,addr.type=unix,addr.path=/tmp/net.sock \\
    -device virtio-net-pci,netdev=n0 -qmp unix:qmp.sock,server=on,wait=off &
  sandbox-demo vm save checkpoint1
  sandbox-demo vm restore checkpoint1 --link stream:guest0@/tmp/net.sock .. -- qemu-system-x86_64 ..

A copy that runs beside the first one gets sockets of its own, and ends what the first one goes on with:

  sandbox-demo vm restore checkpoint1 --fork --inside guest0 --control 2.sock --qmp qmp2.sock \\
    --link stream:guest0@/tmp/net2.sock .. -- qemu-system-x86_64 .. -device vmgenid,guid=auto

With -device vmgenid,guid=auto the guest's kernel (Linux 5.18 and later) draws its random numbers afresh.";

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
    fn how_an_image_comes_back_is_the_same_for_the_process_that_is_told_to_do_it() {
        let words = [
            "--fork",
            "--fork-rule",
            "keep proto=tcp dport=22",
            "--fork-rule=drop state=syn_sent",
            "--fork-default",
            "drop",
            "--inside",
            "guest0",
            "--time",
            "cap=1h",
            "--elapsed",
            "2d",
        ];
        let parse = |words: &[&str]| {
            let cli = Cli::try_parse_from([&["sandbox-demo", "restore", "i", "--link", "a0"], words].concat());
            let Some(Command::Restore { how, .. }) = cli.expect("a command line").command else { panic!("another") };
            how
        };
        let how = parse(&words);
        let again = how.arguments();
        let again = parse(&again.iter().map(String::as_str).collect::<Vec<_>>());
        let request = how.request("i".into()).expect("a request");
        assert_eq!(again.request("i".into()).expect("a request"), request);
        assert_eq!(request.rules.expect("rules").rules.len(), 2);
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
