//! The command line.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::ArgGroup;
use clap::Args;
use clap::Parser;
use clap::Subcommand;

use crate::commands;
use crate::demo;
use crate::demo::LinkChoice;
use crate::gateway;
use crate::gateway::Start;
use crate::link::LinkSpec;
use crate::netns;
use crate::peers;

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
    /// It makes its own namespaces, a guest and a world with kernel TCP in both, and a gateway process between them. Under
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
    /// Save a running gateway to a file.
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
        at: RunPlace,
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
    at: RunPlace,
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
            Command::Run(RunArgs { config, restore, at }) => {
                let start = config.map(Start::Fresh).or(restore.map(Start::Restored));
                at.run(&start.ok_or_else(|| anyhow::anyhow!("give --config or --restore"))?)?;
            }
            Command::Restore { image, at } => at.run(&Start::Restored(image))?,
            Command::Save { image, hold, control } => commands::save(&control.socket, &image, hold, json)?,
            Command::Resume { control } => commands::resume(&control.socket, json)?,
            Command::List { control } => commands::list(&control.socket, json)?,
            Command::Neighbours { control } => commands::neighbours(&control.socket, json)?,
            Command::Hooks { control } => commands::hooks(&control.socket, json)?,
            Command::Stats { control } => commands::stats(&control.socket, json)?,
            Command::Inspect { image } => commands::inspect(&image, json)?,
            Command::Diff { before, after } => commands::diff(&before, &after, json)?,
            Command::Peer { parent } => peers::serve(parent)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl RunPlace {
    fn run(&self, start: &Start) -> anyhow::Result<()> {
        if let Some(parent) = self.parent {
            netns::die_with(parent)?;
        }
        gateway::run(start, &self.links, &self.control.socket, self.hold)
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
    fn a_gateway_starts_from_a_configuration_or_an_image_not_both() {
        let parse = |args: &[&str]| Cli::try_parse_from([&["sandbox-demo", "run", "--link", "a0"], args].concat());
        assert!(parse(&["--config", "x"]).is_ok());
        assert!(parse(&["--restore", "x"]).is_ok());
        assert!(parse(&[]).is_err());
        assert!(parse(&["--config", "x", "--restore", "y"]).is_err());
    }
}
