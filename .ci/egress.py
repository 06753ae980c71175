"""A guest kernel goes out through `sandbox-demo run --egress-policy`, to kernel servers. Called by `.ci/egress`.

Three network namespaces: this process's own is the host, whose sockets carry the traffic; `guest` is behind the gateway; `world`
has servers and is reached from the host over a veth pair. Whatever does not hold ends this program with an assertion.
"""
import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import random
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

BINARY = os.path.abspath(sys.argv[1])
LINK = sys.argv[2]
CLONE_NEWNET = 0x40000000
GATEWAY = {4: "10.77.0.1", 6: "fd00:77::1"}
WORLD = {4: "192.0.2.2", 6: "2001:db8:2::2"}
DENIED_PORT, BULK, MANY, MOST = 9999, 10_000_000, 1000, 1200
UNREACHABLE, PROHIBITED, SILENT, NO_ROUTE = "198.51.100.7", "203.0.113.7", "198.18.0.7", "100.64.0.7"
POLICY = """
[[rule]]
action = "deny"
protocol = "tcp"
ports = 9999
[[rule]]
action = "deny"
protocol = "udp"
ports = 9999
[[rule]]
action = "allow"
cidr = ["192.0.2.0/24", "2001:db8:2::/64", "198.51.100.0/24", "203.0.113.0/24", "198.18.0.0/15", "100.64.0.0/10"]
[[loopback]]
protocol = "tcp"
ports = 7001
"""


def run(*words, **how):
    done = subprocess.run(words, capture_output=True, text=True, **how)
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout


class Namespace:
    """A network namespace, kept by a process that sleeps."""

    def __init__(self):
        self.keeper = subprocess.Popen(["unshare", "--net", "sleep", "600"])
        self.path = "/proc/%d/ns/net" % self.keeper.pid
        home = os.readlink("/proc/self/ns/net")
        while os.readlink(self.path) == home:
            time.sleep(0.01)

    def run(self, *words):
        return run("nsenter", "--net=" + self.path, *words)

    @contextlib.contextmanager
    def inside(self):
        with open("/proc/thread-self/ns/net") as home, open(self.path) as there:
            enter(there)
            try:
                yield
            finally:
                enter(home)


def enter(namespace):
    assert ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())


def offloads_off(device):
    """What `ethtool -K DEVICE tx off tso off gso off gro off` does."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for command in [0x17, 0x1f, 0x24, 0x2c]:
            value = ctypes.create_string_buffer(struct.pack("II", command, 0))
            request = struct.pack("16sQ", device.encode(), ctypes.addressof(value))
            fcntl.ioctl(any_socket, 0x8946, request)


def until(holds, what):
    for _ in range(600):
        if holds():
            return
        time.sleep(0.05)
    raise AssertionError("it never came to this: " + what)


class Gateway:
    started = []

    def __init__(self, *start):
        self.control = HOME / "control"
        self.process = subprocess.Popen(
            [BINARY, "--json", "run", "--link", DEVICE, "--control", str(self.control), "--egress-flows", str(MOST),
             "--egress-connect-timeout", "2", *map(str, start)], stdout=subprocess.PIPE, text=True)
        Gateway.started.append(self.process)
        line = self.process.stdout.readline()
        assert line, "the gateway ended before it was ready; its message is above"
        self.ready = json.loads(line)

    def ask(self, *words):
        return json.loads(run(BINARY, "--json", *words, "--control", str(self.control)))

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        assert self.process.wait() == -signal.SIGKILL
        self.process.stdout.close()

    def drops(self, reason):
        return sum(drop["count"] for drop in self.ask("stats")["drops"] if drop["reason"] == reason)

    def events(self, dst):
        return [event for event in self.ask("events")["events"] if event["dst"] == dst]


def listen(where, end, kind=socket.SOCK_STREAM):
    with where.inside() if where else contextlib.nullcontext():
        server = socket.socket(socket.AF_INET6 if ":" in end[0] else socket.AF_INET, kind)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(end)
        if kind == socket.SOCK_STREAM:
            server.listen(4096)
    server.settimeout(30)
    return server


def guest_socket(end, kind=socket.SOCK_STREAM, protocol=0):
    with GUEST.inside():
        made = socket.socket(socket.AF_INET6 if ":" in end else socket.AF_INET, kind, protocol)
    made.settimeout(30)
    return made


def connect(end):
    client = guest_socket(end[0])
    client.connect(end)
    return client


def errno_of(act):
    try:
        act()
    except OSError as error:
        return error.errno
    return 0


def reset_at_close(connection):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def read_all(connection):
    found, size = hashlib.sha256(), 0
    while chunk := connection.recv(1 << 18):
        found.update(chunk)
        size += len(chunk)
    return found.hexdigest(), size


def guest_counter(name):
    lines = [line.split() for line in GUEST.run("cat", "/proc/net/snmp").splitlines() if line.startswith("Tcp:")]
    return int(dict(zip(*lines))[name])


def background(act):
    result = []
    thread = threading.Thread(target=lambda: result.append(act()), daemon=True)
    thread.start()

    def join():
        thread.join(60)
        assert result, "a peer did not come to its end"
        return result[0]
    return join


def bulk(gateway):
    """Bytes both ways, each side ending before the other in turn: a half-closed stream still carries the other direction."""
    there, back = (random.Random(seed).randbytes(BULK) for seed in ("there", "back"))
    sums = [hashlib.sha256(data).hexdigest() for data in (there, back)]
    for version, end in WORLD.items():
        with listen(WORLD_NS, (end, 5001)) as server:
            for guest_first in [True, False]:
                def serve():
                    connection, _ = server.accept()
                    connection.settimeout(30)
                    with connection:
                        found = read_all(connection) if guest_first else None
                        connection.sendall(back)
                        connection.shutdown(socket.SHUT_WR)
                        return found or read_all(connection)
                served = background(serve)
                with connect((end, 5001)) as client:
                    read = read_all(client) if not guest_first else None
                    client.sendall(there)
                    client.shutdown(socket.SHUT_WR)
                    read = read or read_all(client)
                assert read == (sums[1], BULK) and served() == (sums[0], BULK), (version, guest_first)
    print("bulk: %d MB each way over IPv4 and IPv6, either side ending first; sha256 equal" % (BULK // 1_000_000))


def loopback(gateway):
    """A mapped port of the gateway is the host's loopback; others are not."""
    with listen(None, ("127.0.0.1", 7001)) as server, listen(None, ("127.0.0.1", 7002)) as other:
        with connect((GATEWAY[4], 7001)) as client:
            client.sendall(b"hello")
            connection, _ = server.accept()
            with connection:
                assert connection.recv(16) == b"hello"
        assert errno_of(lambda: connect((GATEWAY[4], 7002))) == errno.ECONNREFUSED
        other.setblocking(False)
        assert errno_of(other.accept) == errno.EAGAIN
    print("loopback: port 7001 of the gateway is the host's 127.0.0.1:7001, port 7002 is refused")


def failures(gateway):
    """The guest's connect() fails as the host's does, and none of its SYNs is sent twice: the answer came within a second."""
    before = guest_counter("RetransSegs")
    for version, end in WORLD.items():
        assert errno_of(lambda: connect((end, 4))) == errno.ECONNREFUSED, version
    cases = [(UNREACHABLE, errno.EHOSTUNREACH), (PROHIBITED, errno.EHOSTUNREACH), (NO_ROUTE, errno.ENETUNREACH)]
    for end, expected in cases:
        assert errno_of(lambda: connect((end, 80))) == expected, end
    assert guest_counter("RetransSegs") == before
    assert errno_of(lambda: connect((SILENT, 80))) == errno.ETIMEDOUT
    assert gateway.drops("proxy_unreached") >= 6, gateway.ask("stats")
    print("failures: refused, host and net unreachable, prohibited and timed out are what the guest's connect() says")


def denials(gateway):
    """What the policy denies fails at once, and an event says which rule."""
    before = guest_counter("RetransSegs")
    for version, end in WORLD.items():
        with listen(WORLD_NS, (end, DENIED_PORT)) as server:
            assert errno_of(lambda: connect((end, DENIED_PORT))) == errno.ECONNREFUSED, version
            server.setblocking(False)
            assert errno_of(server.accept) == errno.EAGAIN
        dst = "[%s]:%d" % (end, DENIED_PORT) if version == 6 else "%s:%d" % (end, DENIED_PORT)
        found = gateway.events(dst)
        assert found and found[-1]["reason"] == "reject" and found[-1]["chain"] == "egress_guest", found
        datagrams = guest_socket(end, socket.SOCK_DGRAM)
        datagrams.connect((end, DENIED_PORT))
        datagrams.send(b"x")
        assert errno_of(lambda: datagrams.recv(16)) in (errno.EHOSTUNREACH, errno.EACCES)
    assert errno_of(lambda: connect(("8.8.8.8", 443))) == errno.ECONNREFUSED
    assert gateway.events("8.8.8.8:443")[-1]["reason"] == "reject"
    assert guest_counter("RetransSegs") == before
    print("denials: TCP is reset, UDP told; each is an event with the rule; no SYN was sent twice")


def resets(gateway):
    """A reset is a reset on the other side, behind the bytes that came before it."""
    with listen(WORLD_NS, (WORLD[4], 5002)) as server:
        with connect((WORLD[4], 5002)) as client:
            connection, _ = server.accept()
            connection.sendall(b"z" * 100_000)
            reset_at_close(connection)
            # What is not read yet is reset; what the gateway has read already arrives.
            until(lambda: outstanding(connection) == 0, "the gateway reads")
            connection.close()
            received = 0

            def drain():
                nonlocal received
                while chunk := client.recv(65536):
                    received += len(chunk)
            assert errno_of(drain) == errno.ECONNRESET and received == 100_000, received
        with connect((WORLD[4], 5002)) as client:
            connection, _ = server.accept()
            with connection:
                reset_at_close(client)
                client.close()
                assert errno_of(lambda: connection.recv(16)) == errno.ECONNRESET
    print("resets: a server's and a guest's reset arrive as resets, behind 100,000 bytes that came before")


def empty(datagrams):
    """Takes what has arrived, until nothing comes any more; how much."""
    datagrams.settimeout(0.3)
    taken = 0
    while errno_of(lambda: datagrams.recvfrom(16)) == 0:
        taken += 1
    return taken


def outstanding(connection):
    """Bytes that were sent and are not acknowledged (SIOCOUTQ)."""
    return struct.unpack("i", fcntl.ioctl(connection, 0x5411, b"\0" * 4))[0]


def back_pressure(gateway):
    """Who does not read holds the sender, not the gateway's memory nor its processor; nothing is lost."""
    def ticks():
        fields = pathlib.Path("/proc/%d/stat" % gateway.process.pid).read_text().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])
    for guest_sends in [True, False]:
        with listen(WORLD_NS, (WORLD[4], 5003)) as server, connect((WORLD[4], 5003)) as client:
            connection, _ = server.accept()
            connection.settimeout(30)
            sender, reader = (client, connection) if guest_sends else (connection, client)
            sender.setblocking(False)
            sent, chunk, found = 0, random.Random(5).randbytes(65536), hashlib.sha256()
            quiet = 0
            while quiet < 10:
                try:
                    taken = sender.send(chunk)
                    found.update(chunk[:taken])
                    sent, quiet = sent + taken, 0
                except BlockingIOError:
                    quiet += 1
                    time.sleep(0.05)
                assert sent < 64 << 20, "nothing holds the sender back"
            begun = ticks()
            time.sleep(0.5)
            assert ticks() - begun < 20, "the gateway is busy with nothing"
            sender.setblocking(True)
            sender.shutdown(socket.SHUT_WR)
            assert read_all(reader) == (found.hexdigest(), sent)
    print("back-pressure: a reader that waits stops the sender (the last time after %d bytes), and then gets it all" % sent)


def many(gateway):
    """A thousand connections at once, and a bound that says so."""
    with listen(WORLD_NS, (WORLD[4], 5004)) as server:
        accepted, over = [], threading.Event()

        def serve():
            while len(accepted) < MANY:
                accepted.append(server.accept()[0])
            for connection in accepted:
                connection.sendall(connection.recv(64))
            return True
        served = background(serve)
        clients = [guest_socket(WORLD[4]) for _ in range(MANY)]
        for client in clients:
            client.setblocking(False)
            assert client.connect_ex((WORLD[4], 5004)) == errno.EINPROGRESS
        for number, client in enumerate(clients):
            client.setblocking(True)
            client.settimeout(30)
            client.connect_ex((WORLD[4], 5004))
            client.sendall(b"%d" % number)
        for number, client in enumerate(clients):
            assert client.recv(64) == b"%d" % number
        assert served() and gateway.ask("egress")["tcp"] == MANY
        more = [guest_socket(WORLD[4]) for _ in range(MOST - MANY + 20)]
        refused = [errno_of(lambda: client.connect((WORLD[4], 5004))) for client in more]
        assert refused.count(errno.ECONNREFUSED) == 20 and refused.count(0) == MOST - MANY, refused
        assert gateway.drops("proxy_full") == 20
        for client in clients + more:
            client.close()
        for connection in accepted:
            connection.close()
        over.set()
    until(lambda: gateway.ask("egress")["tcp"] == 0, "all host sockets are closed")
    print("many: %d connections at once, %d at most; 20 more are refused, with the reason proxy_full" % (MANY, MOST))


def datagrams(gateway):
    """UDP by flow, which ends when nothing passes; pings by ping sockets."""
    for version, end in WORLD.items():
        with listen(WORLD_NS, (end, 5005), socket.SOCK_DGRAM) as server:
            clients = [guest_socket(end, socket.SOCK_DGRAM) for _ in range(5)]
            for number, client in enumerate(clients):
                client.connect((end, 5005))
                client.send(b"question %d" % number)
            for _ in clients:
                question, address = server.recvfrom(64)
                server.sendto(question.replace(b"question", b"answer"), address)
            for number, client in enumerate(clients):
                assert client.recv(64) == b"answer %d" % number
            # Longer than the guest's link: it comes in fragments and goes back so.
            clients[0].send(b"l" * 4000)
            question, address = server.recvfrom(8000)
            server.sendto(question, address)
            assert clients[0].recv(8000) == b"l" * 4000
        refused = guest_socket(end, socket.SOCK_DGRAM)
        refused.connect((end, 4))
        refused.send(b"x")
        assert errno_of(lambda: refused.recv(16)) == errno.ECONNREFUSED, version
        echo = socket.IPPROTO_ICMP if version == 4 else socket.IPPROTO_ICMPV6
        ping = guest_socket(end, socket.SOCK_DGRAM, echo)
        ping.connect((end, 0))
        ping.send(bytes([8 if version == 4 else 128, 0, 0, 0, 0, 0, 0, 7]) + b"payload")
        answer = ping.recv(64)
        assert answer[0] == (0 if version == 4 else 129) and answer[6:] == b"\0\7payload", answer
    found = gateway.ask("egress")
    assert found["udp"] > 0 and found["echo"] > 0, found
    until(lambda: gateway.ask("egress")["udp"] == 0 and gateway.ask("egress")["echo"] == 0, "idle flows end")
    print("datagrams: UDP there and back, a refused port told, fragments, pings; idle flows end")


def policy_while_running(gateway):
    """Another policy is in force at once: for new flows, and for those there are."""
    bad = HOME / "bad.toml"
    bad.write_text("[[rule]]\naction = \"allow\"\ncidr = \"10.0.0.0/40\"\n")
    refused = subprocess.run([BINARY, "policy", "load", str(bad), "--control", str(gateway.control)], capture_output=True, text=True)
    assert refused.returncode == 1 and "line 3" in refused.stderr, refused
    strict = HOME / "strict.toml"
    strict.write_text("[[rule]]\naction = \"deny\"\nprotocol = \"tcp\"\nports = 5006\n" + POLICY)
    with listen(WORLD_NS, (WORLD[4], 5006)) as server, listen(WORLD_NS, (WORLD[4], 5007)) as other:
        doomed, kept = connect((WORLD[4], 5006)), connect((WORLD[4], 5007))
        (doomed_there, _), (kept_there, _) = server.accept(), other.accept()
        kept_there.settimeout(10)
        assert gateway.ask("policy", "load", str(strict))["ended"] == 1
        for side in [doomed, doomed_there]:
            assert errno_of(lambda: side.recv(16)) == errno.ECONNRESET
        assert errno_of(lambda: connect((WORLD[4], 5006))) == errno.ECONNREFUSED
        kept.sendall(b"on")
        assert kept_there.recv(16) == b"on"
        gateway.ask("policy", "load", str(HOME / "policy.toml"))
        connect((WORLD[4], 5006)).close()
        for side in [kept, kept_there, doomed, doomed_there]:
            side.close()
    print("policy while running: a connection it denies is reset on both sides, another goes on, a bad file changes nothing")


def restores(gateway):
    """After save, SIGKILL and restore the guest's connections are reset at once, the report names them, and the policy holds
    from the first frame on: the image's, and a stricter one given with it."""
    strict = HOME / "closed.toml"
    strict.write_text("# Nothing is allowed.\n")
    image = HOME / "image"
    for again, extra in [(False, []), (True, ["--egress-policy", strict])]:
        with listen(WORLD_NS, (WORLD[4], 5008)) as server, listen(WORLD_NS, (WORLD[4], DENIED_PORT), socket.SOCK_DGRAM) as denied, \
                listen(WORLD_NS, (WORLD[4], 5009), socket.SOCK_DGRAM) as allowed:
            clients = [connect((WORLD[4], 5008)) for _ in range(5)]
            there = [server.accept()[0] for _ in clients]
            over = threading.Event()
            flood = guest_socket(WORLD[4], socket.SOCK_DGRAM)
            flood.setblocking(False)

            def send():
                while not over.is_set():
                    for port in [DENIED_PORT, 5009]:
                        with contextlib.suppress(OSError):
                            flood.sendto(b"x", (WORLD[4], port))
                return True
            flooding = background(send)
            saved = gateway.ask("save", "--hold", str(image))
            assert saved["flows"] >= len(clients)
            gateway.kill()
            empty(allowed)
            gateway = Gateway("--restore", image, *extra)
            report = gateway.ready["restored"]
            assert report["streams_reset"] == len(clients) and report["reset"] == len(clients), report
            for client in clients:
                end = "%s:%d to %s:5008" % (*client.getsockname(), WORLD[4])
                assert any(end in line and "host socket" in line for line in report["resets"]), (end, report)
                # It sends nothing: the reset comes by itself.
                assert errno_of(lambda: client.recv(16)) == errno.ECONNRESET
            assert all(errno_of(lambda: side.recv(16)) in (0, errno.ECONNRESET) for side in there)
            until(lambda: gateway.drops("reject") > 100, "denials of the restored gateway")
            if extra:
                assert empty(allowed) == 0, "a frame passed between image and policy"
                assert errno_of(lambda: connect((WORLD[4], 5008))) == errno.ECONNREFUSED
            else:
                allowed.settimeout(10)
                assert allowed.recvfrom(16)[0] == b"x"
                connect((WORLD[4], 5008)).close()
            over.set()
            flooding()
            assert empty(denied) == 0, "a denied datagram passed"
    print("restores: streams without their host socket are reset unasked and named; no frame met other rules, twice")
    return gateway


def prepare():
    """The namespaces as they are used."""
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", "up0", "type", "veth", "peer", "name", "eth0", "netns", str(WORLD_NS.keeper.pid))
    for where, device, v4, v6 in [(None, "up0", "192.0.2.1", "2001:db8:2::1"), (WORLD_NS, "eth0", WORLD[4], WORLD[6])]:
        do = where.run if where else run
        do("ip", "addr", "add", v4 + "/24", "dev", device)
        do("ip", "addr", "add", v6 + "/64", "dev", device, "nodad")
        do("ip", "link", "set", device, "up")
    WORLD_NS.run("ip", "link", "set", "lo", "up")
    run("ip", "route", "add", "unreachable", "198.51.100.0/24")
    run("ip", "route", "add", "prohibit", "203.0.113.0/24")
    # The world forwards nothing, so what is sent on by it is lost in silence.
    run("ip", "route", "add", "198.18.0.0/15", "via", WORLD[4])
    if LINK == "tun":
        GUEST.run("ip", "tuntap", "add", "mode", "tun", "name", "egg0")
        device = "egg0"
    else:
        run("ip", "link", "add", "egg0", "type", "veth", "peer", "name", "eth0", "netns", str(GUEST.keeper.pid))
        pathlib.Path("/proc/sys/net/ipv6/conf/egg0/disable_ipv6").write_text("1")
        run("ip", "link", "set", "egg0", "up")
        offloads_off("egg0")
        device = "eth0"
        with GUEST.inside():
            offloads_off("eth0")
    GUEST.run("ip", "link", "set", "lo", "up")
    GUEST.run("ip", "addr", "add", "10.77.0.2/24", "dev", device)
    GUEST.run("ip", "addr", "add", "fd00:77::2/64", "dev", device, "nodad")
    GUEST.run("ip", "link", "set", device, "up")
    GUEST.run("ip", "route", "add", "default", "via", GATEWAY[4])
    GUEST.run("ip", "-6", "route", "add", "default", "via", GATEWAY[6])
    GUEST.run("sh", "-c", "echo 2 > /proc/sys/net/ipv4/tcp_syn_retries")
    for where in [None, GUEST]:
        (where.run if where else run)("sh", "-c", "echo '0 0' > /proc/sys/net/ipv4/ping_group_range")
    link = {"name": "egg0", "mtu": 1500, "addrs": [GATEWAY[4] + "/24", GATEWAY[6] + "/64"]}
    if LINK == "veth":
        link["medium"] = "ethernet"
    rules = [{"chain": "input", "match": {"proto": number}, "action": "accept"} for number in ("icmp", "icmp6")]
    rules.append({"chain": "input", "match": {"proto": "tcp"}, "action": "reject-tcp"})
    config = {"links": [link], "rules": {"policy": {"input": "drop", "forward": "drop"}, "rules": rules},
              "sysctls": {"nf_conntrack_udp_timeout": 2, "nf_conntrack_udp_timeout_stream": 3, "nf_conntrack_icmp_timeout": 2}}
    (HOME / "config.json").write_text(json.dumps(config))
    (HOME / "policy.toml").write_text(POLICY)


with tempfile.TemporaryDirectory() as home:
    HOME = pathlib.Path(home)
    GUEST, WORLD_NS = Namespace(), Namespace()
    DEVICE = "tun:egg0@" + GUEST.path if LINK == "tun" else "egg0"
    try:
        prepare()
        checks = [bulk, loopback, failures, denials, resets, back_pressure, many, datagrams, policy_while_running, restores]
        begun = time.monotonic()
        gateway = Gateway("--config", HOME / "config.json", "--egress-policy", HOME / "policy.toml")
        for check in checks:
            if len(sys.argv) > 3 and check.__name__ not in sys.argv[3:]:
                continue
            start = time.monotonic()
            gateway = check(gateway) or gateway
            print("    in %.1f s" % (time.monotonic() - start), flush=True)
            assert gateway.process.poll() is None, "the gateway ended"
        gateway.process.terminate()
        assert gateway.process.wait(10) == 0
        print("all of it holds, after %d s" % (time.monotonic() - begun))
    finally:
        for process in Gateway.started:
            if process.poll() is None:
                process.kill()
                process.wait()
        for namespace in [GUEST, WORLD_NS]:
            namespace.keeper.kill()
            namespace.keeper.wait()
