use std::net::SocketAddr;

use hibernet_netstack::ListenOptions;
use hibernet_netstack::StreamOptions;
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::task::LocalSet;

use super::*;
use crate::gateway::GatewayConfig;
use crate::link::Link;
use crate::link::Wire;

/// Runs a test on a driven stack that has one link, which nobody is at the other end of, and talks to itself.
fn on_a_stack<F: Future<Output = ()>>(test: impl FnOnce(Net) -> F) {
    let config: GatewayConfig = serde_json::from_value(json!({
        "links": [{"name": "net", "mtu": 1500, "addrs": ["10.0.0.1/24", "fd00::1/64"]}],
        "rules": {"policy": {"input": "accept"}, "rules": []},
    }))
    .expect("a configuration");
    let mut engine = Engine::fresh(&config).expect("a stack");
    engine.attach(Link::memory("net", &Wire::default())).expect("a link");
    engine.resume();
    let net = Net::new(engine);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(LocalSet::new().run_until(async {
        let driver = tokio::task::spawn_local(drive(net.clone()));
        test(net).await;
        driver.abort();
    }));
}

/// A stream's two ends.
async fn pair(net: &Net, at: SocketAddr) -> (TcpStream, TcpStream) {
    let listener = net.with_stack(|stack, _| stack.tcp_listen(at.ip(), at.port(), ListenOptions::default()));
    let client = net.with_stack(|stack, now| stack.tcp_connect(None, at, StreamOptions::default(), now));
    let server = TcpListener::of(net, listener.expect("a listener")).accept().await;
    (TcpStream::of(net, client.expect("a stream")), server)
}

#[test]
fn more_than_all_buffers_hold_passes_both_ways_and_so_does_the_end() {
    for at in ["10.0.0.1:80", "[fd00::1]:80"] {
        on_a_stack(async |net| {
            let (mut client, mut server) = pair(&net, at.parse().expect("an end")).await;
            let sent: Vec<u8> = (0..1_000_000_u32).map(|number| number.to_le_bytes()[1]).collect();
            let echo = tokio::task::spawn_local(async move {
                let (mut from, mut to) = tokio::io::split(&mut server);
                tokio::io::copy(&mut from, &mut to).await.expect("an echo");
                to.shutdown().await.expect("an end");
            });
            let (mut from, mut to) = tokio::io::split(&mut client);
            let mut received = Vec::new();
            let send = async {
                to.write_all(&sent).await.expect("room");
                to.shutdown().await.expect("an end");
            };
            let (_, read) = tokio::join!(send, from.read_to_end(&mut received));
            read.expect("what was sent");
            assert!(received == sent);
            echo.await.expect("no panic");
        });
    }
}

#[test]
fn a_reset_is_an_error_and_a_stream_that_goes_closes() {
    on_a_stack(async |net| {
        let (mut client, server) = pair(&net, "10.0.0.1:80".parse().expect("an end")).await;
        let id = server.id();
        client.write_all(b"unread").await.expect("room");
        tokio::task::yield_now().await;
        // It has not read what has come.
        drop(server);
        let error = client.read(&mut [0; 8]).await.expect_err("a reset");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        assert_eq!(net.with_stack(|stack, _| stack.tcp_state(id)), None);
    });
}

#[test]
fn a_datagram_wakes_who_waits_for_it() {
    on_a_stack(async |net| {
        let bind = |port| net.with_stack(|stack, _| stack.udp_bind([10, 0, 0, 1].into(), port)).expect("a socket");
        let (one, other) = (UdpSocket::of(&net, bind(7)), UdpSocket::of(&net, bind(8)));
        let waiting = tokio::task::spawn_local(async move { other.receive().await });
        tokio::task::yield_now().await;
        one.send("10.0.0.1:8".parse().expect("an end"), b"hello").expect("it is sent");
        let datagram = waiting.await.expect("no panic").expect("a datagram");
        assert_eq!((datagram.payload.as_slice(), datagram.from.port()), (&b"hello"[..], 7));
    });
}
