"""Memory, start, load and cost per request of the release binary."""

import json
import os
import re
import socket
import statistics
import subprocess
import sys
import time

from bed import Bed, Tally, end, free_port

CONNECTIONS = 10_000


def resident(pid):
    """KiB of memory the process holds."""
    with open(f"/proc/{pid}/status") as status:
        return int(re.search(r"VmRSS:\s+(\d+) kB", status.read())[1])


def cpu_seconds(pid):
    """Time on a CPU of all threads, by the scheduler's account in nanoseconds."""
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/schedstat", encoding="ascii") as account:
            total += int(account.read().split()[0])
    return total / 1e9


def within(name, measured, limit, unit):
    print(f"{name}: {measured:.4g} {unit} (limit {limit} {unit})", flush=True)
    if not measured < limit:
        raise AssertionError(f"{measured:.4g} is not below {limit} {unit}")


def config(port, sessions, app):
    return {
        "listeners": [{"address": f"127.0.0.1:{port}", "baseline": f"127.0.0.1:{app}"}],
        "sessions": sessions,
        "limits": {"connections": CONNECTIONS + 100},
        "timeouts": {"firstByte": "5m", "keepAlive": "5m"},
        "admin": "off",
    }


def start_app(bed):
    """The demo's apps are good enough: one of them, found by its proxy's own session list."""
    port, admin = free_port(), free_port()
    bed.start(bed.binary, "demo", "--listen", f"127.0.0.1:{port}", "--admin", f"127.0.0.1:{admin}", port=port)
    text = get(admin, "/sessions")[1]
    address = json.loads(text)["sessions"][0]["endpoints"][0]["address"]
    return int(address.rsplit(":", 1)[1])


def get(port, path, session=None, connection=None):
    """Status and body of one request; on `connection` when given, which is left open."""
    client = connection or socket.create_connection(("127.0.0.1", port), 10)
    tag = f"x-dev-session: {session}\r\n" if session else ""
    client.sendall(f"GET {path} HTTP/1.1\r\nhost: localhost\r\n{tag}\r\n".encode())
    got = b""
    while b"\r\n\r\n" not in got:
        got += received(client)
    head, _, body = got.partition(b"\r\n\r\n")
    length = int(re.search(rb"content-length: (\d+)", head.lower())[1])
    while len(body) < length:
        body += received(client)
    if connection is None:
        client.close()
    return int(head.split()[1]), body.decode()


def received(client):
    chunk = client.recv(65536)
    if not chunk:
        raise RuntimeError("the connection was closed")
    return chunk


def memory_at_start(bed, app):
    proxy = bed.proxy(config(free_port(), {"pr-42": f"127.0.0.1:{app}"}, app))
    time.sleep(0.5)
    measured = resident(proxy.pid) / 1024
    end(proxy)
    within("resident at start", measured, 15, "MiB")


def memory_per_connection(bed, app, has_asked):
    port = free_port()
    proxy = bed.proxy(config(port, {}, app))
    for _ in range(200):
        get(port, "/")
    before = resident(proxy.pid)
    clients = []
    for _ in range(CONNECTIONS):
        client = socket.create_connection(("127.0.0.1", port), 10)
        if has_asked:
            status, _ = get(port, "/", connection=client)
            assert status == 200, status
        clients.append(client)
    time.sleep(1)
    measured = (resident(proxy.pid) - before) / CONNECTIONS
    # All of them are really open: the last and the first still work.
    for client in (clients[0], clients[-1]):
        assert get(port, "/", connection=client)[0] == 200
    for client in clients:
        client.close()
    end(proxy)
    what = "that asked once" if has_asked else "that never sent a byte"
    within(f"resident per idle connection {what}, {CONNECTIONS} of them", measured, 25, "KiB")


def many_sessions(app):
    return {f"pr-{n}": f"127.0.0.1:{app}" for n in range(100_000)}


def load_time(bed, app):
    made = config(free_port(), many_sessions(app), app)
    times = []
    for _ in range(5):
        start = time.monotonic()
        proxy = bed.proxy(made)
        times.append(time.monotonic() - start)
        end(proxy)
    # Writing the file is ours, and part of it: the measure is on the safe side.
    within("load of 100,000 sessions", statistics.median(times), 1, "s")


def cost_per_request(bed, app):
    """CPU per request of 100,000 sessions over that of one, in turns."""
    ports = free_port(), free_port()
    proxies = (
        bed.proxy(config(ports[0], {"pr-77777": f"127.0.0.1:{app}"}, app), "--workers", "1"),
        bed.proxy(config(ports[1], many_sessions(app), app), "--workers", "1"),
    )
    requests = 20_000
    costs = ([], [])
    for turn in range(12):
        for which in (0, 1) if turn % 2 else (1, 0):
            before = cpu_seconds(proxies[which].pid)
            text = subprocess.run(
                ["h2load", "--h1", "-n", str(requests), "-c", "8", "-H", "x-dev-session: pr-77777",
                 f"http://127.0.0.1:{ports[which]}/"],
                capture_output=True, text=True, timeout=120, check=True).stdout  # fmt: skip
            assert f"status codes: {requests} 2xx" in text, text
            if turn > 1:
                costs[which].append((cpu_seconds(proxies[which].pid) - before) / requests * 1e6)
    for proxy in proxies:
        end(proxy)
    one, many = (statistics.median(cost) for cost in costs)
    print(f"cpu per request: {one:.2f} us with 1 session, {many:.2f} us with 100,000", flush=True)
    # Turn by turn: the machine's speed drifts, and both runs of a turn saw the same of it.
    ratio = statistics.median(many / one for one, many in zip(*costs))
    within("cost per request, 100,000 sessions over one", ratio, 1.15, "x")


def start_to_first_request(bed, app):
    times = []
    for turn in range(20):
        port = free_port()
        path = bed.write("small.yaml", json.dumps(config(port, {"pr-42": f"127.0.0.1:{app}"}, app)))
        start = time.monotonic()
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        proxy = subprocess.Popen([bed.binary, "run", "--config", path], **quiet)
        bed.children.append(proxy)
        while True:
            try:
                status, _ = get(port, "/", "pr-42")
                break
            except ConnectionRefusedError:
                if time.monotonic() - start > 5:
                    raise
                time.sleep(0.0005)
        times.append((time.monotonic() - start) * 1000)
        assert status == 200, status
        end(proxy)
    within("start to first served request, median of 20", statistics.median(times), 50, "ms")


def main():
    tally = Tally()
    with Bed(sys.argv[1]) as bed:
        app = start_app(bed)
        figures = (
            ("memory at start", lambda: memory_at_start(bed, app)),
            ("memory of silent connections", lambda: memory_per_connection(bed, app, False)),
            ("memory of keep-alive connections", lambda: memory_per_connection(bed, app, True)),
            ("loading 100,000 sessions", lambda: load_time(bed, app)),
            ("cost of 100,000 sessions", lambda: cost_per_request(bed, app)),
            ("start", lambda: start_to_first_request(bed, app)),
        )
        for name, deed in figures:
            tally.check(name, deed)
    return tally.close("target/figures.result")


sys.exit(main())
