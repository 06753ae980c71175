//! HTTP/1.1 as far as handing out files takes it (RFC 9110, RFC 9112): GET and HEAD, connections that stay open.
//!
//! An exchange is plain data: what has been read of a request, and what is left of an answer. That is what lets a download go
//! on in another process; a library that keeps its connections to itself could not be saved in the middle of one.

use std::fs::File;
use std::io;
use std::time::SystemTime;

use serde::Deserialize;
use serde::Serialize;

use super::files::CHUNK;
use super::files::FilePart;
use super::files::Found;
use super::files::Root;

/// One connection's requests and answers.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Exchange {
    /// Read, and not part of an answered request.
    unread: Vec<u8>,
    answer: Option<Answer>,
}

/// What is left of an answer.
#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    /// Goes before the file.
    queued: Vec<u8>,
    file: Option<FilePart>,
    /// The connection ends behind it.
    close: bool,
}

/// What a connection has to do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Send(Vec<u8>),
    Receive,
    Close,
}

impl Exchange {
    /// What is to be done. `file` is the file of the present answer, kept open from one call to the next.
    pub(super) fn next(&mut self, root: &Root, file: &mut Option<File>) -> io::Result<Next> {
        loop {
            let Some(answer) = &mut self.answer else {
                *file = None;
                match self.take_request() {
                    None => return Ok(Next::Receive),
                    Some(request) => self.answer = Some(request.map_or_else(refusal, |request| answer(&request, root))),
                }
                continue;
            };
            if !answer.queued.is_empty() {
                let next = answer.queued.get(..CHUNK).unwrap_or(&answer.queued);
                return Ok(Next::Send(next.to_vec()));
            }
            if let Some(part) = answer.file.as_ref().filter(|part| part.left() > 0) {
                return part.read(root, file).map(Next::Send);
            }
            if answer.close {
                return Ok(Next::Close);
            }
            self.answer = None;
        }
    }

    /// So many bytes of what was to be sent have been.
    pub(super) fn sent(&mut self, bytes: usize) {
        let Some(answer) = &mut self.answer else { return };
        if answer.queued.is_empty() {
            if let Some(part) = &mut answer.file {
                part.advance(bytes);
            }
        } else {
            answer.queued.drain(..bytes.min(answer.queued.len()));
        }
    }

    /// These bytes have come.
    pub(super) fn received(&mut self, bytes: &[u8]) {
        self.unread.extend_from_slice(bytes);
    }

    /// The next whole request; `None` if more of it has to come.
    fn take_request(&mut self) -> Option<Result<Request, Status>> {
        let parsed = Request::parse(&self.unread);
        if let Ok(Some((length, _))) = &parsed {
            self.unread.drain(..*length);
        }
        match parsed {
            Ok(Some((_, request))) => Some(Ok(request)),
            Ok(None) if self.unread.len() >= MAX_HEAD => Some(Err(Status::HeadTooLarge)),
            Ok(None) => None,
            Err(status) => Some(Err(status)),
        }
    }
}

/// What somebody asks for.
#[derive(Debug, PartialEq, Eq)]
struct Request {
    head_only: bool,
    target: String,
    close: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Ok,
    BadRequest,
    NotFound,
    MethodNotAllowed,
    ContentTooLarge,
    HeadTooLarge,
    VersionNotSupported,
}

impl Request {
    /// Reads a request's head, and how long it is.
    fn parse(bytes: &[u8]) -> Result<Option<(usize, Self)>, Status> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut request = httparse::Request::new(&mut headers);
        let length = match request.parse(bytes) {
            Ok(httparse::Status::Complete(length)) if length <= MAX_HEAD => length,
            Ok(httparse::Status::Complete(_)) | Err(httparse::Error::TooManyHeaders) => {
                return Err(Status::HeadTooLarge);
            }
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(httparse::Error::Version) => return Err(Status::VersionNotSupported),
            Err(_) => return Err(Status::BadRequest),
        };
        let head_only = match request.method {
            Some("GET") => false,
            Some("HEAD") => true,
            _ => return Err(Status::MethodNotAllowed),
        };
        let values = |name: &'static str| {
            let named = request.headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name));
            named.map(|header| String::from_utf8_lossy(header.value).trim().to_ascii_lowercase())
        };
        // RFC 9112, section 3.2.
        if request.version == Some(1) && values("host").count() != 1 {
            return Err(Status::BadRequest);
        }
        if values("transfer-encoding").next().is_some() || values("content-length").any(|length| length != "0") {
            return Err(Status::ContentTooLarge);
        }
        let asks =
            |wanted: &str| values("connection").any(|value| value.split(',').any(|option| option.trim() == wanted));
        let close = if request.version == Some(1) { asks("close") } else { !asks("keep-alive") };
        let target = request.path.unwrap_or_default();
        // The absolute form, as a client sends it through a proxy, names the path behind the host.
        let path = match target.strip_prefix("http://") {
            Some(rest) => rest.find('/').and_then(|at| rest.get(at..)).unwrap_or("/"),
            None => target,
        };
        let path = path.split(['?', '#']).next().unwrap_or_default();
        let path = percent_encoding::percent_decode_str(path).decode_utf8().map_err(|_| Status::BadRequest)?;
        if !path.starts_with('/') {
            return Err(Status::BadRequest);
        }
        Ok(Some((length, Self { head_only, target: path.into_owned(), close })))
    }
}

impl Status {
    fn line(self) -> &'static str {
        match self {
            Self::Ok => "200 OK",
            Self::BadRequest => "400 Bad Request",
            Self::NotFound => "404 Not Found",
            Self::MethodNotAllowed => "405 Method Not Allowed",
            Self::ContentTooLarge => "413 Content Too Large",
            Self::HeadTooLarge => "431 Request Header Fields Too Large",
            Self::VersionNotSupported => "505 HTTP Version Not Supported",
        }
    }
}

fn answer(request: &Request, root: &Root) -> Answer {
    let Request { head_only, target, close } = request;
    let (status, kind, text, file) = match root.find(target) {
        Some(Found::File(part)) => (Status::Ok, "application/octet-stream", String::new(), Some(part)),
        Some(Found::Listing(names)) => (Status::Ok, "text/plain; charset=utf-8", names, None),
        None => (Status::NotFound, "text/plain; charset=utf-8", format!("there is no {target} here\n"), None),
    };
    let length = file.as_ref().map_or(text.len() as u64, FilePart::left);
    let mut queued = head(status, kind, length, *close);
    if *head_only {
        return Answer { queued, file: None, close: *close };
    }
    queued.extend(text.into_bytes());
    Answer { queued, file, close: *close }
}

/// A request that could not be read leaves nothing to go on from.
fn refusal(status: Status) -> Answer {
    let text = format!("{}\n", status.line());
    let mut queued = head(status, "text/plain; charset=utf-8", text.len() as u64, true);
    queued.extend(text.into_bytes());
    Answer { queued, file: None, close: true }
}

fn head(status: Status, kind: &str, length: u64, close: bool) -> Vec<u8> {
    let date = httpdate::fmt_http_date(SystemTime::now());
    let allow = if status == Status::MethodNotAllowed { "Allow: GET, HEAD\r\n" } else { "" };
    let connection = if close { "close" } else { "keep-alive" };
    format!(
        "HTTP/1.1 {}\r\nDate: {date}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n{allow}Connection: \
         {connection}\r\n\r\n",
        status.line()
    )
    .into_bytes()
}

/// Longest head of a request.
const MAX_HEAD: usize = 8 * 1024;
const MAX_HEADERS: usize = 64;

#[cfg(test)]
mod tests;
