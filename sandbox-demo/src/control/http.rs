//! The words of the control socket: HTTP/1.1 (RFC 9112) with JSON bodies, a request to each path.

use serde::Deserialize;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::protocol::Request;
use super::protocol::SaveRequest;

/// Why a request was not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refused {
    /// The status code (RFC 9110, section 15).
    pub(crate) status: u16,
    /// Why, in one line.
    pub(crate) error: String,
}

impl Refused {
    pub(crate) fn new(status: u16, error: impl Into<String>) -> Self {
        Self { status, error: error.into() }
    }
}

/// Whatever has no code of its own failed here.
impl From<String> for Refused {
    fn from(error: String) -> Self {
        Self { status: 500, error }
    }
}

impl From<anyhow::Error> for Refused {
    fn from(error: anyhow::Error) -> Self {
        Self::from(format!("{error:#}"))
    }
}

/// What has been read of a connection comes to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// There is more to come.
    Part,
    /// A whole request, `length` bytes long, or why it is none. `close`: nothing may follow it.
    Whole { length: usize, request: Result<Request, Refused>, close: bool },
}

/// Reads the first request of `bytes`.
pub(super) fn read(bytes: &[u8]) -> Read {
    let unreadable = |status, error: String| Read::Whole {
        length: bytes.len(),
        request: Err(Refused::new(status, error)),
        close: true,
    };
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Request::new(&mut headers);
    let start = match head.parse(bytes) {
        Ok(httparse::Status::Complete(start)) => start,
        Ok(httparse::Status::Partial) if bytes.len() > MAX_HEAD => {
            return unreadable(431, format!("the request's head is longer than {MAX_HEAD} bytes"));
        }
        Ok(httparse::Status::Partial) => return Read::Part,
        Err(error) => return unreadable(400, format!("not an HTTP request: {error}")),
    };
    let header = |name: &str| {
        let mut found = head.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
        found.next().map(|header| header.value)
    };
    if header("transfer-encoding").is_some() {
        return unreadable(501, "Transfer-Encoding is not supported: give a Content-Length".to_owned());
    }
    let length = match header("content-length").map(|value| std::str::from_utf8(value).map(str::parse::<usize>)) {
        None => 0,
        Some(Ok(Ok(length))) => length,
        Some(_) => return unreadable(400, "Content-Length is no number".to_owned()),
    };
    if length > MAX_BODY {
        return unreadable(413, format!("the body is {length} bytes long, at most {MAX_BODY} are taken"));
    }
    let end = start.saturating_add(length);
    let Some(body) = bytes.get(start..end) else { return Read::Part };
    let is_old = head.version == Some(0);
    let asks_to_close = header("connection").is_some_and(|value| value.eq_ignore_ascii_case(b"close"));
    let request = route(head.method.unwrap_or_default(), head.path.unwrap_or_default(), body);
    Read::Whole { length: end, request, close: is_old || asks_to_close }
}

/// An answer.
pub(super) fn answer(result: &Result<Value, Refused>, close: bool) -> Vec<u8> {
    let (status, body) = match result {
        Ok(value) => (200, value.to_string()),
        Err(Refused { status, error }) => (*status, serde_json::json!({ "error": error }).to_string()),
    };
    let connection = if close { "close" } else { "keep-alive" };
    format!(
        "HTTP/1.1 {status} {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: {connection}\r\n\r\n{body}\n",
        reason(status),
        body.len().saturating_add(1)
    )
    .into_bytes()
}

/// A request as a client sends it.
pub(super) fn request(request: &Request) -> anyhow::Result<Vec<u8>> {
    let (method, path) = place(request);
    let query = match request {
        Request::Events { after: Some(after) } => format!("?after={after}"),
        _ => String::new(),
    };
    let body = match request {
        Request::Save { path, after, form } => {
            json(&SaveRequest { path: path.clone(), after: *after, form: form.clone() })?
        }
        Request::Restore(restore) => json(restore)?,
        Request::Policy { text } => json(&PolicyText { text: text.clone() })?,
        Request::Canary { path } => json(&ImagePath { path: path.clone() })?,
        _ => String::new(),
    };
    let head = format!("{method} {path}{query} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len());
    Ok((head + &body).into_bytes())
}

/// An answer that has been read, if it is whole.
pub(super) fn read_answer(bytes: &[u8]) -> anyhow::Result<Option<Result<Value, Refused>>> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(start) = head.parse(bytes)? else { return Ok(None) };
    let length = head.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let length = length.and_then(|header| std::str::from_utf8(header.value).ok()?.parse::<usize>().ok());
    let Some(body) = bytes.get(start..start.saturating_add(length.unwrap_or(0))) else { return Ok(None) };
    match head.code.unwrap_or(500) {
        200 => Ok(Some(Ok(serde_json::from_slice(body)?))),
        status => {
            let Failed { error } = serde_json::from_slice(body)?;
            Ok(Some(Err(Refused { status, error })))
        }
    }
}

#[derive(Deserialize)]
struct Failed {
    error: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ImagePath {
    path: std::path::PathBuf,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyText {
    text: String,
}

/// What is asked for by a method and a path.
fn route(method: &str, path: &str, body: &[u8]) -> Result<Request, Refused> {
    let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
    let after = match query.filter(|query| !query.is_empty()) {
        None => None,
        Some(query) => {
            let number =
                query.strip_prefix("after=").filter(|_| path == "/events").and_then(|after| after.parse().ok());
            let expected = "expected none but `/events?after=NUMBER`: arguments go into the body, as JSON";
            Some(number.ok_or_else(|| Refused::new(400, format!("found the query {query:?}, {expected}")))?)
        }
    };
    let Some(allowed) = PLACES.iter().find(|(_, known)| *known == path).map(|(method, _)| *method) else {
        let known: Vec<&str> = PLACES.iter().map(|(_, path)| *path).collect();
        return Err(Refused::new(404, format!("found {path:?}, expected one of {}", known.join(", "))));
    };
    if method != allowed {
        return Err(Refused::new(405, format!("found {method} {path}, expected {allowed}")));
    }
    let request = match path {
        "/status" => Request::Status,
        "/flows" => Request::List,
        "/neighbours" => Request::Neighbours,
        "/hooks" => Request::Hooks,
        "/stats" => Request::Stats,
        "/keys" => Request::Keys,
        "/egress" => Request::Egress,
        "/events" => Request::Events { after },
        "/policy" => {
            let PolicyText { text } = arguments(body)?;
            Request::Policy { text }
        }
        "/pause" => Request::Pause,
        "/resume" => Request::Resume,
        "/canary" => {
            let ImagePath { path } = arguments(body)?;
            Request::Canary { path }
        }
        "/restore" => Request::Restore(arguments(body)?),
        _ => {
            let SaveRequest { path, after, form } = arguments(body)?;
            Request::Save { path, after, form }
        }
    };
    let takes_arguments =
        matches!(request, Request::Save { .. } | Request::Restore(_) | Request::Canary { .. } | Request::Policy { .. });
    if !takes_arguments && !matches!(body.trim_ascii(), b"" | b"{}") {
        return Err(Refused::new(400, format!("{path} takes no arguments")));
    }
    Ok(request)
}

const fn place(request: &Request) -> (&'static str, &'static str) {
    match request {
        Request::Status => ("GET", "/status"),
        Request::List => ("GET", "/flows"),
        Request::Neighbours => ("GET", "/neighbours"),
        Request::Hooks => ("GET", "/hooks"),
        Request::Stats => ("GET", "/stats"),
        Request::Keys => ("GET", "/keys"),
        Request::Egress => ("GET", "/egress"),
        Request::Events { .. } => ("GET", "/events"),
        Request::Policy { .. } => ("PUT", "/policy"),
        Request::Pause => ("PUT", "/pause"),
        Request::Save { .. } => ("PUT", "/save"),
        Request::Resume => ("PUT", "/resume"),
        Request::Restore(_) => ("PUT", "/restore"),
        Request::Canary { .. } => ("PUT", "/canary"),
    }
}

fn arguments<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refused> {
    serde_json::from_slice(body).map_err(|error| Refused::new(400, format!("the body: {error}")))
}

fn json<T: Serialize>(value: &T) -> anyhow::Result<String> {
    Ok(serde_json::to_string(value)?)
}

const fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        409 => "Conflict",
        413 => "Content Too Large",
        422 => "Unprocessable Content",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        _ => "Internal Server Error",
    }
}

const PLACES: [(&str, &str); 14] = [
    ("GET", "/status"),
    ("PUT", "/pause"),
    ("PUT", "/save"),
    ("PUT", "/resume"),
    ("PUT", "/restore"),
    ("GET", "/flows"),
    ("GET", "/neighbours"),
    ("GET", "/hooks"),
    ("GET", "/stats"),
    ("GET", "/events"),
    ("GET", "/egress"),
    ("PUT", "/policy"),
    ("GET", "/keys"),
    ("PUT", "/canary"),
];
/// A head is a line and a few headers that nobody reads.
pub(super) const MAX_HEAD: usize = 8 * 1024;
const MAX_HEADERS: usize = 64;
/// A body is a path and perhaps the rules of a fork.
pub(super) const MAX_BODY: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(text: &str) -> Result<Request, Refused> {
        match read(text.as_bytes()) {
            Read::Whole { request, .. } => request,
            Read::Part => panic!("not whole: {text}"),
        }
    }

    fn put(path: &str, body: &str) -> String {
        format!("PUT {path} HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    }

    #[test]
    fn a_request_is_whole_with_its_last_byte_and_says_where_it_ends() {
        let text = put("/save", r#"{"path": "/x"}"#) + "GET";
        for end in 0..text.len() - 3 {
            assert_eq!(read(&text.as_bytes()[..end]), Read::Part, "{end}");
        }
        let Read::Whole { length, request, close } = read(text.as_bytes()) else { panic!("not whole") };
        assert_eq!((length, close), (text.len() - 3, false));
        let expected = Request::Save { path: "/x".into(), after: super::super::After::GoOn, form: Default::default() };
        assert_eq!(request, Ok(expected));
    }

    #[test]
    fn every_request_of_the_client_is_read_by_the_server_as_itself() {
        let restore = crate::gateway::RestoreRequest { path: "/i".into(), ..Default::default() };
        for request in [
            Request::Status,
            Request::List,
            Request::Neighbours,
            Request::Hooks,
            Request::Stats,
            Request::Keys,
            Request::Egress,
            Request::Events { after: None },
            Request::Events { after: Some(7) },
            Request::Policy { text: "default = \"deny\"".into() },
            Request::Pause,
            Request::Resume,
            Request::Save { path: "/x y".into(), after: super::super::After::Hold, form: Default::default() },
            Request::Canary { path: "/x".into() },
            Request::Restore(restore),
        ] {
            let bytes = super::request(&request).expect("it can be written");
            let Read::Whole { length, request: found, .. } = read(&bytes) else { panic!("not whole") };
            assert_eq!((length, found), (bytes.len(), Ok(request)));
        }
    }

    #[test]
    fn what_cannot_be_asked_is_refused_with_a_code_and_the_reason() {
        let long = format!("GET /status HTTP/1.1\r\nX: {}", "x".repeat(MAX_HEAD));
        for (text, status, expected) in [
            ("GET /nothing HTTP/1.1\r\n\r\n".to_owned(), 404, "expected one of /status, /pause, /save"),
            ("GET /save HTTP/1.1\r\n\r\n".to_owned(), 405, "found GET /save, expected PUT"),
            ("PUT /status HTTP/1.1\r\n\r\n".to_owned(), 405, "expected GET"),
            ("GET /events?after=x HTTP/1.1\r\n\r\n".to_owned(), 400, "found the query"),
            ("GET /status?all HTTP/1.1\r\n\r\n".to_owned(), 400, "found the query \"all\""),
            ("what?\r\n\r\n".to_owned(), 400, "not an HTTP request"),
            (put("/save", "{}"), 400, "missing field `path`"),
            (put("/save", r#"{"path": "/x", "extra": 1}"#), 400, "unknown field `extra`"),
            (put("/restore", r#"{"path": "/x", "time": "often"}"#), 400, "expected freeze, elapse or cap="),
            (put("/pause", r#"{"path": "/x"}"#), 400, "/pause takes no arguments"),
            ("PUT /save HTTP/1.1\r\nContent-Length: x\r\n\r\n".to_owned(), 400, "Content-Length is no number"),
            ("PUT /save HTTP/1.1\r\nContent-Length: 9999999\r\n\r\n".to_owned(), 413, "at most 262144"),
            ("PUT /save HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(), 501, "Content-Length"),
            (long, 431, "longer than 8192 bytes"),
        ] {
            let refused = asked(&text).expect_err("it is refused");
            assert!(refused.status == status && refused.error.contains(expected), "{text}: {refused:?}");
        }
    }

    #[test]
    fn an_answer_is_read_as_it_was_written() {
        for result in [Ok(serde_json::json!({"a": [1, "x"]})), Err(Refused::new(409, "not \"now\""))] {
            let bytes = answer(&result, false);
            assert_eq!(read_answer(&bytes[..bytes.len() - 2]).expect("it is sound"), None);
            assert_eq!(read_answer(&bytes).expect("it is sound"), Some(result));
        }
    }
}
