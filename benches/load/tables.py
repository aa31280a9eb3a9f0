"""Tables of one case, for the terminal and for the report alike."""

import ratios

CPU = (
    ("CPU µs/request", ratios.cpu_per_request, "{:.2f}"),
    ("user", ratios.user_per_request, "{:.2f}"),
    ("system", ratios.system_per_request, "{:.2f}"),
)
LATENCY = (
    ("p50 µs", ratios.latency("p50"), "{:.0f}"),
    ("p99 µs", ratios.latency("p99"), "{:.0f}"),
    ("p99.9 µs", ratios.latency("p99_9"), "{:.0f}"),
)
SPEED = ("requests/s", ratios.requests_per_second, "{:,.0f}")
BUSY = ("core used", ratios.busy, "{:.0%}")
BYTES = (
    ("GB/s", ratios.gigabytes_per_second, "{:.2f}"),
    ("CPU s/GB", ratios.cpu_per_gigabyte, "{:.3f}"),
)


def of_runs(case, runs, ours, titles):
    """Rows of a case: medians over the rounds, and ours over each peer."""
    own = ratios.cpu_per_gigabyte if case.by_bytes else ratios.cpu_per_request
    columns = (*BYTES, BUSY, *LATENCY) if case.by_bytes else (SPEED, *CPU, BUSY, *LATENCY)
    head = ["proxy", *[name for name, _, _ in columns]]
    with_added = case.rate and "direct" in runs
    if with_added:
        head += ["added p99 µs", "rate kept"]
    head.append("CPU, ours over it")
    rows = []
    for name, samples in runs.items():
        row = [title(name, titles)]
        for column, value, form in columns:
            # Without a proxy there is no CPU time of one; what is watched then is the origin.
            of_proxy = (column, value, form) in CPU or column in ("core used", "CPU s/GB")
            blank = name == "direct" and of_proxy
            row.append("–" if blank else form.format(ratios.middle(samples, value)))
        if with_added:
            row.append(f"{ratios.added(samples, runs['direct'], ratios.latency('p99')):.0f}")
            row.append(f"{ratios.middle(samples, ratios.kept):.0%}")
        compared = name not in ("direct", ours) and ours in runs
        row.append(f"{ratios.ratio(runs[ours], samples, own):.2f}" if compared else "–")
        rows.append(row)
    return head, rows


def of_memory(case, held, titles):
    """Rows of the idle connections."""
    head = ["proxy", *[f"{count:,} connections, MiB" for count in case.held], "KiB per connection"]
    rows = []
    for name, kib in held.items():
        sizes = [mebibytes(kib.get(str(count))) for count in case.held]
        grown = f"{ratios.growth(kib):.1f}" if len(kib) > 1 else "–"
        rows.append([title(name, titles), *sizes, grown])
    return head, rows


def mebibytes(kib):
    return "–" if kib is None else f"{kib / 1024:.1f}"


def of_case(case, runs, ours, titles):
    return of_memory(case, runs, titles) if case.held else of_runs(case, runs, ours, titles)


def title(name, titles):
    """What a competitor is called in front of people: its title, and its workers if not one."""
    proxy, comma, workers = name.partition(", ")
    return titles.get(proxy, proxy) + comma + workers


def plain(head, rows):
    """Aligned columns."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(cells):
        first, *others = (
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(["  " + first, *others])

    return "\n".join(map(line, [head, *rows]))


def markdown(head, rows, numbers=True):
    """A table of Markdown; numbers stand to the right."""
    rule = ["---"] + ["---:" if numbers else "---"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, rule, *rows])
