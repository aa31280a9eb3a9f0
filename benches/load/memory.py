"""Resident memory with connections that asked once and are idle since."""

import os
import re
import subprocess
import time

import loads
from cores import pinned


def resident(pid):
    """KiB that a process and its descendants hold; pages that they share count once."""
    return sum(proportional(member) for member in family(pid))


def proportional(pid):
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as rollup:
        return int(re.search(r"^Pss:\s+(\d+) kB", rollup.read(), re.MULTILINE)[1])


def family(pid):
    members = [pid]
    for member in members:
        members += children(member)
    return members


def children(pid):
    """Not every kernel lists them, so all processes are asked for their parent."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as stat:
                if int(stat.read().rpartition(")")[2].split()[1]) == pid:
                    found.append(int(name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def held(bed, cores, running, connections, rest):
    """KiB with this many idle connections, after some rest."""
    command = [loads.LOAD, "hold", *loads.asked(running.port, *loads.SESSION)]
    command += ["--connections", str(connections)]
    holder = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        **pinned(cores.load),
    )  # fmt: skip
    bed.children.append(holder)
    if holder.stdout.readline() != "holding\n":
        raise loads.Wrong(holder.communicate()[1].strip())
    time.sleep(rest)
    measured = resident(running.pid)
    # All of them are really open: some are asked again.
    _, told = holder.communicate(timeout=loads.PATIENCE)
    if holder.returncode != 0:
        raise loads.Wrong(f"of {connections} held connections: {told.strip()}")
    return measured
