use super::*;

fn root() -> (tempfile::TempDir, Root) {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("a file"), vec![b'x'; 40_000]).expect("a file");
    let root = Root::open(dir.path()).expect("a root");
    (dir, root)
}

/// All an exchange sends until it wants to receive or to close, and which of both.
fn run(exchange: &mut Exchange, root: &Root) -> (String, Next) {
    let (mut sent, mut file) = (Vec::new(), None);
    loop {
        match exchange.next(root, &mut file).expect("the file is there") {
            Next::Send(bytes) => {
                // A stream takes what it has room for.
                let taken = bytes.len().min(1000);
                sent.extend_from_slice(&bytes[..taken]);
                exchange.sent(taken);
            }
            next => return (String::from_utf8(sent).expect("text"), next),
        }
    }
}

fn ask(request: &str) -> (String, Next) {
    let (_dir, root) = root();
    let mut exchange = Exchange::default();
    exchange.received(request.as_bytes());
    run(&mut exchange, &root)
}

#[test]
fn a_file_is_sent_whole_and_the_connection_stays() {
    let (answer, next) = ask("GET /a%20file?x HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("\r\nContent-Length: 40000\r\n"));
    assert_eq!(answer.matches('x').count(), 40_000);
    assert_eq!(next, Next::Receive);
}

#[test]
fn requests_that_come_in_pieces_or_together_are_answered_in_order() {
    let (_dir, root) = root();
    let mut exchange = Exchange::default();
    let both = "HEAD /a%20file HTTP/1.1\r\nHost: h\r\n\r\nGET /none HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
    exchange.received(&both.as_bytes()[..10]);
    assert_eq!(run(&mut exchange, &root), (String::new(), Next::Receive));
    exchange.received(&both.as_bytes()[10..]);
    let (answer, next) = run(&mut exchange, &root);
    let heads: Vec<&str> = answer.lines().filter(|line| line.starts_with("HTTP/")).collect();
    assert_eq!(heads, ["HTTP/1.1 200 OK", "HTTP/1.1 404 Not Found"]);
    assert_eq!(next, Next::Close);
}

#[test]
fn what_cannot_be_answered_is_refused_by_its_number_and_the_connection_closes() {
    let long = format!("GET / HTTP/1.1\r\nHost: h\r\nX: {}", "y".repeat(MAX_HEAD));
    let many = format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", "X: y\r\n".repeat(MAX_HEADERS));
    for (request, status) in [
        ("nonsense\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\n\r\n", "400"),
        ("GET a HTTP/1.1\r\nHost: h\r\n\r\n", "400"),
        ("PUT / HTTP/1.1\r\nHost: h\r\n\r\n", "405"),
        ("GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello", "413"),
        ("GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n", "413"),
        ("GET / HTTP/9.1\r\nHost: h\r\n\r\n", "505"),
        (&long, "431"),
        (&many, "431"),
    ] {
        let (answer, next) = ask(request);
        assert_eq!(answer.get(9..12), Some(status), "{request:.40}: {answer}");
        assert_eq!(next, Next::Close, "{request:.40}");
    }
}

#[test]
fn an_old_client_is_answered_and_let_go_unless_it_asks_to_stay() {
    assert_eq!(ask("GET / HTTP/1.0\r\n\r\n").1, Next::Close);
    assert_eq!(ask("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n").1, Next::Receive);
}

#[test]
fn an_exchange_that_was_saved_anywhere_goes_on_where_it_was() {
    let (_dir, root) = root();
    let limits = hibernet_snapshot::image::Limits::default();
    let mut exchange = Exchange::default();
    exchange.received(b"GET /a%20file HTTP/1.1\r\nHost: h\r\n\r\n");
    let mut sent = Vec::new();
    while let Next::Send(bytes) = exchange.next(&root, &mut None).expect("the file is there") {
        let taken = bytes.len().min(777);
        sent.extend_from_slice(&bytes[..taken]);
        exchange.sent(taken);
        let saved = hibernet_snapshot::codec::encode(&exchange).expect("it can be saved");
        exchange = hibernet_snapshot::codec::decode(&saved, &limits).expect("it can be restored");
    }
    let body = sent.split(|byte| *byte == b'\n').next_back().expect("a body");
    assert_eq!(body, vec![b'x'; 40_000]);
}

#[test]
fn a_file_that_changed_its_length_meanwhile_is_not_gone_on_with() {
    let (dir, root) = root();
    let mut exchange = Exchange::default();
    exchange.received(b"GET /a%20file HTTP/1.1\r\nHost: h\r\n\r\n");
    let Next::Send(head) = exchange.next(&root, &mut None).expect("a head") else { panic!("a head comes first") };
    exchange.sent(head.len());
    std::fs::write(dir.path().join("a file"), b"short").expect("another file");
    assert!(exchange.next(&root, &mut None).is_err());
}
