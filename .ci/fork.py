#!/usr/bin/env python3
"""A fork beside its parent, both joined to the same kernel: the parent's connection must not notice.

Two kernels in namespaces talk through a gateway. The gateway's image is restored once more while it runs, with another guest
and a way to the same server. Segments of the inherited connection are then sent from the copy's guest: data, FIN and RST with
the very numbers of the connection. Under --fork the server must see none of them, and the connection goes on. Without it, as a
control, the same segments end the connection: so they could have. Needs root; fails where it cannot run.
"""
import ctypes, json, os, socket, struct, subprocess, sys, tempfile, time

PROGRAM = os.path.abspath(sys.argv[1])
RUN = tempfile.mkdtemp(prefix="fork-")
ID = os.getpid()
GUEST, WORLD, GUEST2, WORLD2 = (f"fork{ID}-{name}" for name in ("g", "w", "g2", "w2"))
SERVER, PUBLIC, CLIENT = "10.92.0.9", "10.92.0.1", "10.91.0.2"
children = []
# os.setns is of Python 3.12.
SETNS, NEWNET = ctypes.CDLL(None, use_errno=True).setns, 0x40000000


def sh(line):
    subprocess.run(line, shell=True, check=True)


def within(ns, job):
    """Runs `job` in a namespace's network, in this thread, and comes back."""
    here = os.open("/proc/self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{ns}", os.O_RDONLY)
    try:
        assert SETNS(there, NEWNET) == 0, f"entering {ns}: {os.strerror(ctypes.get_errno())}"
        return job()
    finally:
        SETNS(here, NEWNET)
        os.close(here), os.close(there)


def network():
    for ns in (GUEST, WORLD, GUEST2, WORLD2):
        sh(f"ip netns add {ns}; ip -n {ns} link set lo up; ip netns exec {ns} sysctl -qw net.ipv6.conf.all.disable_ipv6=1")
        sh(f"ip netns exec {ns} sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 net.ipv4.ip_forward=1")
    for ns, device, address in ((GUEST, "g0", CLIENT), (WORLD, "w0", SERVER), (GUEST2, "g0", CLIENT), (WORLD2, "w0", "10.92.0.8")):
        sh(f"ip -n {ns} tuntap add mode tun name {device}; ip -n {ns} addr add {address}/24 dev {device}; ip -n {ns} link set {device} up")
    for ns in (GUEST, GUEST2):
        sh(f"ip -n {ns} route add default via 10.91.0.1")
    # What the copy sends out goes on to the same server.
    sh(f"ip -n {WORLD2} link add x0 type veth peer name x0 netns {WORLD}")
    sh(f"ip -n {WORLD2} addr add 10.93.0.1/24 dev x0; ip -n {WORLD} addr add 10.93.0.2/24 dev x0")
    sh(f"ip -n {WORLD2} link set x0 up; ip -n {WORLD} link set x0 up; ip -n {WORLD2} route add {SERVER} via 10.93.0.2")


def gateway(name, guest, world, source):
    control = f"{RUN}/{name}.sock"
    links = ["--link", f"tun:g0@/run/netns/{guest}", "--link", f"tun:w0@/run/netns/{world}"]
    child = subprocess.Popen([PROGRAM, *source, *links, "--control", control], stdout=subprocess.PIPE, text=True)
    children.append(child)
    for _ in range(500):
        if subprocess.run([PROGRAM, "status", "--control", control], capture_output=True).returncode == 0:
            return child, control
        assert child.poll() is None, f"{name} has ended"
        time.sleep(0.02)
    raise AssertionError(f"{name} does not answer")


def connection():
    listener = within(WORLD, lambda: socket.create_server((SERVER, 5000)))
    watch = within(GUEST, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3)))
    watch.bind(("g0", 0))
    client = within(GUEST, lambda: socket.create_connection((SERVER, 5000), timeout=5))
    server, _ = listener.accept()
    for end in (client, server):
        end.settimeout(5)
    return client, server, watch


def exchange(client, server, text):
    client.sendall(text)
    assert server.recv(64) == text, "the server was told something else"
    server.sendall(text[::-1])
    assert client.recv(64) == text[::-1], "the client was told something else"


def numbers(watch, client):
    """The next number of the client, and of the server, from the last segment the client sent."""
    found, port = None, client.getsockname()[1]
    watch.setblocking(False)
    try:
        while True:
            packet = watch.recv(2048)
            if packet[9] == 6 and struct.unpack_from("!H", packet, 20)[0] == port:
                seq, ack, offset = struct.unpack_from("!IIB", packet, 24)
                found = (seq + struct.unpack_from("!H", packet, 2)[0] - 20 - (offset >> 4) * 4, ack)
    except BlockingIOError:
        return found


def segment(port, seq, ack, flags, payload=b""):
    head = struct.pack("!HHIIBBHHH", port, 5000, seq, ack, 5 << 4, flags, 65535, 0, 0)
    pseudo = socket.inet_aton(CLIENT) + socket.inet_aton(SERVER) + struct.pack("!BBH", 0, 6, len(head) + len(payload))
    data = pseudo + head + payload + b"\0" * (len(payload) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return head[:16] + struct.pack("!H", ~total & 0xffff) + head[18:] + payload


def say_late(port, seq, ack):
    """The copy's guest goes on with the connection. Comes back with the flags of what it is answered."""
    listen = within(GUEST2, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3)))
    listen.bind(("g0", 0))
    listen.settimeout(0.5)
    raw = within(GUEST2, lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 6))
    for flags, payload in ((0x18, b"late"), (0x11, b""), (0x04, b"")):
        raw.sendto(segment(port, seq, ack, flags, payload), (SERVER, 0))
    answers = []
    try:
        while True:
            packet = listen.recv(2048)
            if packet[9] == 6 and packet[12:16] == socket.inet_aton(SERVER):
                answers.append(packet[33])
    except TimeoutError:
        return answers


def arrived_by_the_copy():
    text = subprocess.run(f"ip -n {WORLD} -j -s link show x0", shell=True, check=True, capture_output=True).stdout
    return json.loads(text)[0]["stats64"]["rx"]["packets"]


def main():
    network()
    link = lambda name, address: {"name": name, "mtu": 1500, "addrs": [address]}
    config = {"links": [link("g0", "10.91.0.1/24"), link("w0", f"{PUBLIC}/24")],
              "rules": [{"chain": "srcnat", "match": {"oif": "w0"}, "action": "masquerade"}]}
    with open(f"{RUN}/gateway.json", "w") as file:
        json.dump(config, file)
    _, control = gateway("parent", GUEST, WORLD, ["run", "--config", f"{RUN}/gateway.json"])
    client, server, watch = connection()
    exchange(client, server, b"before")
    time.sleep(0.2)  # for the last acknowledgement to pass and be in the image
    subprocess.run([PROGRAM, "save", "--control", control, f"{RUN}/image"], check=True)
    port, (seq, ack) = client.getsockname()[1], numbers(watch, client)

    for number, rules in enumerate(([], ["--fork-rule", "drop proto=tcp"])):
        copy, _ = gateway(f"fork{number}", GUEST2, WORLD2, ["restore", f"{RUN}/image", "--fork", "--inside", "g0", *rules])
        before = arrived_by_the_copy()
        answers = say_late(port, seq, ack)
        assert arrived_by_the_copy() == before, "the copy has spoken to the server"
        resets = [flags for flags in answers if flags & 0x04]
        if rules:
            assert not answers, f"a dropped connection was answered: {answers}"
        else:
            # At once, and to data and FIN; nothing answers a reset.
            assert len(resets) >= 2 and len(resets) == len(answers), f"the guest was told {answers}"
        exchange(client, server, b"during %d" % number)
        copy.kill(), copy.wait()
        print(f"fork {number}: the guest was told {len(resets)} resets, the server nothing; the parent's connection goes on")

    # The control: a copy that believes to be the only one does the harm.
    seq, ack = numbers(watch, client)
    gateway("thief", GUEST2, WORLD2, ["restore", f"{RUN}/image"])
    before = arrived_by_the_copy()
    say_late(port, seq, ack)
    assert arrived_by_the_copy() > before, "nothing arrived: the check proves nothing"
    try:
        exchange(client, server, b"after")
    except (OSError, AssertionError) as error:
        print(f"control: a move of the same image ends the parent's connection ({error})")
    else:
        raise AssertionError("the connection lived on: the check proves nothing")


try:
    main()
finally:
    for child in children:
        child.kill(), child.wait()
    for ns in (GUEST, WORLD, GUEST2, WORLD2):
        subprocess.run(["ip", "netns", "del", ns], stderr=subprocess.DEVNULL)
    subprocess.run(["rm", "-r", RUN])
