"""Results that nobody measured, with numbers that are easy to check by hand."""


def run(cpu, *, requests=1000, p99=100.0, answer=100, seconds=1.0, unsent=0):
    """A run in which each request took so many microseconds of CPU time."""
    spent = cpu * requests / 1e6
    return {
        "requests": requests,
        "answered": requests,
        "errors": 0,
        "unsent": unsent,
        "seconds": seconds,
        "bytes": requests * answer,
        "latency_us": {"p50": p99 / 2, "p99": p99, "p99_9": p99 * 2, "max": p99 * 3},
        "cpu": {"proxy": {"seconds": spent, "user": spent / 4, "system": spent * 3 / 4}},
    }


def results(samples):
    names = ("direct", "session-proxy", "nginx", "haproxy", "envoy")
    return {
        "ours": "session-proxy",
        "titles": {name: name.title() for name in names},
        "samples": samples,
        "left_out": [{"case": "h2", "proxy": "socat", "why": "passes bytes on"}],
        "failures": [{"case": "get", "proxy": "envoy", "error": "status 503"}],
        "machine": {"processor": "none", "commit": "0123456789ab"},
        "versions": {"nginx": "nginx/1.22.1"},
        "pace": "3 of 1 s each",
        "command": "benches/load/run --rounds 3",
    }
