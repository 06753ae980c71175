//! The arguments that say how an image comes back.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use hibernet_netstack::ForkAction;
use hibernet_netstack::ForkRule;
use hibernet_netstack::ForkRules;

use crate::gateway::CloneKind;
use crate::gateway::RestoreRequest;
use crate::gateway::Span;
use crate::gateway::TimeChoice;

/// How an image comes back.
#[derive(Debug, Args)]
#[command(next_help_heading = "Restoring")]
pub(super) struct RestoreArgs {
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

impl RestoreArgs {
    /// The same arguments for another process.
    pub(super) fn arguments(&self) -> Vec<String> {
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

    /// The request these arguments make for an image, and the deltas behind it.
    pub(super) fn request(self, mut images: Vec<PathBuf>, seal_key: Option<PathBuf>) -> anyhow::Result<RestoreRequest> {
        anyhow::ensure!(!images.is_empty(), "no image is named");
        let deltas = images.split_off(1);
        let path = images.pop().unwrap_or_default();
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
        Ok(RestoreRequest { path, deltas, seal_key, kind, rules, time, elapsed, inside })
    }

    /// Refused where there is no image to restore.
    pub(super) fn expect_none(&self) -> anyhow::Result<()> {
        let is_default = !self.fork && self.inside.is_empty() && self.elapsed.is_none();
        let is_default = is_default && self.time == TimeChoice::default();
        anyhow::ensure!(
            is_default,
            "--fork, --inside, --time and --elapsed are about an image: give them with --restore"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::Cli;
    use super::super::Command;

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
        let request = how.request(vec!["i".into()], None).expect("a request");
        assert_eq!(again.request(vec!["i".into()], None).expect("a request"), request);
        assert_eq!(request.rules.expect("rules").rules.len(), 2);
    }
}
