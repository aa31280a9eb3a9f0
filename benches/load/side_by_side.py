"""session-proxy beside what a user would take instead, on the same work in the same run."""

import argparse
import json
import os
import shlex
import signal
import sys
import time
from dataclasses import replace

import cases
import goals
import machine
import proxies
import report
import tables
from cores import Cores, split
from rounds import Direct, Pace, Runs, entrant

RESULTS = "target/load/results.json"
# A load average that an idle machine stays below.
QUIET = 0.5
SMOKE = Pace(rounds=1, seconds=0.05, warm_up=0, at_least=100, rest=0.1)


def arguments():
    parser = argparse.ArgumentParser(prog="benches/load/run", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each case (5)")
    parser.add_argument(
        "--seconds", type=float, default=1.5, help="measured seconds of a run (1.5)"
    )
    parser.add_argument(
        "--warm-up", type=float, default=0.4, help="seconds before, not measured (0.4)"
    )
    parser.add_argument("--case", action="append", default=[], metavar="NAME",
                        help="only this case; may be repeated")  # fmt: skip
    parser.add_argument("--peer", action="append", default=[], metavar="NAME",
                        help="only this peer beside ours; may be repeated")  # fmt: skip
    parser.add_argument("--ours", action="append", default=[], metavar="NAME=PATH",
                        help="a further build of session-proxy, as a peer; may be repeated")  # fmt: skip
    parser.add_argument("--smoke", action="store_true",
                        help="prove that all answer right in every case; measure and write nothing")  # fmt: skip
    parser.add_argument("--list", action="store_true", help="name cases and proxies and end")
    return parser.parse_args()


def competitors(binary, chosen, builds):
    """Ours first, then its further builds and the peers that were chosen."""
    all_peers = proxies.peers()
    known = [proxy.name for proxy in all_peers]
    if unknown := [name for name in chosen if name not in known]:
        raise ValueError(f"no peer {', '.join(unknown)}; there are {', '.join(known)}")
    wanted = [proxy for proxy in all_peers if not chosen or proxy.name in chosen]
    found = [proxies.Ours(binary)]
    for build in builds:
        name, equals, path = build.partition("=")
        if not equals or name in (*known, Direct.name, *[proxy.name for proxy in found]):
            raise ValueError(f"{build} is not NAME=PATH with a name of its own")
        found.append(proxies.Ours(os.path.abspath(path), name))
    return found + wanted


def present(found, runs):
    """Those that are there; the others are named."""
    there = []
    for proxy in found:
        if why := proxy.missing():
            runs.left("every case", proxy.name, why)
        else:
            there.append(proxy)
    return there


def listing(found):
    for case in cases.CASES:
        print(f"{case.name:14} {case.title}")
    print()
    for proxy in found:
        print(f"{proxy.name:14} {proxy.missing() or proxy.version()}")


def smoke_cases(chosen):
    """The same work for less: ten thousand connections prove no more than a hundred."""
    return [
        replace(case, held=(8, 100)) if case.held else replace(case, rate=min(case.rate, 500))
        for case in chosen
    ]


def measure(chosen, there, runs):
    """All cases, each with its table as soon as it is there."""
    ours, titles = there[0].name, {proxy.name: proxy.title for proxy in (Direct, *there)}
    begin = time.monotonic()
    for case in chosen:
        minutes, seconds = divmod(int(time.monotonic() - begin), 60)
        print(f"\n{minutes:02}:{seconds:02} {case.name}: {case.title}", flush=True)
        runs.case(case, there)
        measured = runs.samples.get(case.name)
        # A smoke test has no figures worth a table.
        if measured and runs.pace is not SMOKE:
            print(tables.plain(*tables.of_case(case, measured, ours, titles)), flush=True)
    return titles


def results(runs, there, titles, command, where):
    pace = runs.pace
    return {
        "ours": there[0].name,
        "titles": titles,
        "samples": runs.samples,
        "left_out": runs.left_out,
        "failures": runs.failures,
        "machine": where,
        "versions": {proxy.name: proxy.version() for proxy in there},
        "pace": f"{pace.rounds} of {pace.seconds:g} s each, {pace.warm_up:g} s of warm-up",
        "command": command,
    }


def smoke_verdict(chosen, there, runs):
    """Says that every competitor answered right in every case that it can do."""
    expected = sum(
        len(case.workers) for case in chosen for proxy in there if not proxy.cannot(case)
    )
    answered = sum(
        entrant(proxy, workers) in runs.samples.get(case.name, {})
        for case in chosen
        for workers in case.workers
        for proxy in there
    )
    print(f"\n{answered} of {expected} pairs of proxy and case answered right", flush=True)
    return answered == expected and not runs.failures


def main():
    asked = arguments()
    binary = os.path.abspath(os.environ.get("SESSION_PROXY_BINARY", "target/release/session-proxy"))
    try:
        chosen = cases.named(asked.case)
        found = competitors(binary, asked.peer, asked.ours)
    except ValueError as mistake:
        sys.exit(f"benches/load/run: {mistake}")
    if asked.list:
        return listing(found)
    pace = SMOKE if asked.smoke else Pace(asked.rounds, asked.seconds, asked.warm_up)
    available = os.sched_getaffinity(0)
    # A smoke test measures nothing, and may run where others work.
    cores = Cores(*[frozenset(available)] * 3) if asked.smoke else split(available)
    runs = Runs(cores, pace)
    there = present(found, runs)
    if not there or there[0] is not found[0]:
        sys.exit(f"benches/load/run: {found[0].missing()}")
    if asked.smoke:
        chosen = smoke_cases(chosen)
    seconds = sum(pace.of_case(case, there) for case in chosen)
    print(f"about {max(1, round(seconds / 60))} min; {cores.told()}", flush=True)
    where = machine.described(cores)
    if not asked.smoke and os.getloadavg()[0] > QUIET:
        print(
            f"others work here, these numbers will not repeat: load average {where['load average']}"
        )
    titles = measure(chosen, there, runs)
    if asked.smoke:
        return 0 if smoke_verdict(chosen, there, runs) else 1

    command = shlex.join(["benches/load/run", *sys.argv[1:]])
    measured = results(runs, there, titles, command, where)
    with open(RESULTS, "w", encoding="utf-8") as file:
        json.dump(measured, file, indent=1)
    verdicts = goals.verdicts(runs.samples, there[0].name, titles)
    if told := [verdict.told() for verdict in verdicts if verdict.measured is not None]:
        print("\n" + tables.plain(report.GOALS, told), flush=True)
    # A part of the cases would overwrite the tables of all.
    if asked.case or asked.peer:
        print(f"\na part only: see {RESULTS}; {report.FOLDER} is as it was")
    else:
        print(f"\nwritten: {report.FOLDER}/: {', '.join(report.write(measured, cases.CASES))}")
    return 1 if runs.failures else 0


if __name__ == "__main__":
    # Asked to end, everything that was started ends too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
