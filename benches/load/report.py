"""The report under docs/benchmarks: tables of Markdown and charts, made from the results alone."""

import contextlib
import os

import chart
import goals
import ratios
import tables

FOLDER = "docs/benchmarks"
PICTURES = {
    "cpu.svg": "CPU time per request of each proxy",
    "latency.svg": "Added p99 latency of each proxy",
}
# Of a rate that was asked for; some requests are always under way at the end.
KEPT = 0.99


def write(results, cases, folder=FOLDER):
    """Writes all files of the report."""
    os.makedirs(folder, exist_ok=True)
    for name in PICTURES:
        # One of another run would not belong to these tables.
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(folder, name))
    files = {"results.md": page(results, cases)} | charts(results)
    for name, text in files.items():
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            file.write(text)
    return sorted(files)


def page(results, cases):
    """The whole page of results."""
    ours, titles, samples = results["ours"], results["titles"], results["samples"]
    parts = ["# Side by side: results", INTRODUCTION]
    parts.append("## Goals of the project\n\n" + goals_table(samples, ours, titles))
    parts.append(pictures(charts(results)))
    parts.append("## Cases\n\n" + CASES)
    for case in cases:
        if runs := samples.get(case.name):
            table = tables.markdown(*tables.of_case(case, runs, ours, titles))
            parts.append(f"### `{case.name}`: {case.title}\n\n{table}")
    parts.append("## Left out\n\n" + left_out(results))
    parts.append("## Machine, versions, commands\n\n" + setting(results))
    return "\n\n".join(part for part in parts if part) + "\n"


INTRODUCTION = """\
Written by `benches/load/run`; [README.md](README.md) says how it is measured, what each proxy is told to do and what
these numbers do not say."""

CASES = """\
Medians over the rounds. "CPU, ours over it" is the CPU time of session-proxy over that of the proxy in the row, taken
within each round, then the median: below 1 session-proxy is cheaper. "Core used" is the proxy's share of one core; where
it is well below 100 %, requests per second say what origin and client could do, not the proxy."""

GOALS = ("measure", "against", "goal", "measured", "")


def goals_table(samples, ours, titles):
    rows = [verdict.told() for verdict in goals.verdicts(samples, ours, titles)]
    note = (
        "User-space instructions per request are counted by `benches/load/instructions`, not here."
    )
    return f"{tables.markdown(GOALS, rows, numbers=False)}\n\n{note}"


def charts(results):
    """The charts for which there are results, by file name."""
    ours, titles, samples = results["ours"], results["titles"], results["samples"]
    files = {}
    if runs := {name: run for name, run in samples.get("get", {}).items() if name != "direct"}:
        rows = [
            chart.Bar(
                tables.title(name, titles),
                (ratios.middle(run, ratios.user_per_request), ratios.middle(run, ratios.system_per_request)),
                name == ours,
            )
            for name, run in runs.items()
        ]  # fmt: skip
        files["cpu.svg"] = chart.bars(
            "CPU time per request",
            "One worker, 64 connections, small GET. socat and TCP mode copy bytes, the others route",
            rows, "{:.1f} µs", ("user", "system"),
        )  # fmt: skip
    if chart_of_latency := latency_chart(samples.get("open", {}), ours, titles):
        files["latency.svg"] = chart_of_latency
    return files


def latency_chart(runs, ours, titles):
    """Added latency of those that kept the rate; the others would only stretch the scale."""
    direct = runs.get("direct")
    rows, slow = [], []
    for name, run in runs.items():
        if not direct or name == "direct":
            continue
        title = tables.title(name, titles)
        if ratios.middle(run, ratios.kept) < KEPT:
            slow.append(title)
        else:
            added = ratios.added(run, direct, ratios.latency("p99"))
            rows.append(chart.Bar(title, (added,), name == ours))
    note = "p99 from the time a request was due, less that without a proxy"
    if slow:
        note += f". Too slow for it: {', '.join(slow)}"
    title = "Latency added at 20,000 requests per second"
    return chart.bars(title, note, rows, "{:.0f} µs") if rows else None


def pictures(files):
    return "\n\n".join(f"![{PICTURES[name]}]({name})" for name in files)


def left_out(results):
    lines = [
        f"- {entry['proxy']}, {entry['case']}: {entry['why']}" for entry in results["left_out"]
    ]
    lines += [
        f"- {entry['proxy']}, {entry['case']}: **failed**: {entry['error']}"
        for entry in results["failures"]
    ]
    return "\n".join(lines) or "Nothing."


def setting(results):
    rows = [[name, value] for name, value in results["machine"].items()]
    rows += [[results["titles"][name], version] for name, version in results["versions"].items()]
    rows.append(["rounds", results["pace"]])
    table = tables.markdown(["", ""], rows, numbers=False)
    return f"{table}\n\n```\n{results['command']}\n```"
