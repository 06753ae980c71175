//! QEMU's control protocol (QMP): a JSON object to a line, one command at a time, events in between.

use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use serde::Deserialize;
use serde_json::Value;
use serde_json::json;

use crate::fault::Fault;

/// A connection to a virtual machine's monitor.
pub(super) struct Qmp {
    stream: BufReader<UnixStream>,
}

/// How a migration to or from a file stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Migration {
    /// It goes on: bytes so far, and of how many.
    Under { transferred: u64, total: u64 },
    /// The state is written, or read.
    Done,
    /// It failed: why.
    Failed(String),
}

impl Qmp {
    /// Connects to the monitor at `path`, and is ready for commands.
    pub(super) fn connect(path: &Path) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(path).map_err(|error| {
            Fault::new(
                format!("no virtual machine answers at {}: {error}", path.display()),
                "start QEMU with `-qmp unix:SOCKET,server=on,wait=off` and name that socket with --qmp",
            )
        })?;
        stream.set_read_timeout(Some(PATIENCE)).context("setting the monitor's timeout")?;
        stream.set_write_timeout(Some(PATIENCE)).context("setting the monitor's timeout")?;
        let mut qmp = Self { stream: BufReader::new(stream) };
        let greeting = qmp.line().context("waiting for QEMU's greeting")?;
        anyhow::ensure!(
            greeting.get("QMP").is_some(),
            "found {greeting} at {}, expected QEMU's greeting",
            path.display()
        );
        qmp.run("qmp_capabilities", &Value::Null)?;
        Ok(qmp)
    }

    /// Does a command; comes back with what it returns.
    pub(super) fn run(&mut self, command: &str, arguments: &Value) -> anyhow::Result<Value> {
        let mut request = json!({ "execute": command });
        if !arguments.is_null()
            && let Some(object) = request.as_object_mut()
        {
            object.insert("arguments".to_owned(), arguments.clone());
        }
        let mut line = request.to_string();
        line.push('\n');
        self.stream.get_mut().write_all(line.as_bytes()).with_context(|| format!("sending `{command}` to QEMU"))?;
        loop {
            let answer = self.line().with_context(|| format!("waiting for QEMU's answer to `{command}`"))?;
            if let Some(error) = answer.get("error") {
                let why = error.get("desc").and_then(Value::as_str).unwrap_or("no reason given");
                anyhow::bail!("QEMU refuses `{command}`: {why}");
            }
            if let Some(value) = answer.get("return") {
                return Ok(value.clone());
            }
        }
    }

    /// Whether the machine's processors run, by QEMU's name for its state.
    pub(super) fn state(&mut self) -> anyhow::Result<String> {
        let status: Status = serde_json::from_value(self.run("query-status", &Value::Null)?)?;
        Ok(status.status)
    }

    /// How the migration stands.
    pub(super) fn migration(&mut self) -> anyhow::Result<Migration> {
        let info: MigrationInfo = serde_json::from_value(self.run("query-migrate", &Value::Null)?)?;
        let MigrationInfo { status, ram, error } = info;
        Ok(match status.as_deref() {
            Some("completed") => Migration::Done,
            Some("failed" | "cancelled") => {
                Migration::Failed(error.unwrap_or_else(|| "QEMU gives no reason; its own output may".to_owned()))
            }
            _ => {
                let Ram { transferred, total } = ram.unwrap_or_default();
                Migration::Under { transferred, total }
            }
        })
    }

    fn line(&mut self) -> anyhow::Result<Value> {
        let mut line = String::new();
        let read = self.stream.read_line(&mut line)?;
        anyhow::ensure!(read > 0, "QEMU has closed its monitor: it has ended");
        Ok(serde_json::from_str(&line)?)
    }
}

#[derive(Deserialize)]
struct Status {
    status: String,
}

#[derive(Deserialize)]
struct MigrationInfo {
    status: Option<String>,
    ram: Option<Ram>,
    #[serde(rename = "error-desc")]
    error: Option<String>,
}

#[derive(Deserialize, Default)]
struct Ram {
    transferred: u64,
    total: u64,
}

/// Where a machine's state goes to or comes from, by way of `cat`: every QEMU from 2.0 on can do that, `file:` from 8.2 on.
pub(super) fn to_file(path: &Path) -> anyhow::Result<String> {
    Ok(format!("exec:cat > {}", quoted(path)?))
}

/// The same for reading.
pub(super) fn from_file(path: &Path) -> anyhow::Result<String> {
    Ok(format!("exec:cat < {}", quoted(path)?))
}

/// A path as a word of the shell.
fn quoted(path: &Path) -> anyhow::Result<String> {
    let text = path.to_str().with_context(|| format!("the path {} is not UTF-8, which QMP needs", path.display()))?;
    Ok(format!("'{}'", text.replace('\'', r"'\''")))
}

/// QEMU answers at once, but a busy machine may take its time.
const PATIENCE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_path_is_one_word_of_the_shell_whatever_is_in_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("it's $(HOME) \"a\" file");
        std::fs::write(&path, "whole").expect("a file");
        let command = from_file(&path).expect("it can be said");
        let command = command.strip_prefix("exec:").expect("it is for a shell");
        let output = std::process::Command::new("sh").args(["-c", command]).output().expect("a shell");
        assert_eq!(output.stdout, b"whole");
    }

    /// Answers each line it reads with the next of `answers`.
    fn monitor(answers: &'static [&'static str]) -> (tempfile::TempDir, std::path::PathBuf) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("qmp");
        let listener = UnixListener::bind(&path).expect("a socket");
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut lines = BufReader::new(stream.try_clone().expect("a socket")).lines();
            for answer in answers {
                stream.write_all(format!("{answer}\n").as_bytes()).expect("a client that reads");
                if !answer.contains("event") {
                    lines.next();
                }
            }
        });
        (directory, path)
    }

    #[test]
    fn events_between_command_and_answer_are_passed_over() {
        let (_directory, path) = monitor(&[
            r#"{"QMP": {"version": {}, "capabilities": []}}"#,
            r#"{"return": {}}"#,
            r#"{"event": "STOP", "timestamp": {}}"#,
            r#"{"return": {"status": "paused", "running": false}}"#,
            r#"{"return": {"status": "active", "ram": {"transferred": 5, "total": 9}}}"#,
            r#"{"return": {"status": "failed", "error-desc": "no space"}}"#,
            r#"{"error": {"class": "GenericError", "desc": "not now"}}"#,
        ]);
        let mut qmp = Qmp::connect(&path).expect("it greets");
        assert_eq!(qmp.state().expect("an answer"), "paused");
        assert_eq!(qmp.migration().expect("an answer"), Migration::Under { transferred: 5, total: 9 });
        assert_eq!(qmp.migration().expect("an answer"), Migration::Failed("no space".to_owned()));
        let error = qmp.run("cont", &Value::Null).expect_err("an error").to_string();
        assert_eq!(error, "QEMU refuses `cont`: not now");
        let error = format!("{:#}", qmp.state().expect_err("it is gone"));
        assert!(error.contains("it has ended") || error.contains("Broken pipe"), "{error}");
    }

    #[test]
    fn nobody_at_the_socket_is_told_with_the_remedy() {
        let error = Qmp::connect(Path::new("/nonexistent/qmp")).err().expect("nobody is there").to_string();
        assert!(error.contains("/nonexistent/qmp") && error.contains("-qmp unix:SOCKET"), "{error}");
    }
}
