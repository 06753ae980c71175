"""Kernel clients of `sandbox-demo serve`, through two saves, SIGKILLs and restores. Called by `.ci/serve`.

Whatever does not hold ends this program with an assertion; it prints what was seen.
"""
import ctypes
import hashlib
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

BINARY = os.path.abspath(sys.argv[1])
NAMESPACE = "hibernet-serve-%d" % os.getpid()
LINK = "tun:box0@/run/netns/" + NAMESPACE
ENDS = ["10.9.0.2", "fd00:9::2"]
SLOW, QUICK = 6_000_000, 3_000_000
LIFETIMES = 2
CLONE_NEWNET = 0x40000000


def run(*words, **how):
    return subprocess.run(words, check=True, capture_output=True, text=True, **how).stdout


def ip(*words):
    run("ip", *words)


def url(end, name):
    return "http://%s/%s" % (end if "." in end else "[%s]" % end, name)


def client(*words):
    return ["ip", "netns", "exec", NAMESPACE, *words]


def enter(namespace):
    assert ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())


def sha(path):
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


class Server:
    started = []

    def __init__(self, home, *start):
        self.control = home / "control"
        self.process = subprocess.Popen(
            [BINARY, "--json", "serve", "--link", LINK, "--root", str(home / "files"), "--control", str(self.control), *start],
            stdout=subprocess.PIPE, text=True)
        Server.started.append(self.process)
        line = self.process.stdout.readline()
        assert line, "the server ended before it was ready; its message is above"
        self.ready = json.loads(line)

    def save(self, image):
        return json.loads(run(BINARY, "--json", "save", "--hold", "--control", str(self.control), str(image)))

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        assert self.process.wait() == -signal.SIGKILL


class Echo(threading.Thread):
    """Sends numbered bytes at a pace and takes what comes back; a socket of the client's namespace."""

    def __init__(self, end):
        super().__init__(daemon=True)
        # The socket belongs to the namespace the thread that makes it is in.
        with open("/proc/thread-self/ns/net") as home, open("/run/netns/" + NAMESPACE) as there:
            enter(there)
            self.socket = socket.create_connection((end, 7), timeout=30)
            enter(home)
        self.pattern = random.Random(end)
        self.sent, self.received = hashlib.sha256(), hashlib.sha256()
        self.bytes, self.back, self.failure, self.over = 0, 0, None, False

    def run(self):
        try:
            while not self.over:
                chunk = self.pattern.randbytes(3000)
                self.socket.sendall(chunk)
                self.sent.update(chunk)
                self.bytes += len(chunk)
                while self.back < self.bytes:
                    self.take()
                time.sleep(0.01)
            self.socket.shutdown(socket.SHUT_WR)
            assert self.socket.recv(1) == b"", "more came back than was sent"
        except Exception as error:
            self.failure = error

    def take(self):
        back = self.socket.recv(65536)
        assert back, "the stream ended early"
        self.received.update(back)
        self.back += len(back)


def echo_datagrams(end, count=20):
    """So many datagrams there and back; one that is lost is an error."""
    with open("/proc/thread-self/ns/net") as home, open("/run/netns/" + NAMESPACE) as there:
        enter(there)
        datagrams = socket.socket(socket.AF_INET if "." in end else socket.AF_INET6, socket.SOCK_DGRAM)
        enter(home)
    with datagrams:
        datagrams.settimeout(10)
        datagrams.connect((end, 7))
        for number in range(count):
            sent = b"%d to %s" % (number, end.encode())
            datagrams.send(sent)
            assert datagrams.recv(2048) == sent


def counters():
    """TCP's and its extensions' counters of the client's kernel."""
    text = run(*client("cat", "/proc/net/snmp", "/proc/net/netstat")).splitlines()
    found = {}
    for names, values in zip(text[::2], text[1::2]):
        found.update(zip(names.split(), values.split()))
    return {name: int(found[name]) for name in ["OutRsts", "EstabResets", "InCsumErrors", "PAWSEstab"]}


def scenario(home):
    (home / "files").mkdir()
    for name, size in [("slow", SLOW), ("quick", QUICK)]:
        (home / "files" / name).write_bytes(random.Random(name).randbytes(size))
    server = Server(home, "--addr", ENDS[0] + "/24", "--addr", ENDS[1] + "/64")
    assert server.ready["state"] == "serving" and server.ready["restored"] is None, server.ready
    assert run(*client("curl", "-gsSf", url(ENDS[0], ""))) == "quick\nslow\n"
    for end in ENDS:
        missing = subprocess.run(client("curl", "-gsS", "-o", "/dev/null", "-w", "%{http_code}", url(end, "none")),
                                 capture_output=True, text=True)
        assert missing.stdout == "404", missing
    for end in ENDS:
        echo_datagrams(end)
    before = counters()

    slow = {}
    for end in ENDS:
        into = home / ("slow-" + end.replace(":", "-"))
        # 3 s and more at that rate: both restores are in the middle of it.
        slow[end] = (into, subprocess.Popen(client("curl", "-gsSf", "--limit-rate", "600k", "-o", str(into), url(end, "slow"))))
    echoes = [Echo(end) for end in ENDS]
    for echo in echoes:
        echo.start()

    for lifetime in range(1, LIFETIMES + 1):
        time.sleep(1)
        at = {end: into.stat().st_size for end, (into, _) in slow.items()}
        back = [echo.back for echo in echoes]
        for end, size in at.items():
            assert 0 < size < SLOW, "save %d is not in the middle of the download over %s: %d bytes" % (lifetime, end, size)
        assert all(back), "nothing has come back yet: %s" % back
        image = home / ("image-%d" % lifetime)
        saved = server.save(image)
        # What is asked for while nobody is there is answered by the next.
        meanwhile = subprocess.Popen(client("curl", "-gsSf", "-o", str(home / "quick"), url(ENDS[lifetime % 2], "quick")))
        server.kill()
        server = Server(home, "--restore", str(image))
        restored = server.ready["restored"]
        assert restored["streams_reset"] == 0 and restored["reset"] == 0 and restored["resets"] == [], restored
        assert restored["streams_kept"] >= 4 and server.ready["resumed"] == 4, server.ready
        assert restored["kept"] == saved["flows"], (restored, saved)
        assert meanwhile.wait(timeout=20) == 0
        assert sha(home / "quick") == sha(home / "files" / "quick")
        assert restored["sockets"] == 1, restored
        for end in ENDS:
            echo_datagrams(end)
        print("restore %d: downloads at %s of %d bytes, echoes at %s; %d streams kept, %d reset, in %.1f ms" % (
            lifetime, list(at.values()), SLOW, back, restored["streams_kept"], restored["streams_reset"],
            restored["restore_ms"]))

    for end, (into, process) in slow.items():
        assert process.wait(timeout=30) == 0, "curl over %s ended with %d" % (end, process.returncode)
        assert sha(into) == sha(home / "files" / "slow"), "the file that came over %s is another" % end
    for echo in echoes:
        echo.over = True
        echo.join(timeout=15)
        assert not echo.is_alive() and echo.failure is None, echo.failure
        assert echo.bytes == echo.back and echo.sent.digest() == echo.received.digest(), (echo.bytes, echo.back)
        print("echo: %d bytes there and back, hashes equal" % echo.bytes)
    moved = {name: value - before[name] for name, value in counters().items()}
    assert not any(moved.values()), "the client's kernel counted %s" % moved
    print("client's kernel: %s" % moved)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=5) == 0


def control(home):
    """The same server started anew instead of restored: a download in its middle must break, or nothing was shown."""
    server = Server(home, "--addr", ENDS[0] + "/24")
    slow = subprocess.Popen(client("curl", "-gsS", "--limit-rate", "600k", "--speed-time", "3", "--speed-limit", "1",
                                   "-o", "/dev/null", url(ENDS[0], "slow")), stderr=subprocess.DEVNULL)
    time.sleep(1)
    assert slow.poll() is None, "the download was over before the kill"
    server.kill()
    server = Server(home, "--addr", ENDS[0] + "/24")
    assert slow.wait(timeout=20) != 0, "a download lived on without an image"
    print("control: started without the image, the download breaks (curl says %d)" % slow.returncode)
    server.kill()


def limits(home):
    """Who holds all places keeps others waiting, not the server growing; a head that is too long is refused."""
    server = Server(home, "--addr", ENDS[0] + "/24", "--max-connections", "2")
    head = subprocess.run(client("curl", "-gsS", "-H", "X: " + "y" * 9000, "-o", "/dev/null", "-w", "%{http_code}",
                                 url(ENDS[0], "quick")), capture_output=True, text=True)
    assert head.stdout == "431", head
    silent = []
    with open("/proc/thread-self/ns/net") as home_namespace, open("/run/netns/" + NAMESPACE) as there:
        enter(there)
        silent = [socket.create_connection((ENDS[0], 80), timeout=10) for _ in range(2)]
        enter(home_namespace)
    fetch = client("curl", "-gsS", "--max-time", "2", "-o", "/dev/null", url(ENDS[0], "quick"))
    waited = subprocess.run(fetch, capture_output=True)
    assert waited.returncode == 28, "a third connection was served: curl says %d" % waited.returncode
    silent.pop().close()
    assert subprocess.run(fetch).returncode == 0, "a place that was given back was not used again"
    print("limits: with 2 places a third client waits until one is free; a head of 9,000 bytes gets %s" % head.stdout)
    server.kill()


def main():
    ip("netns", "add", NAMESPACE)
    try:
        ip("-n", NAMESPACE, "tuntap", "add", "mode", "tun", "name", "box0")
        ip("-n", NAMESPACE, "addr", "add", "10.9.0.1/24", "dev", "box0")
        ip("-n", NAMESPACE, "addr", "add", "fd00:9::1/64", "dev", "box0", "nodad")
        ip("-n", NAMESPACE, "link", "set", "box0", "up")
        with tempfile.TemporaryDirectory() as home:
            begun = time.monotonic()
            scenario(pathlib.Path(home))
            control(pathlib.Path(home))
            limits(pathlib.Path(home))
            print("all in %.1f s" % (time.monotonic() - begun))
    finally:
        for process in Server.started:
            process.kill()
        subprocess.run(["ip", "netns", "del", NAMESPACE])


main()
