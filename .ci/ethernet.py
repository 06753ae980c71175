"""A gateway with Ethernet links between kernels: ARP, NDP, ping and TCP, through a save, SIGKILL and restore.

Three links: `near0` and `far0` are packet sockets on veth pairs, whose other ends are in the namespaces near and far; `tap0`
is a TAP device in the gateway's namespace. Everything but the gateway is the kernel's.
"""

import array
import contextlib
import ctypes
import errno
import fcntl
import json
import os
import select
import socket
import struct
import subprocess
import sys
import tempfile
import time

BINARY = os.path.abspath(sys.argv[1])
LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET = 0x40000000
ETHERTYPE_ARP = 0x0806
FAILED = []


def main():
    home = tempfile.mkdtemp()
    os.chdir(home)
    run("mount", "-t", "tmpfs", "none", "/run")
    os.makedirs("/run/netns")
    run("ip", "link", "set", "lo", "up")
    for name, subnet in (("near", 1), ("far", 2)):
        run("ip", "netns", "add", name)
        run("ip", "link", "add", name + "0", "type", "veth", "peer", "name", "eth0", "netns", name)
        run("ip", "link", "set", name + "0", "up")
        no_kernel_ip(name + "0")
        with inside(name):
            checksums_in_software("eth0")
            run("sysctl", "-qw", "net.ipv6.conf.eth0.accept_dad=0", "net.ipv4.neigh.eth0.gc_stale_time=3600")
            run("ip", "link", "set", "lo", "up")
            run("ip", "link", "set", "eth0", "up")
            run("ip", "addr", "add", f"10.0.{subnet}.2/24", "dev", "eth0")
            run("ip", "addr", "add", f"fd00:{subnet}::2/64", "dev", "eth0", "nodad")
            run("ip", "route", "add", "default", "via", f"10.0.{subnet}.1")
            run("ip", "route", "add", "default", "via", f"fd00:{subnet}::1")
    json.dump(CONFIG, open("gateway.json", "w"))
    gateway = start("--config", "gateway.json")
    run("sysctl", "-qw", "net.ipv6.conf.tap0.accept_dad=0")
    run("ip", "link", "set", "tap0", "up")
    run("ip", "addr", "add", "10.0.3.2/24", "dev", "tap0")
    run("ip", "addr", "add", "fd00:3::2/64", "dev", "tap0", "nodad")

    for version in (4, 6):
        with inside("near"):
            check(f"ping of the gateway, IPv{version}", ping(addr(version, 1, 1)))
            check(f"ping through the gateway, IPv{version}", ping(addr(version, 2, 2)))
            known = neighbours()
            check(f"the kernel knows the gateway's address, IPv{version}", known.get(addr(version, 1, 1)) == MAC["near0"])
        check(f"ping over TAP, IPv{version}", ping(addr(version, 3, 1)))
    with inside("near"):
        check("ping of the link-local address", ping(LINK_LOCAL, "eth0"))
        check("the kernel knows the link-local address", neighbours().get(LINK_LOCAL) == MAC["near0"])
        check("who looks for a duplicate is told", arping_probe("10.0.1.1"))

    # Nobody has these addresses: the gateway asks thrice and tells.
    with inside("near"):
        for version in (4, 6):
            told = unreachable(addr(version, 2, 99))
            check(f"a silent next hop is told of, IPv{version}", told == "EHOSTUNREACH", told)

    with inside("near"):
        streams = [Stream(addr(version, 2, 2), inside_far=True) for version in (4, 6)]
        for stream in streams:
            check(f"a stream to the far side, {stream.host}", stream.echo(b"before"))
        local = [Stream(addr(version, 1, 1), port=7) for version in (4, 6)]
        for stream in local:
            check(f"a stream to the gateway's own echo, {stream.host}", stream.echo(b"hello"))

    # A datagram waits for the address of a neighbour that comes up later: nothing of it is lost.
    with inside("far"):
        receivers = [udp_receiver(version) for version in (4, 6)]
    before = ask("neighbours")["neighbours"]
    known = {(row["addr"], row["mac"]) for row in before if row["mac"]}
    check("the gateway knows its neighbours", len({row["link"] for row in before}) == 3, before)
    with inside("near"):
        for version in (4, 6):
            with socket.socket(family(version), socket.SOCK_DGRAM) as sender:
                sender.sendto(b"waiting", (addr(version, 2, 50), 4000))
    wait_for(lambda: {addr(4, 2, 50), addr(6, 2, 50)} <= {row["addr"] for row in ask("neighbours")["neighbours"]})
    saved = command("save", "image", "--hold", "--json")
    gateway.kill()
    gateway.wait()
    check("the gateway was killed", gateway.returncode == -9)
    print(f"saved: {saved.strip()}")
    with inside("far"):
        run("ip", "addr", "add", "10.0.2.50/24", "dev", "eth0")
        run("ip", "addr", "add", "fd00:2::50/64", "dev", "eth0", "nodad")
    gateway = start("--restore", "image")
    run("ip", "link", "set", "tap0", "up")
    run("ip", "addr", "replace", "10.0.3.2/24", "dev", "tap0")
    after = {(row["addr"], row["mac"]) for row in ask("neighbours")["neighbours"]}
    check("the neighbours were restored", known <= after, known - after)
    for version, receiver in zip((4, 6), receivers):
        receiver.settimeout(5)
        with contextlib.suppress(TimeoutError):
            check(f"the datagram that waited arrives, IPv{version}", receiver.recv(100) == b"waiting")
            continue
        check(f"the datagram that waited arrives, IPv{version}", False)
    with inside("near"):
        for stream in streams:
            check(f"the stream goes on, {stream.host}", stream.echo(b"after"))
        for version in (4, 6):
            check(f"ping through the heir, IPv{version}", ping(addr(version, 2, 2)))
            check(
                f"the kernel still knows the gateway's address, IPv{version}",
                neighbours().get(addr(version, 1, 1)) == MAC["near0"],
            )
    check("ping over TAP after the restore", ping("10.0.3.1"))
    drops = {drop["reason"]: drop["count"] for drop in ask("stats")["drops"]}
    print(f"drops: {drops}")
    check("nothing was invalid", not {"arp_invalid", "ndp_invalid", "frame_malformed"} & set(drops), drops)
    gateway.terminate()
    gateway.wait()
    if FAILED:
        sys.exit(f"{len(FAILED)} checks failed: {'; '.join(FAILED)}")
    print("all checks passed")


MAC = {"near0": "02:00:00:00:01:01", "far0": "02:00:00:00:02:01", "tap0": "02:00:00:00:03:01"}
LINK_LOCAL = "fe80::ff:fe00:101"
CONFIG = {
    "links": [
        {
            "name": name,
            "mtu": 1500,
            "addrs": [f"10.0.{subnet}.1/24", f"fd00:{subnet}::1/64"],
            "medium": "ethernet",
            "mac": MAC[name],
        }
        for name, subnet in (("near0", 1), ("far0", 2), ("tap0", 3))
    ],
    "rules": {"policy": {"input": "accept", "forward": "accept"}, "rules": []},
    "tcp_echo": 7,
}


def check(what, holds, found=None):
    print(f"{'ok' if holds else 'FAILED'}: {what}" + ("" if holds or found is None else f" ({found})"), flush=True)
    if not holds:
        FAILED.append(what)


def addr(version, subnet, host):
    return f"10.0.{subnet}.{host}" if version == 4 else f"fd00:{subnet}::{host}"


def family(version):
    return socket.AF_INET if version == 4 else socket.AF_INET6


def run(*words):
    subprocess.run(words, check=True)


def command(*words):
    words = [BINARY, *words, "--control", "control.sock"]
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout


def ask(what):
    return json.loads(command(what, "--json"))


def start(*source):
    with contextlib.suppress(FileNotFoundError):
        os.remove("control.sock")
    links = [word for link in ("near0", "far0", "tap:tap0") for word in ("--link", link)]
    words = [BINARY, "run", *source, *links, "--control", "control.sock", "--parent", str(os.getpid())]
    process = subprocess.Popen(words)
    wait_for(lambda: process.poll() is not None or os.path.exists("control.sock"))
    if process.poll() is not None:
        sys.exit(f"the gateway ended with {process.returncode}")
    return process


def wait_for(holds):
    for _ in range(200):
        if holds():
            return
        time.sleep(0.05)
    sys.exit("waited in vain")


@contextlib.contextmanager
def inside(name):
    """In the network namespace of that name."""
    with open("/proc/self/ns/net") as here, open(f"/run/netns/{name}") as there:
        enter(there.fileno())
        try:
            yield
        finally:
            enter(here.fileno())


def enter(namespace):
    if LIBC.setns(namespace, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def no_kernel_ip(device):
    """The kernel is not to answer on the gateway's devices."""
    checksums_in_software(device)
    run("sysctl", "-qw", f"net.ipv6.conf.{device}.disable_ipv6=1")


def checksums_in_software(device):
    """What `ethtool -K DEVICE tx off tso off gso off gro off` does."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for feature in (0x17, 0x1F, 0x24, 0x2C):
            value = array.array("B", struct.pack("II", feature, 0))
            request = struct.pack("16sP", device.encode(), value.buffer_info()[0])
            fcntl.ioctl(control, 0x8946, request)


def neighbours():
    lines = json.loads(subprocess.run(["ip", "-j", "neigh"], check=True, stdout=subprocess.PIPE, text=True).stdout)
    return {line["dst"]: line.get("lladdr") for line in lines}


def ping(host, device=None):
    """Five echo requests of the kernel's ping socket; all must be answered."""
    version = 6 if ":" in host else 4
    request, answer, protocol = (8, 0, socket.IPPROTO_ICMP) if version == 4 else (128, 129, socket.IPPROTO_ICMPV6)
    with socket.socket(family(version), socket.SOCK_RAW, protocol) as pinger:
        pinger.settimeout(3)
        if device:
            pinger.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        to = (host, 0) if version == 4 else (host, 0, 0, socket.if_nametoindex(device) if device else 0)
        for number in range(5):
            message = struct.pack("!BBHHH", request, 0, 0, os.getpid() & 0xFFFF, number) + b"hibernet"
            if version == 4:
                message = message[:2] + struct.pack("!H", checksum(message)) + message[4:]
            pinger.sendto(message, to)
            while True:
                try:
                    packet, _ = pinger.recvfrom(2000)
                except TimeoutError:
                    return False
                packet = packet[20:] if version == 4 else packet
                if packet[0] == answer and packet[4:8] == message[4:8] and packet[8:] == b"hibernet":
                    break
    return True


def checksum(message):
    total = sum(struct.unpack(f"!{len(message) // 2}H", message))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def unreachable(host):
    """What a UDP socket is told when nobody has the address."""
    with socket.socket(family(6 if ":" in host else 4), socket.SOCK_DGRAM) as sender:
        level, option = (socket.IPPROTO_IPV6, 25) if ":" in host else (socket.IPPROTO_IP, 11)
        sender.setsockopt(level, option, 1)  # IP_RECVERR: tell of what may pass, too
        sender.settimeout(6)
        sender.connect((host, 4000))
        sender.send(b"anybody?")
        try:
            sender.recv(10)
        except OSError as error:
            return errno.errorcode.get(error.errno, type(error).__name__)
    return "an answer"


def arping_probe(target):
    """An ARP probe of RFC 5227, from no address: whether somebody says that the address is taken."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE_ARP)) as wire:
        wire.bind(("eth0", ETHERTYPE_ARP))
        own = wire.getsockname()[4]
        probe = struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 1, own, b"\0" * 4, b"\0" * 6, socket.inet_aton(target))
        wire.send(b"\xff" * 6 + own + struct.pack("!H", ETHERTYPE_ARP) + probe)
        end = time.monotonic() + 3
        while select.select([wire], [], [], max(0, end - time.monotonic()))[0]:
            frame = wire.recv(100)
            if frame[20:22] == b"\0\2" and frame[28:32] == socket.inet_aton(target) and frame[:6] == own:
                return True
    return False


class Stream:
    """A TCP connection to an echo: of the kernel in the namespace far, or of the gateway itself."""

    def __init__(self, host, port=None, inside_far=False):
        self.host = host
        self.far = None
        version = 6 if ":" in host else 4
        if inside_far:
            with inside("far"):
                listener = socket.create_server((host, 0), family=family(version))
            port = listener.getsockname()[1]
        self.near = socket.create_connection((host, port), timeout=5)
        if inside_far:
            self.far, _ = listener.accept()
            self.far.settimeout(5)
            listener.close()

    def echo(self, message):
        """Sends and expects the same back."""
        try:
            self.near.sendall(message)
            if self.far:
                self.far.sendall(self.far.recv(len(message), socket.MSG_WAITALL))
            return self.near.recv(len(message), socket.MSG_WAITALL) == message
        except OSError as error:
            print(f"{self.host}: {error}")
            return False


def udp_receiver(version):
    receiver = socket.socket(family(version), socket.SOCK_DGRAM)
    if version == 6:
        receiver.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    receiver.bind(("0.0.0.0" if version == 4 else "::", 4000))
    return receiver


main()
