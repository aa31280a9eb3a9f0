"""Origins, clients and what they say: the programs of the crate `load`, each on its core."""

import json
import re
import subprocess
from dataclasses import dataclass

from bed import until_open
from cores import pinned

LOAD = "target/load/cargo/release/load"
SESSION = ("--session", "pr-42")
# A client that hangs would hold up everything.
PATIENCE = 30


class Wrong(Exception):
    """An answer was not what it had to be."""


class Starved(Wrong):
    """Nothing happened in the measured time, as on a machine that does something else."""


@dataclass(frozen=True)
class Origin:
    name: str
    pid: int
    port: int


def origin(bed, cores, name):
    """An origin that says this name in every answer."""
    child = bed.start(LOAD, "origin", "--name", name, stdout=subprocess.PIPE, **pinned(cores.load))
    port = int(re.search(rb":(\d+)\n", child.stdout.readline())[1])
    until_open(port)
    return Origin(name, child.pid, port)


def asked(port, *arguments, origin="pr"):
    return ("--target", f"127.0.0.1:{port}", "--origin", origin, *arguments)


def client(cores, *arguments, limit=PATIENCE):
    """Runs the load generator; what it prints."""
    done = subprocess.run(
        [LOAD, "client", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=limit, check=False, **pinned(cores.load),
    )  # fmt: skip
    if done.returncode != 0:
        raise Wrong(done.stderr.strip())
    return done.stdout


def check(cores, proxy, port, case):
    """One request of the case with the session, and without and with another one to the baseline."""
    # A case that is defined by its load has the client's defaults here: one request.
    work = ("--once", "--protocol", case.protocol, *case.client)
    client(cores, *asked(port, *SESSION, *work))
    if not proxy.matches:
        return
    for other in ((), ("--session", "pr-43")):
        try:
            client(cores, *asked(port, *other, *work, origin="baseline"))
        except Wrong as wrong:
            raise Wrong(f"a request with {' '.join(other) or 'no session'}: {wrong}") from wrong


def measure(cores, case, port, pid, pace):
    """One run of a case; another one if nothing happened in it."""
    try:
        return measured(cores, case, port, pid, pace)
    except Starved:
        return measured(cores, case, port, pid, pace)


def measured(cores, case, port, pid, pace):
    """One run of a case: the client's account, as a dictionary."""
    rate = ("--rate", str(case.rate)) if case.rate else ()
    text = client(
        cores,
        *asked(port, *SESSION, "--protocol", case.protocol, *case.client, *rate),
        *("--warm-up", str(pace.warm_up), "--seconds", str(pace.seconds)),
        *("--at-least", str(pace.at_least), "--watch", f"proxy={pid}"),
        limit=PATIENCE + pace.warm_up + pace.seconds,
    )
    run = json.loads(text)
    if run["errors"]:
        raise Wrong(f"{run['errors']} errors, the first: {run['first_error']}")
    if run["unanswered"]:
        raise Wrong(f"{run['unanswered']} requests were not answered within two seconds")
    if not run["answered"]:
        raise Starved("no request was answered in the measured time")
    if not run["cpu"]["proxy"]["seconds"]:
        raise Starved("the proxy had no CPU time")
    return run
