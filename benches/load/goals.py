"""The goals of the project for these figures, held against what was measured."""

from dataclasses import dataclass

import ratios

# Proxies that read requests, as ours does.
LAYER_7 = ("nginx", "haproxy", "envoy", "pingora")


@dataclass(frozen=True)
class Verdict:
    """One goal and what came of it; `measured` is None where something was not measured."""

    measure: str
    against: str
    goal: float
    unit: str
    measured: float | None
    at_least: bool = False

    @property
    def met(self):
        if self.measured is None:
            return None
        return self.measured >= self.goal if self.at_least else self.measured <= self.goal

    def told(self):
        """The row of a table."""
        sign = "≥" if self.at_least else "≤"
        measured = "not measured" if self.measured is None else f"{self.measured:.2f}{self.unit}"
        word = {True: "met", False: "missed", None: "–"}[self.met]
        return (self.measure, self.against, f"{sign} {self.goal:g}{self.unit}", measured, word)


# Case, measure, value, and the goal of each ratio.
RATIOS = (
    ("get", "CPU per request", ratios.cpu_per_request,
     {"nginx": 0.85, "haproxy": 0.80, "haproxy-tcp": 1.20, "envoy": 0.28, "pingora": 0.45}),
    ("get-1m", "CPU per GB, 1 MiB responses", ratios.cpu_per_gigabyte, {"haproxy": 0.60}),
    ("upload-1m", "CPU per GB, 1 MiB uploads", ratios.cpu_per_gigabyte, {"haproxy": 0.60}),
    ("h2", "CPU per request, HTTP/2 with 10 streams", ratios.cpu_per_request,
     {"envoy": 0.40, "nginx": 0.90}),
)  # fmt: skip


def verdicts(samples, ours, titles):
    """All goals, in the order of the tables."""
    found = []
    for case, measure, value, peers in RATIOS:
        runs = samples.get(case, {})
        for peer, goal in peers.items():
            measured = None
            if ours in runs and peer in runs:
                measured = ratios.ratio(runs[ours], runs[peer], value)
            found.append(Verdict(measure, titles.get(peer, peer), goal, "", measured))
    found += added_latency(samples.get("open", {}), ours)
    found.append(scaling(samples.get("workers", {}), ours))
    held = samples.get("memory", {}).get(ours)
    measured = ratios.growth(held) if held and len(held) > 1 else None
    found.append(Verdict("resident memory per idle connection", "", 6, " KiB", measured))
    return found


def added_latency(runs, ours):
    """Ours alone, and against the best of the others that read requests."""
    measure = "added p99 at 20,000 requests/s"
    value = ratios.latency("p99")
    direct = runs.get("direct")
    adds = {
        name: ratios.added(runs[name], direct, value)
        for name in (ours, *LAYER_7)
        if direct and name in runs
    }
    mine = adds.pop(ours, None)
    found = [Verdict(measure, "no proxy", 150, " µs", mine)]
    if mine is not None and adds:
        best = min(adds, key=adds.get)
        against = f"the best layer-7 peer, {best}"
        found.append(Verdict(measure, against, round(adds[best], 1), " µs", mine))
    return found


def scaling(runs, ours):
    """Requests per CPU second with two workers, over those with one."""
    one, two = runs.get(ours), runs.get(f"{ours}, 2 workers")
    measured = ratios.ratio(one, two, ratios.cpu_per_request) if one and two else None
    return Verdict(
        "requests per CPU second", "two workers over one", 0.9, "", measured, at_least=True
    )
