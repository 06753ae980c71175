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
        _ => Answer::Now(Err(Refused::new(409, "no"))),
    });
}

/// The next answer: its status and its body.
fn answer(stream: &mut UnixStream) -> (u16, Value) {
    stream.set_nonblocking(false).expect("a socket");
    let mut bytes = Vec::new();
    let mut byte = [0];
    loop {
        stream.read_exact(&mut byte).expect("an answer");
        bytes.push(byte[0]);
        match http::read_answer(&bytes).expect("a sound answer") {
            Some(Ok(value)) => return (200, value),
            Some(Err(refused)) => return (refused.status, Value::from(refused.error)),
            None => {}
        }
    }
}

const STATUS: &[u8] = b"GET /status HTTP/1.1\r\n\r\n";

#[test]
fn a_request_is_answered_even_if_it_comes_in_pieces() {
    let (_dir, mut server) = server();
    let mut client = connect(&server);
    client.write_all(&STATUS[..9]).expect("a first piece");
    serve(&mut server);
    client.write_all(&STATUS[9..]).expect("the rest");
    serve(&mut server);
    assert_eq!(answer(&mut client), (200, Value::from("fine")));
}

#[test]
fn requests_that_come_together_are_answered_in_order() {
    let (_dir, mut server) = server();
    let mut client = connect(&server);
    client.write_all(&[b"GET /hooks HTTP/1.1\r\n\r\n", STATUS].concat()).expect("two requests");
    serve(&mut server);
    assert_eq!(answer(&mut client), (409, Value::from("no")));
    assert_eq!(answer(&mut client), (200, Value::from("fine")));
}

#[test]
fn garbage_gets_an_error_and_ends_the_connection_alone() {
    let (_dir, mut server) = server();
    for garbage in
        [&b"\xff\x00 what?\n\n"[..], &vec![b'a'; 20_000], b"GET /status HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n"]
    {
        let mut client = connect(&server);
        client.write_all(garbage).expect("garbage");
        serve(&mut server);
        let (status, error) = answer(&mut client);
        assert!([400, 413, 431].contains(&status), "{status} {error}");
        serve(&mut server);
        assert_eq!(server.clients.len(), 0);
    }
    let mut client = connect(&server);
    client.write_all(STATUS).expect("a request");
    serve(&mut server);
    assert_eq!(answer(&mut client), (200, Value::from("fine")));
}

#[test]
fn a_client_that_does_not_read_holds_nobody_up_and_is_dropped() {
    let (_dir, mut server) = server();
    let mut stalled = connect(&server);
    stalled.write_all(b"GET /flows HTTP/1.1\r\n\r\n").expect("a request for much");
    serve(&mut server);
    let mut other = connect(&server);
    other.write_all(STATUS).expect("a request");
    serve(&mut server);
    assert_eq!(answer(&mut other), (200, Value::from("fine")));
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
    client.write_all(STATUS).expect("a request");
    let (sender, receiver) = std::sync::mpsc::channel();
    let mut receiver = Some(receiver);
    server.serve(Instant::ZERO, |_| Answer::Later(receiver.take().expect("asked once")));
    assert!(server.has_pending());
    sender.send(Ok(Value::from(7))).expect("the server waits for it");
    serve(&mut server);
    assert_eq!(answer(&mut client), (200, Value::from(7)));
    assert!(!server.has_pending());
}
