"""Guests in QEMU behind `sandbox-demo gateway`, through saves, SIGKILLs and restores. Called by `.ci/vmm` in a network
namespace of its own, with the directory that has QEMU, the kernel, the guest's tools and the binary. Names of checks may follow.

Whatever does not hold ends this program with an assertion; it prints what was seen.
"""
import hashlib
import json
import os
import pathlib
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

WORK = pathlib.Path(sys.argv[1]).resolve()
BINARY, TOOLS, RUN = WORK / "sandbox-demo", WORK / "tools", WORK / "run"
NOBODY = {"user": 65534, "group": 65534, "extra_groups": []}
ROOT = {}
BOOT = 120


def say(text):
    print("%6.1f s  %s" % (time.monotonic() - BEGUN, text), flush=True)


def until(what, seconds, check):
    """The first true value of `check`, looked for often."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = check()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError("not within %d s: %s" % (seconds, what))


class Guest:
    """One life of a virtual machine: `boot` or `restore`, then perhaps `save`, then `kill`."""
    alive = []

    def __init__(self, name, who, sockets=None, net="stream", append="", state="vm"):
        sockets = sockets or name
        self.name, self.who, self.log = name, who, RUN / (name + ".log")
        self.environment = dict(
            os.environ, NET=net, SOCK=str(RUN / (sockets + ".net")), DSOCK=str(RUN / (sockets + ".qemu")),
            STATE=str(RUN / (state + ".state")), APPEND=append, VMGENID="1")

    def tool(self, *words):
        done = subprocess.run(
            ["bash", str(TOOLS / "run-guest.sh"), str(WORK), words[0], self.name, *words[1:]], env=self.environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **self.who)
        assert done.returncode == 0, done.stdout
        return self

    def boot(self):
        Guest.alive.append(self)
        return self.tool("boot")

    def restore(self):
        Guest.alive.append(self)
        return self.tool("restore")

    def save(self):
        return self.tool("save")

    def go_on(self):
        return self.tool("cont")

    def kill(self):
        Guest.alive.remove(self)
        return self.tool("kill")

    def console(self):
        return self.log.read_bytes().decode("latin-1") if self.log.exists() else ""

    def wait(self, pattern, seconds):
        def look():
            assert "Kernel panic" not in self.console(), self.console()[-2000:]
            return re.search(pattern, self.console())
        try:
            return until(pattern, seconds, look)
        except AssertionError:
            print(self.console()[-3000:])
            raise


class Gateway:
    """One life of a gateway's process."""
    alive = []

    def __init__(self, name, who, *arguments, net="stream"):
        self.control = RUN / (name + ".control")
        link = "stream:guest@%s" % (RUN / (name + ".net"))
        if net == "dgram":
            link = "dgram:guest@%s,%s" % (RUN / (name + ".net"), RUN / (name + ".qemu"))
        self.who = who
        self.process = subprocess.Popen(
            [BINARY, "--json", "gateway", "--link", link, "--control", str(self.control), *arguments],
            stdout=subprocess.PIPE, text=True, **who)
        Gateway.alive.append(self)
        line = self.process.stdout.readline()
        assert line, "the gateway ended before it was ready; its message is above"
        self.ready = json.loads(line)

    def ask(self, *words):
        done = subprocess.run([BINARY, "--json", words[0], "--control", str(self.control), *words[1:]], check=True,
                              stdout=subprocess.PIPE, text=True, **self.who)
        return json.loads(done.stdout)

    def save(self, image):
        return self.ask("save", "--hold", str(image))

    def kill(self):
        Gateway.alive.remove(self)
        self.process.send_signal(signal.SIGKILL)
        assert self.process.wait() == -signal.SIGKILL


class Resolver(threading.Thread):
    """A name server that has one address for every name."""

    def __init__(self):
        super().__init__(daemon=True)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.end, self.asked = "127.0.0.1:%d" % self.socket.getsockname()[1], 0
        self.start()

    def run(self):
        while True:
            question, client = self.socket.recvfrom(4096)
            self.asked += 1
            end = question.index(b"\0", 12) + 5
            kind = struct.unpack("!H", question[end - 4:end - 2])[0]
            answers = 1 if kind == 1 else 0
            answer = question[:2] + struct.pack("!HHHHH", 0x8180, 1, answers, 0, 0) + question[12:end]
            if answers:
                answer += struct.pack("!HHHIH", 0xc00c, 1, 1, 60, 4) + socket.inet_aton("192.0.2.77")
            self.socket.sendto(answer, client)


def echo_numbers(*guests):
    return [int(number) for guest in guests for number in re.findall(r"ECHO line-(\d+)", guest.console())]


def forwarded(port, seconds=10):
    """A connection through a forward that an echo service in the guest answers."""
    def connect():
        try:
            client = socket.create_connection(("127.0.0.1", port), timeout=2)
            client.sendall(b"hello\n")
            if client.recv(6) == b"hello\n":
                return client
        except OSError:
            pass
    return until("the guest's echo at port %d" % port, seconds, connect)


def flow(net):
    """The flow of tests/guest/demo.sh, and what a guest asks of its gateway, as uid 65534."""
    port = 18080 if net == "stream" else 18081
    resolver = Resolver()
    first = Gateway(net, NOBODY, "--echo", "7", "--dns", resolver.end, "--forward", "%d:9000" % port, net=net)
    append = "guest.dhcp=1 guest.echo=10.0.2.2:7 guest.listen=9000 guest.dns=name.example"
    guest = Guest(net + "-a", NOBODY, net, net, append, net).boot()
    guest.wait(r"DHCP bound ip=10\.0\.2\.15/24 router=10\.0\.2\.2 dns=10\.0\.2\.2 mtu=1500", BOOT)
    guest.wait("PING-OK", 20)
    guest.wait(r"192\.0\.2\.77[^\n]*NSLOOKUP-DONE", 20)
    guest.wait("ECHO line-3", 20)
    client = forwarded(port)
    say("%s: address by DHCP, ping, name by DNS (%d questions), echoes, a forward into the guest" % (net, resolver.asked))

    guest.save()
    image = RUN / (net + ".hib")
    saved = first.save(image)
    guest.kill()
    first.kill()
    say("%s: saved (%d bytes of network), both killed" % (net, saved["bytes"]))
    time.sleep(2)

    second = Gateway(net, NOBODY, "--restore", str(image), net=net)
    assert second.ready["mac"] == first.ready["mac"] and second.ready["addrs"] == first.ready["addrs"]
    assert len(second.ready["leases"]) == 1 and second.ready["leases"][0].startswith("10.0.2.15 52:54:00:12:34:56")
    lost = second.ready["lost"]["resets"]
    assert len(lost) == 1 and "10.0.2.15:9000" in lost[0], lost
    before = echo_numbers(guest)
    again = Guest(net + "-b", NOBODY, net, net, append, net).restore().go_on()
    again.wait(r"ECHO line-%d\b" % (before[-1] + 3), 30)
    again.wait("crng reseeded", 10)
    numbers = echo_numbers(guest, again)
    assert numbers == list(range(1, len(numbers) + 1)), numbers
    assert "CLOSED" not in guest.console() + again.console()
    # The host's socket went with the old process, and so did its client's connection.
    client.settimeout(5)
    try:
        assert client.recv(1) == b""
    except ConnectionResetError:
        pass
    # The guest's service has one connection at a time: it has been told of the end of the last.
    forwarded(port)
    stats = second.ask("stats")["links"][0]
    assert (stats["connects"], stats["unreadable"]) == (1 if net == "stream" else stats["connects"], 0), stats
    say("%s: lines 1 to %d without a gap or a repeat; the lease goes on; the forward works again" % (net, numbers[-1]))
    again.kill()
    second.kill()


class Pace(threading.Thread):
    """A kernel's end of a transfer: takes and gives as many bytes as it is allowed to, then waits."""

    def __init__(self, address, size):
        super().__init__(daemon=True)
        self.listener = socket.create_server(address)
        self.size, self.allowed, self.taken, self.given = size, 0, bytearray(), 0
        self.gift = os.urandom(size)
        self.fault, self.over = None, False
        self.start()

    def run(self):
        try:
            peer, _ = self.listener.accept()
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
            peer.setblocking(False)
            ended = False
            while not (ended and self.given == self.size):
                moved = False
                # The guest's nc does one thing at a time: as long as it cannot write it does not read, so what is still to be
                # given has to be met by taking.
                if not ended and (len(self.taken) <= self.allowed or self.given < min(self.allowed, self.size)):
                    try:
                        piece = peer.recv(16384)
                        ended, moved = not piece, True
                        self.taken += piece
                    except BlockingIOError:
                        pass
                if self.given < min(self.allowed, self.size):
                    try:
                        self.given += peer.send(self.gift[self.given:min(self.allowed, self.size, self.given + 16384)])
                        moved = True
                    except BlockingIOError:
                        pass
                if not moved:
                    time.sleep(0.002)
            peer.close()
            self.over = True
        except OSError as error:
            self.fault = error


def resets():
    """Resets this kernel has sent, and connections of its own that were reset."""
    names, values = [line.split() for line in pathlib.Path("/proc/net/snmp").read_text().splitlines() if line.startswith("Tcp:")]
    table = dict(zip(names, values))
    return int(table["OutRsts"]), int(table["EstabResets"])


def uplink():
    """10 MB each way between the guest and a kernel server behind the uplink, with 20 checkpoints in it."""
    size, cycles = 10 << 20, 20
    for words in ("tuntap add mode tap name wan0", "addr add 192.0.2.1/24 dev wan0", "link set wan0 up"):
        subprocess.run(["ip", *words.split()], check=True)
    before = resets()
    server = Pace(("192.0.2.1", 7000), size)
    device = ["--uplink", "tap:wan0"]
    gateway = Gateway("up", ROOT, *device, "--uplink-addr", "192.0.2.2/24", "--via", "192.0.2.1", "--no-dns")
    append = "guest.dhcp=1 guest.transfer=192.0.2.1:7000:%d" % (size >> 10)
    guest = Guest("up-0", ROOT, "up", append=append, state="up").boot()
    up = guest.wait(r"SUM-UP ([0-9a-f]{32})", BOOT).group(1)
    pauses = []
    for cycle in range(1, cycles + 1):
        server.allowed = size * cycle // (cycles + 1)
        # In the midst of it.
        half = size * (2 * cycle - 1) // (2 * (cycles + 1))
        try:
            # This kernel's timers have seen the pauses, so what is lost in one is sent again after tens of seconds at worst.
            until("half of step %d" % cycle, 150, lambda: server.fault or min(len(server.taken), server.given) >= half)
        except AssertionError:
            print("taken %d, given %d, of %d" % (len(server.taken), server.given, half))
            print(subprocess.run(["ss", "-tino"], capture_output=True, text=True).stdout)
            print(gateway.ask("list"), gateway.ask("stats"), gateway.ask("neighbours"), guest.console()[-500:])
            raise
        assert server.fault is None, server.fault
        begun = time.monotonic()
        guest.save()
        gateway.save(RUN / "up.hib")
        guest.kill()
        gateway.kill()
        gateway = Gateway("up", ROOT, *device, "--restore", str(RUN / "up.hib"))
        assert gateway.ready["lost"]["resets"] == []
        guest = Guest("up-%d" % cycle, ROOT, "up", append=append, state="up").restore().go_on()
        pauses.append(time.monotonic() - begun)
    say("uplink: %d checkpoints, kills and restores, %.1f s each on average" % (cycles, sum(pauses) / cycles))
    server.allowed = size
    down = guest.wait(r"SUM-DOWN ([0-9a-f]{32})", 90).group(1)
    until("the server's end", 10, lambda: server.fault or server.over)
    assert server.fault is None, server.fault
    assert (len(server.taken), hashlib.md5(server.taken).hexdigest()) == (size, up)
    assert "TRANSFER-DONE 0" in guest.console() and down == hashlib.md5(server.gift).hexdigest(), down
    assert resets() == before, (before, resets())
    say("uplink: %d bytes each way, sums equal, no reset" % size)
    guest.kill()
    gateway.kill()


class EchoServer(threading.Thread):
    """A kernel's echo service: each connection's bytes go back, and its end too."""

    def __init__(self, address):
        super().__init__(daemon=True)
        self.listener = socket.create_server(address)
        self.start()

    def run(self):
        while True:
            client, _ = self.listener.accept()
            threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client):
        try:
            while piece := client.recv(4096):
                client.sendall(piece)
            client.close()
        except OSError:
            pass


def tries(text, end):
    """What became of each try to connect: status, and seconds by the guest's clock."""
    found = re.findall(r"TRY %s status=(\d+) from=([\d.]+) to=([\d.]+)" % re.escape(end), text)
    return [(int(status), float(ended) - float(begun)) for status, begun, ended in found]


def policy():
    """What a policy denies fails in the guest at once and is an event; what it allows goes out by the host's own sockets."""
    for address in ("198.51.100.1", "198.51.100.2"):
        subprocess.run(["ip", "addr", "add", address + "/32", "dev", "lo"], check=True)
    EchoServer(("198.51.100.1", 7001))
    EchoServer(("198.51.100.2", 7001))
    allowed, refused = "198.51.100.1:7001", "198.51.100.1:7009"
    denied = ["198.51.100.2:7001", "198.51.100.1:7002"]
    rules = RUN / "policy.toml"
    rules.write_text('[[rule]]\naction = "allow"\ncidr = "198.51.100.1"\nprotocol = "tcp"\nports = [7001, 7009]\n')
    first = Gateway("policy", NOBODY, "--no-dns", "--egress-policy", str(rules))
    append = "guest.dhcp=1 guest.echo=%s guest.try=%s" % (allowed, ",".join([allowed, refused, *denied]))
    guest = Guest("policy-a", NOBODY, "policy", append=append, state="policy").boot()
    guest.wait("ECHO line-2", BOOT)
    guest.wait(r"TRY %s status" % re.escape(denied[-1]), 30)

    def judge(console, gateway):
        seen = {end: tries(console, end) for end in [allowed, refused, *denied]}
        for end, results in seen.items():
            assert results, (end, console[-2000:])
            # By the guest's clock, whose connections to nobody would take seconds to fail.
            assert all((status == 0) == (end == allowed) and took < 1 for status, took in results), (end, results)
        events = gateway.ask("events")["events"]
        for end in denied:
            told = [event for event in events if (event["reason"], event["dst"]) == ("reject", end)]
            assert told and told[0]["chain"].startswith("egress"), (end, events[-5:])
        return told[0]["text"]

    text = judge(guest.console(), first)
    say("policy: allowed is answered, refused and denied fail within a second; events: %s" % text)

    guest.save()
    first.save(RUN / "policy.hib")
    guest.kill()
    first.kill()
    second = Gateway("policy", NOBODY, "--restore", str(RUN / "policy.hib"))
    lost = second.ready["lost"]["resets"]
    assert any(allowed in reset for reset in lost), second.ready
    again = Guest("policy-b", NOBODY, "policy", append=append, state="policy").restore().go_on()
    begun = time.monotonic()
    again.wait("CLOSED outbound", 30)
    ticks = again.console().split("CLOSED outbound")[0].count("TICK")
    assert ticks <= 2, again.console()
    took = time.monotonic() - begun
    again.wait(r"TRY %s status[\s\S]*TRY %s status" % (re.escape(allowed), re.escape(denied[-1])), 30)
    judge(again.console(), second)
    say("policy: after the restore, without the file, the same holds; the lost connection was reset %.1f s behind `cont`" % took)
    again.kill()
    second.kill()


CHECKS = {"stream": lambda: flow("stream"), "dgram": lambda: flow("dgram"), "policy": policy, "uplink": uplink}


def main():
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    RUN.mkdir()
    os.chown(RUN, NOBODY["user"], NOBODY["group"])
    wanted = sys.argv[2:] or list(CHECKS)
    try:
        for name in wanted:
            CHECKS[name]()
    finally:
        for one in Guest.alive + Gateway.alive:
            try:
                one.kill()
            except Exception as error:
                print("left behind: %s" % error)
    print("guests: %s passed" % ", ".join(wanted))


BEGUN = time.monotonic()
main()
