"""What is measured: each case is one kind of work, the same for every proxy."""

from dataclasses import dataclass

KIB, MIB = 1024, 1024 * 1024


@dataclass(frozen=True)
class Case:
    """One kind of work. `front` and `upstream` are HTTP versions before and behind the proxy."""

    name: str
    title: str
    client: tuple = ()
    protocol: str = "h1"
    front: str = "h1"
    upstream: str = "h1"
    workers: tuple = (1,)
    # Requests per second of an open loop; a closed loop without.
    rate: int = 0
    # Sizes of what goes up and comes down, where they and not the requests are the measure.
    by_bytes: bool = False
    # Also measured without any proxy.
    direct: bool = False
    # Connections that are held idle, instead of a load.
    held: tuple = ()


def h2(name, title, protocol="h2", upstream="h1"):
    streams = ("--connections", "8", "--streams", "10")
    return Case(name, title, streams, protocol, front="h2", upstream=upstream)


SMALL_MANY = ("--connections", "64")
LARGE_FEW = ("--connections", "16")

CASES = (
    Case("get", "GET, 100 bytes, 64 connections", SMALL_MANY, direct=True),
    Case("get-10k", "GET, 10 KiB, 64 connections",
         (*SMALL_MANY, "--path", "/10k", "--answer", str(10 * KIB))),
    Case("get-1m", "GET, 1 MiB, 16 connections",
         (*LARGE_FEW, "--path", "/1m", "--answer", str(MIB)), by_bytes=True),
    Case("upload-1m", "upload of 1 MiB, 16 connections",
         (*LARGE_FEW, "--upload", str(MIB)), by_bytes=True),
    Case("post-1k", "POST, 1 KiB, 64 connections", (*SMALL_MANY, "--upload", str(KIB))),
    Case("connect", "a new connection for each GET, 64 at once", SMALL_MANY, "h1-close"),
    h2("h2", "HTTP/2, 8 connections with 10 streams, origin HTTP/1.1"),
    h2("h2-h2", "HTTP/2, 8 connections with 10 streams, origin HTTP/2", upstream="h2"),
    h2("grpc", "gRPC unary, 8 connections with 10 streams", "grpc", upstream="h2"),
    Case("workers", "GET, 100 bytes, 64 connections, one worker and two", SMALL_MANY, workers=(1, 2)),
    Case("open", "GET, 100 bytes, 20,000 requests per second whatever happens, 64 connections",
         SMALL_MANY, rate=20_000, direct=True),
    Case("sender", "as mirrord's sender hands over HTTP/1.1: GET and chunked POST without a body in turn",
         SMALL_MANY, "sender"),
    Case("sender-h2", "as mirrord's sender hands over HTTP/2: one stream per connection, origin HTTP/1.1",
         SMALL_MANY, "sender-h2", front="h2"),
    Case("sender-mixed", "as mirrord's sender puts HTTP/2 on HTTP/1.1: whole URL as target, no Host",
         SMALL_MANY, "sender-mixed"),
    Case("memory", "resident memory with connections that asked once and are idle", held=(64, 10_000)),
)  # fmt: skip


def named(names):
    """The cases with these names, all without any; an unknown name is a mistake."""
    known = {case.name: case for case in CASES}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"no case {', '.join(unknown)}; there are {', '.join(known)}")
    return [known[name] for name in names] or list(CASES)
