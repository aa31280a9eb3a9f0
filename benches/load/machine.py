"""Where it was measured, and of what."""

import json
import os
import platform
import re
import subprocess
import time

from cores import pinned
from loads import LOAD


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


def described(cores):
    """Machine and build as name and value."""
    model = re.search(r"model name\s*: (.+)", read("/proc/cpuinfo"))
    memory = int(re.search(r"MemTotal:\s+(\d+)", read("/proc/meminfo"))[1])
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "processor": model[1] if model else platform.machine(),
        "cores": f"{len(os.sched_getaffinity(0))}; {cores.told()}",
        "memory": f"{memory / (1 << 20):.0f} GiB",
        # Of others: it is read before anything is started here.
        "load average": f"{os.getloadavg()[0]:.2f} before the first run",
        "stands still": stalls(cores),
        "kernel": f"{platform.system()} {platform.release()}",
        "commit": commit(),
        "rustc": output("rustc", "--version"),
    }


def stalls(cores):
    """How long cores that are all busy stand still by themselves: with about 1 % of the time, p99
    says how many of such pauses a run has met."""
    busy = {core: watcher(core) for core in sorted(cores.two | cores.load)}
    told = []
    for core, process in busy.items():
        seen = json.loads(process.communicate()[0])
        longest = seen["longest_us"] / 1000
        told.append(f"core {core} {seen['share']:.2%} of the time, for {longest:.1f} ms at most")
    return "; ".join(told) + " (all busy, pauses of 1 ms and more)"


def watcher(core):
    return subprocess.Popen([LOAD, "stalls"], stdout=subprocess.PIPE, text=True,
                            **pinned(frozenset({core})))  # fmt: skip


def commit():
    """The commit, and whether files differ from it."""
    name = output("git", "rev-parse", "--short=12", "HEAD")
    changed = output("git", "status", "--porcelain", "--untracked-files=no")
    return f"{name}, with changes" if changed else name


def output(*command):
    """What a command prints; "unknown" where there is no such command or it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
