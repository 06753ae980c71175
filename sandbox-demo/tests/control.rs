//! The control socket of a gateway in a process of its own, as any HTTP client sees it.

#![expect(clippy::disallowed_methods, reason = "files and waiting are this program's work")]

use std::io::Read;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use serde_json::json;

const CONFIG: &str = r#"{"links": [
    {"name": "guest0", "mtu": 1500, "addrs": ["10.0.2.2/24"], "medium": "ethernet", "mac": "02:00:00:00:00:02"}],
    "rules": [], "tcp_echo": 7}"#;

struct Gateway {
    process: Child,
    directory: PathBuf,
}

impl Gateway {
    fn start(directory: &Path, source: &[&str]) -> Self {
        std::fs::write(directory.join("gateway.json"), CONFIG).expect("a file");
        let link = format!("stream:guest0@{}", directory.join("net.sock").display());
        let process = Command::new(env!("CARGO_BIN_EXE_sandbox-demo"))
            .current_dir(directory)
            .args(["run", "--link", &link, "--control", "control"])
            .args(source)
            .stdout(Stdio::null())
            .spawn()
            .expect("the gateway starts");
        let gateway = Self { process, directory: directory.to_owned() };
        while UnixStream::connect(directory.join("control")).is_err() {
            std::thread::sleep(Duration::from_millis(10));
        }
        gateway
    }

    fn connect(&self) -> UnixStream {
        UnixStream::connect(self.directory.join("control")).expect("the gateway listens")
    }

    fn ask(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let mut stream = self.connect();
        send(&mut stream, method, path, body);
        answer(&mut stream)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.process.kill().expect("it can be killed");
        self.process.wait().expect("it ends");
    }
}

fn send(stream: &mut UnixStream, method: &str, path: &str, body: &Value) {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: test\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes()).expect("the gateway reads");
}

fn answer(stream: &mut UnixStream) -> (u16, Value) {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).expect("a head");
        bytes.extend(byte);
    }
    let head = String::from_utf8(bytes).expect("a head is text");
    assert!(head.starts_with("HTTP/1.1 ") && head.contains("Content-Type: application/json\r\n"), "{head}");
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).expect("a length");
    let mut body = vec![0; length.parse().expect("a number")];
    stream.read_exact(&mut body).expect("a body");
    (head[9..12].parse().expect("a status"), serde_json::from_slice(&body).expect("a body is JSON"))
}

#[test]
fn a_gateway_is_paused_saved_killed_and_restored_over_its_control_socket() {
    let directory = tempfile::tempdir().expect("a directory");
    let image = directory.path().join("net.hib");
    let nothing = Value::Null;
    let generation = {
        let gateway = Gateway::start(directory.path(), &["--config", "gateway.json"]);
        assert_eq!(gateway.ask("GET", "/status", &nothing).1["state"], "running");
        let (status, refused) = gateway.ask("PUT", "/restore", &json!({"path": image}));
        assert!(status == 409 && refused["error"].to_string().contains("PUT /pause first"), "{status} {refused}");
        assert_eq!(gateway.ask("PUT", "/pause", &nothing), (200, json!({"state": "paused", "drained": 0})));
        assert_eq!(gateway.ask("PUT", "/pause", &nothing).0, 200, "once more changes nothing");
        let (status, saved) = gateway.ask("PUT", "/save", &json!({"path": image}));
        assert_eq!(status, 200, "{saved}");
        assert_eq!(saved["bytes"], std::fs::metadata(&image).expect("a file").len());
        let nowhere = directory.path().join("no/such/place");
        assert_eq!(gateway.ask("PUT", "/save", &json!({"path": nowhere})).0, 500);
        assert_eq!(gateway.ask("GET", "/status", &nothing).1["state"], "paused", "a failed save changes nothing");
        saved["generation"].clone()
    };
    // Killed; its socket's file is still there.
    let path = image.to_str().expect("a plain path");
    let gateway = Gateway::start(directory.path(), &["--restore", path, "--hold"]);
    let (_, status) = gateway.ask("GET", "/status", &nothing);
    assert_eq!((&status["state"], &status["restored"]["parent"]), (&json!("paused"), &generation));
    let first = status["restored"]["instance"].clone();
    let fork = json!({
        "path": image, "clone": "fork", "inside": ["guest0"], "time": "elapse", "elapsed": "1d",
        "rules": [{"match": {"proto": "tcp"}, "action": "keep"}]
    });
    let (status, restored) = gateway.ask("PUT", "/restore", &fork);
    assert_eq!((status, &restored["parent"]), (200, &generation), "{restored}");
    assert_eq!(restored["counted_seconds"], 86_400.0);
    assert_ne!(restored["instance"], first);
    for (body, status, expected) in [
        (json!({"path": image, "inside": ["guest9"]}), 422, "names the link `guest9`"),
        (json!({"path": "net.hib"}), 400, "expected an absolute one"),
        (json!({"path": directory.path().join("gateway.json")}), 422, "gateway.json"),
        (json!({"path": image, "clone": "twice"}), 400, "unknown variant `twice`"),
        (json!({"path": image, "rules": []}), 422, "for a fork alone"),
    ] {
        let (found, refused) = gateway.ask("PUT", "/restore", &body);
        assert!(found == status && refused["error"].to_string().contains(expected), "{found} {refused}");
    }
    let (_, status) = gateway.ask("GET", "/status", &nothing);
    assert_eq!(status["restored"], restored, "a refused image changes nothing");
    let (_, resumed) = gateway.ask("PUT", "/resume", &nothing);
    assert_eq!(resumed["state"], "running");
}

#[test]
fn two_clients_are_served_at_once_and_bytes_that_are_no_request_harm_nobody() {
    let directory = tempfile::tempdir().expect("a directory");
    let gateway = Gateway::start(directory.path(), &["--config", "gateway.json"]);
    let (mut first, mut second) = (gateway.connect(), gateway.connect());
    first.write_all(b"GET /status HT").expect("half a request");
    send(&mut second, "GET", "/hooks", &Value::Null);
    assert_eq!(answer(&mut second).0, 200, "it does not wait for the other");
    let mut garbage = gateway.connect();
    garbage.write_all(&[0xff; 9000]).expect("it is read");
    assert_eq!(answer(&mut garbage).0, 400);
    assert_eq!(garbage.read(&mut [0; 1]).expect("an end"), 0, "nothing follows it");
    first.write_all(b"TP/1.1\r\n\r\n").expect("the other half");
    assert_eq!(answer(&mut first).1["state"], "running");
    send(&mut first, "GET", "/nothing", &Value::Null);
    assert_eq!(answer(&mut first).0, 404, "a refusal does not end the connection");
    send(&mut first, "GET", "/stats", &Value::Null);
    assert_eq!(answer(&mut first).0, 200);
}
