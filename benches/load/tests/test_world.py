"""What must be noticed when real processes run: wrong origins, left processes, lost peers."""

import os
import signal
import subprocess
import sys
import time
import unittest

import cases
import loads
import machine
import memory
import proxies
import rounds
from bed import Bed
from cores import Cores

CORES = Cores(*[frozenset(os.sched_getaffinity(0))] * 3)
SHORT = rounds.Pace(rounds=1, seconds=0.1, warm_up=0)
MANY = rounds.Pace(rounds=1, seconds=0.1, warm_up=0, at_least=2000)
# Nothing is ever counted where all answers are wrong, so nothing is waited for.
WRONG = rounds.Pace(rounds=1, seconds=0.1, warm_up=0, at_least=0)


def matching():
    """All proxies that are here and read requests."""
    ours = proxies.Ours(os.path.abspath(os.environ["SESSION_PROXY_BINARY"]))
    return [proxy for proxy in (ours, *proxies.peers()) if proxy.matches and not proxy.missing()]


class Machine(unittest.TestCase):
    def test_it_says_how_long_each_core_stands_still(self):
        told = machine.stalls(CORES)
        for core in os.sched_getaffinity(0):
            self.assertRegex(told, rf"core {core} \d+\.\d\d% of the time, for \d+\.\d ms at most")


class WrongOrigins(unittest.TestCase):
    def test_every_proxy_that_sends_to_the_wrong_origin_is_caught(self):
        case = cases.named(["get"])[0]
        for proxy in matching():
            with self.subTest(proxy.name), Bed(None) as bed:
                pr, baseline = (loads.origin(bed, CORES, name) for name in ("pr", "baseline"))
                swapped = proxies.Work(pr=baseline.port, baseline=pr.port, cores=CORES.one)
                started = proxy.start(bed, swapped)
                with self.assertRaisesRegex(loads.Wrong, "answered by the wrong origin"):
                    loads.check(CORES, proxy, started.port, case)
                with self.assertRaisesRegex(loads.Wrong, "wrong origin"):
                    loads.measure(CORES, case, started.port, started.pid, WRONG)

    def test_a_proxy_that_matches_nothing_is_caught(self):
        case = cases.named(["h2"])[0]
        for proxy in matching():
            with self.subTest(proxy.name), Bed(None) as bed:
                pr = loads.origin(bed, CORES, "pr")
                started = proxy.start(bed, proxies.Work(pr.port, pr.port, CORES.one, front="h2"))
                with self.assertRaisesRegex(loads.Wrong, "no session: .*wrong origin"):
                    loads.check(CORES, proxy, started.port, case)

    def test_a_failed_peer_is_told_and_the_others_go_on(self):
        class Misled(proxies.Ours):
            def command(self, bed, work, port):
                work = proxies.Work(work.baseline, work.pr, work.cores)
                return super().command(bed, work, port)

        ours = matching()[0]
        runs = rounds.Runs(CORES, SHORT)
        runs.case(cases.named(["get"])[0], [ours, Misled(ours.binary, "misled")])
        self.assertEqual([failure["proxy"] for failure in runs.failures], ["misled"])
        self.assertEqual(set(runs.samples["get"]), {"direct", ours.name})


def connections_to(port):
    """How many connections this port has or had in the last minute, as whoever closed a connection
    first keeps it in TIME-WAIT."""
    others = set()
    with open("/proc/net/tcp", encoding="ascii") as table:
        for line in list(table)[1:]:
            ends = [int(address.rpartition(":")[2], 16) for address in line.split()[1:3]]
            if port in ends:
                others.update(ends)
    # Neither the port itself nor the other end of its listening socket.
    return len(others - {port, 0})


class Pools(unittest.TestCase):
    def test_every_proxy_that_reads_requests_keeps_its_connections(self):
        for name in ("get", "connect", "h2"):
            case = cases.named([name])[0]
            for proxy in matching():
                with self.subTest(proxy.name), Bed(None) as bed:
                    pr, baseline = (loads.origin(bed, CORES, name) for name in ("pr", "baseline"))
                    work = proxies.Work(pr.port, baseline.port, CORES.one, front=case.front)
                    started = proxy.start(bed, work)
                    run = loads.measure(CORES, case, started.port, started.pid, MANY)
                    # One for each client or stream, and some that closed as the clients left.
                    self.assertGreaterEqual(run["answered"], MANY.at_least)
                    self.assertLess(connections_to(pr.port), MANY.at_least / 5)

    def test_without_a_pool_the_connections_would_be_seen(self):
        case = cases.named(["connect"])[0]
        with Bed(None) as bed:
            pr = loads.origin(bed, CORES, "pr")
            loads.measure(CORES, case, pr.port, pr.pid, MANY)
            self.assertGreater(connections_to(pr.port), MANY.at_least / 2)


# 32 MiB in a parent, 64 MiB in its child, which ends when its parent does.
FAMILY = """
import subprocess, sys
room = bytearray(b"x" * (32 << 20))
script = "room = bytearray(b'x' * (64 << 20)); input()"
subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE).wait()
"""


class Processes(unittest.TestCase):
    def test_memory_is_of_the_whole_family(self):
        with Bed(None) as bed:
            parent = bed.start(sys.executable, "-c", FAMILY)
            until(lambda: memory.resident(parent.pid) > 96 << 10)
            self.assertEqual(len(memory.family(parent.pid)), 2)

    def test_asked_to_end_it_leaves_no_process(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            with self.subTest(number):
                self.ends_all_on(number)

    def ends_all_on(self, number):
        run = subprocess.Popen(
            ["benches/load/run", "--case", "get", "--rounds", "100"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        # Two origins, a proxy and a client at least.
        until(lambda: len(memory.family(run.pid)) > 4)
        family = memory.family(run.pid)
        run.send_signal(number)
        _, told = run.communicate(timeout=60)
        self.assertIn(run.returncode, (130, 143))
        self.assertNotIn("Traceback", told)
        until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in family))

    def test_a_missing_binary_is_said_and_nothing_else_happens(self):
        environment = {**os.environ, "SESSION_PROXY_BINARY": "target/no-such-binary"}
        done = subprocess.run(
            ["benches/load/run", "--smoke"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertEqual(done.returncode, 1)
        self.assertIn("cargo build --release", done.stderr)


def until(holds, limit=30):
    deadline = time.monotonic() + limit
    while not holds():
        if time.monotonic() > deadline:
            raise AssertionError("it never came to hold")
        time.sleep(0.05)
