"""Runs the cases: every proxy in turn, round after round, so that all see the same of the machine's
moods. What a proxy does wrong ends its part in the case, and is told at the end."""

import itertools
import subprocess
from dataclasses import dataclass

import loads
import memory
from bed import Bed
from proxies import Running, Work


@dataclass(frozen=True)
class Pace:
    """How long everything takes, in seconds."""

    rounds: int
    seconds: float
    warm_up: float
    # A run goes on until so many requests are answered.
    at_least: int = 1
    # Idle connections lie still for so long before memory is read.
    rest: float = 3.0

    def of_case(self, case, proxies):
        """An estimate."""
        able = [proxy for proxy in proxies if not proxy.cannot(case)]
        entrants = len(able) * len(case.workers)
        if case.held:
            return entrants * sum(self.rest + 1.5 + connections / 5000 for connections in case.held)
        entrants += case.direct
        return entrants * (0.5 + self.rounds * (self.warm_up + self.seconds + 0.1))


class Direct:
    """No proxy at all: what the origin and the client cost, and how fast they are."""

    name = "direct"
    title = "no proxy"
    matches = False


def entrant(proxy, workers):
    """How one competitor is called in the results."""
    return proxy.name if workers == 1 else f"{proxy.name}, {workers} workers"


class Runs:
    """What was measured, what was left out and what went wrong."""

    def __init__(self, cores, pace):
        self.cores = cores
        self.pace = pace
        self.samples = {}
        self.left_out = []
        self.failures = []

    def left(self, case, name, why):
        self.left_out.append({"case": case, "proxy": name, "why": why})
        print(f"  left out: {name}, {case}: {why}", flush=True)

    def failed(self, case, name, error):
        self.failures.append({"case": case.name, "proxy": name, "error": str(error)})
        print(f"  FAILED: {name}, {case.name}: {error}", flush=True)

    def case(self, case, proxies):
        """All rounds of one case."""
        able = []
        for proxy in proxies:
            if why := proxy.cannot(case):
                self.left(case.name, proxy.name, why)
            else:
                able.append(proxy)
        if case.held:
            for proxy in able:
                self.held(case, proxy)
            return
        with Bed(None) as bed:
            origins = [loads.origin(bed, self.cores, name) for name in ("pr", "baseline")]
            running = self.start(bed, case, able, origins)
            names = list(running)
            for turn in range(self.pace.rounds):
                # Another one goes first each time: what ran before it may matter to a run.
                start = turn % max(len(names), 1)
                for name in itertools.chain(names[start:], names[:start]):
                    if name in running:
                        self.one(case, name, running)

    def start(self, bed, case, proxies, origins):
        """Starts and checks all competitors of a case; those that answer right."""
        pr, baseline = origins
        running = {}
        if case.direct:
            running[Direct.name] = Running(pr.pid, pr.port)
        for workers, proxy in itertools.product(case.workers, proxies):
            work = Work(
                pr.port, baseline.port, self.cores.of(workers), workers, case.front, case.upstream,
                case.protocol == "grpc",
            )  # fmt: skip
            name = entrant(proxy, workers)
            try:
                started = proxy.start(bed, work)
                loads.check(self.cores, proxy, started.port, case)
                running[name] = started
            except (loads.Wrong, RuntimeError, subprocess.TimeoutExpired) as error:
                self.failed(case, name, error)
        return running

    def one(self, case, name, running):
        """One run of one competitor."""
        this = running[name]
        try:
            run = loads.measure(self.cores, case, this.port, this.pid, self.pace)
        except (loads.Wrong, subprocess.TimeoutExpired) as error:
            # What it did in earlier rounds says nothing any more.
            self.samples.get(case.name, {}).pop(name, None)
            del running[name]
            self.failed(case, name, error)
        else:
            self.samples.setdefault(case.name, {}).setdefault(name, []).append(run)

    def held(self, case, proxy):
        """Memory is of a process that did nothing else, so each has an own one per number."""
        held = {}
        for connections in case.held:
            if why := proxy.cannot_hold(connections):
                self.left(f"{case.name} of {connections:,}", proxy.name, why)
                continue
            with Bed(None) as bed:
                pr, baseline = (loads.origin(bed, self.cores, name) for name in ("pr", "baseline"))
                try:
                    work = Work(pr.port, baseline.port, self.cores.one)
                    started = proxy.start(bed, work)
                    loads.check(self.cores, proxy, started.port, case)
                    kib = memory.held(bed, self.cores, started, connections, self.pace.rest)
                except (loads.Wrong, RuntimeError, subprocess.TimeoutExpired) as error:
                    self.failed(case, proxy.name, error)
                    return
            held[str(connections)] = kib
        self.samples.setdefault(case.name, {})[proxy.name] = held
