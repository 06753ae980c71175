use hibernet_netstack::ListenOptions;
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream as HostStream;
use tokio::task::LocalSet;

use super::*;
use crate::gateway::Engine;
use crate::gateway::GatewayConfig;
use crate::link::Link;
use crate::link::Wire;
use crate::runtime::TcpListener;
use crate::runtime::drive;

const GUEST: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));

/// Runs a test with a driven stack whose own sockets stand for the guest's.
fn with_a_guest<F: Future<Output = ()>>(test: impl FnOnce(Net) -> F) {
    let config: GatewayConfig = serde_json::from_value(json!({
        "links": [{"name": "net", "mtu": 1500, "addrs": ["10.0.0.1/24"]}],
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

/// A forward of any free port of the host to that of the guest, at work; where the host listens.
async fn forwarding(net: &Net, transport: Transport, guest_port: u16) -> SocketAddr {
    // The host's choice of a port, which the command line does not offer.
    let forward = Forward { transport, host: None, host_port: 0, guest: None, guest_port };
    let open = forward.open(GUEST).await.expect("a socket");
    let host = match &open {
        OpenForward::Tcp(listener, _) => listener.local_addr(),
        OpenForward::Udp(socket, _) => socket.local_addr(),
    };
    tokio::task::spawn_local(open.run(net.clone(), vec![GUEST]));
    host.expect("it is bound")
}

#[test]
fn a_stream_is_carried_both_ways_and_each_way_ends_by_itself() {
    with_a_guest(async |net| {
        let listener = net.with_engine(|engine| engine.stack().0.tcp_listen(GUEST, 80, ListenOptions::default()));
        let listener = TcpListener::of(&net, listener.expect("a listener"));
        let host = forwarding(&net, Transport::Tcp, 80).await;
        let mut client = HostStream::connect(host).await.expect("a connection");
        let mut guest = listener.accept().await;
        let sent: Vec<u8> = (0..500_000_u32).map(|number| number.to_le_bytes()[1]).collect();
        let ask = async {
            client.write_all(&sent).await.expect("room");
            client.shutdown().await.expect("an end");
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.expect("an answer");
            answer
        };
        let answer = async {
            let mut asked = Vec::new();
            guest.read_to_end(&mut asked).await.expect("all of it");
            // The other way is open still.
            guest.write_all(&asked).await.expect("room");
            guest.shutdown().await.expect("an end");
        };
        let (answer, ()) = tokio::join!(ask, answer);
        assert!(answer == sent);
    });
}

#[test]
fn a_guest_that_refuses_or_resets_is_a_reset_to_the_hosts_client() {
    with_a_guest(async |net| {
        let host = forwarding(&net, Transport::Tcp, 81).await;
        let mut client = HostStream::connect(host).await.expect("a connection");
        let error = client.read(&mut [0; 8]).await.expect_err("nobody listens there");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);

        let listener = net.with_engine(|engine| engine.stack().0.tcp_listen(GUEST, 82, ListenOptions::default()));
        let listener = TcpListener::of(&net, listener.expect("a listener"));
        let host = forwarding(&net, Transport::Tcp, 82).await;
        let mut client = HostStream::connect(host).await.expect("a connection");
        listener.accept().await.abort();
        let error = client.read(&mut [0; 8]).await.expect_err("a reset");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn datagrams_of_each_client_come_back_to_it_alone() {
    with_a_guest(async |net| {
        let socket = net.with_engine(|engine| engine.stack().0.udp_bind(GUEST, 9)).expect("a socket");
        let guest = UdpSocket::of(&net, socket);
        let host = forwarding(&net, Transport::Udp, 9).await;
        let clients = [HostSocket::bind("127.0.0.1:0").await, HostSocket::bind("127.0.0.1:0").await];
        let clients = clients.map(|client| client.expect("a socket"));
        let mut ends = Vec::new();
        for (number, client) in clients.iter().enumerate() {
            client.send_to(&[number.to_le_bytes()[0]; 3], host).await.expect("room");
            let asked = guest.receive().await.expect("a datagram");
            ends.push((asked.from, asked.payload));
        }
        for (from, payload) in ends.iter().rev() {
            guest.send(*from, payload).expect("it is sent");
        }
        for (number, client) in clients.iter().enumerate() {
            let mut room = [0; 8];
            let (read, from) = client.recv_from(&mut room).await.expect("an answer");
            assert_eq!((&room[..read], from), (&[number.to_le_bytes()[0]; 3][..], host));
        }
    });
}

#[test]
fn a_forward_says_as_much_as_it_needs_to() {
    let read = |text: &str| text.parse::<Forward>().expect("a forward").to_string();
    assert_eq!(read("8080:80"), "tcp:8080:80");
    assert_eq!(read("udp:5353:53"), "udp:5353:53");
    assert_eq!(read("tcp:0.0.0.0:8080:80"), "tcp:0.0.0.0:8080:80");
    assert_eq!(read("8080:10.0.2.16:80"), "tcp:8080:10.0.2.16:80");
    assert_eq!(read("[::1]:8080:[fd00::15]:80"), "tcp:[::1]:8080:[fd00::15]:80");
}

#[test]
fn a_forward_that_cannot_be_is_refused_with_its_form() {
    for (text, named) in
        [("80", "80"), ("a:80", "a"), ("0:80", "0"), ("1.2.3:8080:80", "1.2.3"), ("1:2:3:4:5", "1:2:3:4:5")]
    {
        let error = text.parse::<Forward>().expect_err("no forward");
        assert!(error.contains(&format!("`{named}`")) && error.contains(FORM), "{error}");
    }
}
