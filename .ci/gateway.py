"""A gateway with offload between kernels: what is sent arrives, in packets of the expected kind.

Two namespaces, near and far, each with one device of the gateway's: TAP, TUN, or a veth pair that the gateway reads through a
packet socket. For each way to join them, with offload at both links, one or none, over IPv4 and IPv6 with masquerade: 200 MB of
random bytes each way by TCP, and UDP in super-packets (UDP_SEGMENT).
"""

import ctypes
import hashlib
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

BINARY = os.path.abspath(sys.argv[1])
LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET = 0x40000000
SIZE = 200 << 20
MTU_DATA = 1448
UDP_SEGMENT = 103
# (how near and far are joined, links with offload)
CASES = [
    ("tap", "on"),
    ("tap", "near0"),
    ("tap", "far0"),
    ("tap", "off"),
    ("tun", "on"),
    ("packet-ethernet", "on"),
    ("packet-ip", "on"),
]
FAILED = []


def main():
    os.chdir(tempfile.mkdtemp())
    run("mount", "-t", "tmpfs", "none", "/run")
    os.makedirs("/run/netns")
    run("ip", "link", "set", "lo", "up")
    data = os.urandom(SIZE)
    digest = hashlib.sha256(data).hexdigest()
    for kind, offload in CASES:
        begun = time.monotonic()
        with Gateway(kind, offload) as gateway:
            for version in (4, 6):
                for direction in ("up", "down"):
                    transfer(gateway, version, direction, data, digest)
                segmented_udp(gateway, version)
            if kind in ("tap", "packet-ethernet") and offload == "on":
                interruption(gateway)
            for name in ("near", "far"):
                errors = {key: value for key, value in snmp(name).items() if key.endswith("InCsumErrors") and value}
                check(f"{gateway}: no wrong checksum in {name}", not errors, errors)
            drops = gateway.stats()["drops"]
            refused = [drop for drop in drops if drop["reason"] in ("offload_invalid", "header_checksum", "packet_too_big")]
            check(f"{gateway}: nothing refused", not refused, refused)
            check(f"{gateway}: it lives", gateway.process.poll() is None)
        print(f"-- {gateway} took {time.monotonic() - begun:.1f} s", flush=True)
    if FAILED:
        sys.exit(f"{len(FAILED)} failed: {FAILED}")


def transfer(gateway, version, direction, data, digest):
    """200 MB by one TCP stream."""
    what = f"{gateway}, IPv{version} {direction}"
    before = gateway.links()
    with inside("far"):
        listener = socket.create_server((far(version), 0), family=family(version))
    server = {}

    def serve():
        stream, peer = listener.accept()
        server["peer"] = peer[0]
        if direction == "up":
            server["digest"] = drink(stream)
            stream.sendall(b"done")
        else:
            stream.sendall(data)
            server["info"] = info(stream)
            stream.shutdown(socket.SHUT_WR)
            stream.recv(1)
        stream.close()

    thread = threading.Thread(target=serve)
    thread.start()
    with inside("near"):
        client = socket.socket(family(version), socket.SOCK_STREAM)
    client.settimeout(60)
    client.connect(listener.getsockname()[:2])
    if direction == "up":
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        client.recv(4)
        server["info"] = info(client)
        arrived = server.get("digest")
    else:
        arrived = drink(client)
    client.close()
    thread.join(60)
    listener.close()
    check(f"{what}: every byte", arrived == digest)
    check(f"{what}: masqueraded", server.get("peer") == gateway.far_address(version), server.get("peer"))
    retransmitted, sent = server["info"]
    check(f"{what}: no storm of retransmissions", retransmitted < 0.1 * sent, f"{retransmitted} of {sent} bytes")
    after = gateway.links()
    come, gone = ("near0", "far0") if direction == "up" else ("far0", "near0")
    received = after[come]["received"] - before[come]["received"]
    left = after[gone]["sent"] - before[gone]["sent"]
    segments = SIZE // MTU_DATA
    # Acknowledgements go the other way: on these two sides there is the data alone, but for the handshake.
    come_whole = gateway.has_offload(come)
    # What comes cut stays cut: the gateway joins nothing.
    for name, count, whole in (
        ("come in", received, come_whole),
        ("left", left, come_whole and gateway.has_offload(gone)),
    ):
        as_expected = count < segments / 4 if whole else count > segments * 0.9
        check(f"{what}: packets that have {name} are {'whole' if whole else 'cut'}", as_expected, f"{count} of {segments}")


def segmented_udp(gateway, version):
    """100 super-packets of 20 datagrams, one at a time, each acknowledged by one of 3."""
    what = f"{gateway}, IPv{version} UDP"
    with inside("far"):
        server = socket.socket(family(version), socket.SOCK_DGRAM)
        server.bind((far(version), 0))
    with inside("near"):
        client = socket.socket(family(version), socket.SOCK_DGRAM)
        client.connect(server.getsockname()[:2])
    for one in (server, client):
        one.settimeout(5)
    client.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
    server.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 700)
    try:
        for turn in range(100):
            parts = [struct.pack(">HH", turn, part) + os.urandom(996) for part in range(20)]
            client.send(b"".join(parts))
            got = [server.recvfrom(65536) for _ in parts]
            assert [datagram for datagram, _ in got] == parts, f"turn {turn}"
            answers = [os.urandom(700), os.urandom(700), os.urandom(33)]
            server.sendto(b"".join(answers), got[0][1])
            assert [client.recv(65536) for _ in answers] == answers, f"answers of turn {turn}"
        check(f"{what}: every datagram of a super-packet", True)
    except (AssertionError, OSError) as error:
        check(f"{what}: every datagram of a super-packet", False, repr(error))
    server.close()
    client.close()


def interruption(gateway):
    """A link that goes down for a moment: the gateway does not spin meanwhile, and goes on afterwards."""
    device = gateway.far_device
    ip("far", "link", "set", device, "down")
    before = gateway.cpu_ticks()
    time.sleep(1)
    spent = gateway.cpu_ticks() - before
    check(f"{gateway}: idle while a link is down", spent < 50, f"{spent} ticks of CPU in a second")
    ip("far", "link", "set", device, "up")
    gateway.address("far")
    for _ in range(100):
        with inside("far"):
            try:
                listener = socket.create_server((far(6), 0), family=socket.AF_INET6)
                break
            except OSError:
                time.sleep(0.1)
    with inside("near"):
        client = socket.create_connection(listener.getsockname()[:2], timeout=10)
    client.sendall(b"again")
    stream, _ = listener.accept()
    check(f"{gateway}: goes on when the link is up again", stream.recv(5) == b"again")
    for one in (client, stream, listener):
        one.close()


class Gateway:
    """A running gateway with its two namespaces."""

    def __init__(self, kind, offload):
        self.kind, self.offload = kind, offload
        self.near_device = self.far_device = None

    def __str__(self):
        return f"{self.kind}, offload {self.offload}"

    def __enter__(self):
        specs = []
        for name, number in (("near", 1), ("far", 2)):
            run("ip", "netns", "add", name)
            ip(name, "link", "set", "lo", "up")
            with inside(name):
                sysctl("net.ipv6.conf.default.accept_dad", 0)
            link = name + "0"
            if self.kind in ("tap", "tun"):
                ip(name, "tuntap", "add", "mode", self.kind, "name", link)
                device = link
                specs.append(f"{self.kind}:{link}@/run/netns/{name}")
            else:
                device = "eth0"
                run("ip", "link", "add", link, "type", "veth", "peer", "name", device, "netns", name)
                mac = f"02:00:00:00:0{number}:00"
                sysctl(f"net.ipv6.conf.{link}.disable_ipv6", 1)
                if self.kind == "packet-ip":
                    run("ip", "link", "set", link, "address", mac, "arp", "off")
                    ip(name, "link", "set", device, "address", mac, "arp", "off")
                run("ip", "link", "set", link, "up")
                specs.append(link)
            setattr(self, name + "_device", device)
            ip(name, "link", "set", device, "up")
            self.address(name)
        medium = "ip" if self.kind in ("tun", "packet-ip") else "ethernet"
        links = [
            {"name": f"{name}0", "mtu": 1500, "addrs": [f"10.0.{number}.1/24", f"fd00:{number}::1/64"], "medium": medium}
            for name, number in (("near", 1), ("far", 2))
        ]
        rules = [
            {"chain": "forward", "match": {"ctstate": ["established", "related"]}, "action": "accept"},
            {"chain": "forward", "match": {"iif": "near0", "ctstate": ["new"]}, "action": "accept"},
            {"chain": "srcnat", "match": {"oif": "far0"}, "action": "masquerade"},
        ]
        config = {"links": links, "rules": {"policy": {"forward": "drop"}, "rules": rules}}
        json.dump(config, open("gateway.json", "w"))
        command = [BINARY, "run", "--config", "gateway.json", "--offload", self.offload, "--control", "gateway.sock"]
        for spec in specs:
            command += ["--link", spec]
        self.process = subprocess.Popen(command)
        for _ in range(200):
            if self.process.poll() is not None:
                sys.exit(f"{self}: the gateway ended with {self.process.returncode}")
            if subprocess.run([BINARY, "stats", "--control", "gateway.sock"], capture_output=True).returncode == 0:
                return self
            time.sleep(0.05)
        sys.exit(f"{self}: the gateway does not answer")

    def __exit__(self, *_):
        self.process.terminate()
        check(f"{self}: ends when it is told to", self.process.wait(10) == 0)
        for name in ("near", "far"):
            if self.kind.startswith("packet"):
                run("ip", "link", "del", name + "0")
            run("ip", "netns", "del", name)

    def address(self, name):
        """The other side's addresses and routes; some go when a device is down."""
        number = 1 if name == "near" else 2
        device = getattr(self, name + "_device")
        ip(name, "addr", "replace", f"10.0.{number}.2/24", "dev", device)
        ip(name, "addr", "replace", f"fd00:{number}::2/64", "dev", device, "nodad")
        ip(name, "route", "replace", "default", "via", f"10.0.{number}.1")
        ip(name, "route", "replace", "default", "via", f"fd00:{number}::1")

    def far_address(self, version):
        return "10.0.2.1" if version == 4 else "fd00:2::1"

    def has_offload(self, link):
        return self.offload == "on" or self.offload == link

    def stats(self):
        return json.loads(run(BINARY, "stats", "--json", "--control", "gateway.sock"))

    def links(self):
        return {link["name"]: link for link in self.stats()["links"]}

    def cpu_ticks(self):
        fields = open(f"/proc/{self.process.pid}/stat").read().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])


class inside:
    """This thread in another network namespace."""

    def __init__(self, name):
        self.name = name

    def __enter__(self):
        self.home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(f"/run/netns/{self.name}", os.O_RDONLY)
        self.enter(there)

    def __exit__(self, *_):
        self.enter(self.home)

    def enter(self, descriptor):
        if LIBC.setns(descriptor, CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")
        os.close(descriptor)


def drink(stream):
    """The hash of all that comes."""
    digest = hashlib.sha256()
    buffer = bytearray(1 << 20)
    while count := stream.recv_into(buffer):
        digest.update(memoryview(buffer)[:count])
    return digest.hexdigest()


def info(stream):
    """Bytes that a stream has sent again, and sent at all: `tcpi_bytes_retrans`, `tcpi_bytes_sent` of linux/tcp.h."""
    fields = stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    sent, retransmitted = struct.unpack_from("QQ", fields, 200)
    return retransmitted, sent


def snmp(name):
    lines = run("ip", "netns", "exec", name, "cat", "/proc/net/snmp").splitlines()
    counters = {}
    for names, values in zip(lines[::2], lines[1::2]):
        kind, names = names.split(":")
        counters.update({kind + key: int(value) for key, value in zip(names.split(), values.split(":")[1].split())})
    return counters


def far(version):
    return "10.0.2.2" if version == 4 else "fd00:2::2"


def family(version):
    return socket.AF_INET if version == 4 else socket.AF_INET6


def sysctl(name, value):
    open("/proc/sys/" + name.replace(".", "/"), "w").write(str(value))


def ip(name, *words):
    run("ip", "-n", name, *(["-6"] if any("fd00" in word for word in words) else []), *words)


def run(*words):
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(words)}: {done.returncode}: {done.stderr}")
    return done.stdout


def check(what, holds, found=""):
    if not holds:
        FAILED.append(what)
    print(f"{'ok  ' if holds else 'FAIL'} {what}{f': {found}' if found != '' and not holds else ''}", flush=True)


main()
