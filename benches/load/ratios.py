"""Numbers out of runs: medians over rounds, and ratios within a round."""

from statistics import median


def cpu_per_request(run):
    """Microseconds of the proxy's CPU time."""
    return run["cpu"]["proxy"]["seconds"] / run["answered"] * 1e6


def user_per_request(run):
    return run["cpu"]["proxy"]["user"] / run["answered"] * 1e6


def system_per_request(run):
    return run["cpu"]["proxy"]["system"] / run["answered"] * 1e6


def cpu_per_gigabyte(run):
    """Seconds of the proxy's CPU time; a gigabyte is 10^9 bytes."""
    return run["cpu"]["proxy"]["seconds"] / (run["bytes"] / 1e9)


def gigabytes_per_second(run):
    return run["bytes"] / 1e9 / run["seconds"]


def requests_per_second(run):
    return run["answered"] / run["seconds"]


def busy(run):
    """The share of one core that the proxy used."""
    return run["cpu"]["proxy"]["seconds"] / run["seconds"]


def kept(run):
    """The share of requests that were sent at all, of those that were due."""
    return run["requests"] / (run["requests"] + run["unsent"])


def latency(which):
    """Microseconds, at one of p50, p99, p99_9 and max."""
    return lambda run: run["latency_us"][which]


def middle(runs, value):
    return median(value(run) for run in runs)


def ratio(ours, theirs, value):
    """Ours over theirs: within each round, where both saw the same machine; then the median."""
    return median(value(mine) / value(other) for mine, other in zip(ours, theirs, strict=True))


def added(runs, direct, value):
    """What a proxy adds to what is there without one, round by round; then the median."""
    return median(value(run) - value(without) for run, without in zip(runs, direct, strict=True))


def growth(held):
    """KiB per further idle connection, between the smallest and the largest number held."""
    few, many = min(held, key=int), max(held, key=int)
    return (held[many] - held[few]) / (int(many) - int(few))
