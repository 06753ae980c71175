use std::io::BufRead;
use std::io::BufReader;

use super::*;

fn server() -> (tempfile::TempDir, ControlServer) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let server = ControlServer::bind(&dir.path().join("control")).expect("a socket");
    (dir, server)
}

fn connect(server: &ControlServer) -> UnixStream {
    UnixStream::connect(&server._file.0).expect("the server listens")
}

fn serve(server: &mut ControlServer) {
    server.serve(Instant::from_secs(1), |request| match request {
        Request::Status => Answer::Now(Ok(Value::from("fine"))),
        Request::List => Answer::Now(Ok(Value::from("x".repeat(4_000_000)))),
        _ => Answer::Now(Err("no".to_owned())),
    });
}

fn line(stream: &UnixStream) -> String {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).expect("an answer");
    line
}

#[test]
fn a_request_is_answered_even_if_it_comes_in_pieces() {
    let (_dir, mut server) = server();
    let mut client = connect(&server);
    client.write_all(br#"{"op": "#).expect("a first piece");
    serve(&mut server);
    client.write_all(b"\"status\"}\n").expect("the rest");
    serve(&mut server);
    assert_eq!(line(&client), "{\"result\":\"fine\"}\n");
}

#[test]
fn requests_that_come_together_are_answered_in_order() {
    let (_dir, mut server) = server();
    let mut client = connect(&server);
    client.write_all(b"what?\n{\"op\":\"status\"}\n").expect("two requests");
    serve(&mut server);
    let mut answers = BufReader::new(&client).lines();
    let mut next = || answers.next().expect("an answer").expect("a line");
    assert!(next().starts_with(r#"{"error":"not a request"#));
    assert_eq!(next(), r#"{"result":"fine"}"#);
}

#[test]
fn garbage_gets_an_error_and_does_no_harm() {
    let (_dir, mut server) = server();
    let mut client = connect(&server);
    client.write_all(b"\xff\x00 what?\n").expect("garbage");
    serve(&mut server);
    assert!(line(&client).starts_with(r#"{"error":"not a request"#));
    client.write_all(&vec![b'a'; 20_000]).expect("an endless line");
    serve(&mut server);
    assert!(line(&client).contains("expected one JSON line"));
}

#[test]
fn a_client_that_does_not_read_holds_nobody_up_and_is_dropped() {
    let (_dir, mut server) = server();
    let mut stalled = connect(&server);
    stalled.write_all(b"{\"op\":\"list\"}\n").expect("a request for much");
    serve(&mut server);
    let mut other = connect(&server);
    other.write_all(b"{\"op\":\"status\"}\n").expect("a request");
    serve(&mut server);
    assert_eq!(line(&other), "{\"result\":\"fine\"}\n");
    assert_eq!(server.clients.len(), 2);
    server.serve(Instant::from_secs(60), |_| Answer::Now(Ok(Value::Null)));
    assert_eq!(server.clients.len(), 1, "the stalled client is gone");
}

#[test]
fn clients_are_bounded() {
    let (_dir, mut server) = server();
    let clients: Vec<UnixStream> = (0..40).map(|_| connect(&server)).collect();
    serve(&mut server);
    assert_eq!(server.clients.len(), MAX_CLIENTS);
    drop(clients);
}

#[test]
fn a_live_socket_is_in_use_and_a_dead_one_is_replaced() {
    let (dir, server) = server();
    let path = dir.path().join("control");
    let error = ControlServer::bind(&path).err().expect("it is in use").to_string();
    assert!(error.contains("address in use"), "{error}");
    drop(server);
    drop(UnixListener::bind(&path).expect("a socket nobody will answer at"));
    assert!(path.exists());
    ControlServer::bind(&path).expect("a dead socket is replaced");
}

#[test]
fn an_answer_may_come_later() {
    let (_dir, mut server) = server();
    let mut client = connect(&server);
    client.write_all(b"{\"op\":\"status\"}\n").expect("a request");
    let (sender, receiver) = std::sync::mpsc::channel();
    let mut receiver = Some(receiver);
    server.serve(Instant::ZERO, |_| Answer::Later(receiver.take().expect("asked once")));
    assert!(server.has_pending());
    sender.send(Ok(Value::from(7))).expect("the server waits for it");
    serve(&mut server);
    assert_eq!(line(&client), "{\"result\":7}\n");
    assert!(!server.has_pending());
}
