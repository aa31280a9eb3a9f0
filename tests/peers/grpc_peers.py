"""gRPC servers and clients without generated code: messages are bytes."""

import concurrent.futures
import os
import signal
import threading
import time

import grpc

SERVICE = "peers.Echo"
# Requests that were cancelled, by what they said.
CANCELLED = {}


def serve(name):
    """A server that says `name`; returns its port."""

    def unary(request, context):
        metadata = dict(context.invocation_metadata())
        context.set_trailing_metadata((("x-end", name), ("x-end-bin", b"\x00\xff")))
        return f"{name}:{metadata.get('x-ask', '')}:".encode() + request

    def refuse(_request, context):
        context.set_trailing_metadata((("grpc-status-details-bin", b"\x08\x09details"),))
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"{name} says: no, 100 % – sorry")

    def stream(request, _context):
        for turn in range(int(request)):
            yield f"{name}:{turn}".encode()

    def gather(requests, _context):
        return str(sum(len(request) for request in requests)).encode()

    def converse(requests, _context):
        for request in requests:
            yield f"{name}:".encode() + request

    def wait(request, context):
        ended = CANCELLED.setdefault(request, threading.Event())
        context.add_callback(ended.set)
        yield str(context.time_remaining()).encode()
        ended.wait(20)

    methods = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Refuse": grpc.unary_unary_rpc_method_handler(refuse),
        "Stream": grpc.unary_stream_rpc_method_handler(stream),
        "Gather": grpc.stream_unary_rpc_method_handler(gather),
        "Converse": grpc.stream_stream_rpc_method_handler(converse),
        "Wait": grpc.unary_stream_rpc_method_handler(wait),
    }
    pool = concurrent.futures.ThreadPoolExecutor(32)
    server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    SERVERS.append(server)
    return port


# Servers end when nobody holds them.
SERVERS = []

PR = ("x-dev-session", "pr-grpc")


def checks(port, proxy):
    """Names and deeds, through the proxy on `port`, whose process id is `proxy`."""
    channel = grpc.insecure_channel(f"127.0.0.1:{port}")
    ways = (("baseline", ()), ("pr-grpc", (PR,)))

    def method(name, kind):
        return getattr(channel, kind)(f"/{SERVICE}/{name}")

    def unary():
        for name, metadata in ways:
            metadata = (*metadata, ("x-ask", "why"))
            got, call = method("Unary", "unary_unary").with_call(b"hi", metadata=metadata, timeout=10)
            assert got == f"{name}:why:hi".encode(), got
            trailers = dict(call.trailing_metadata())
            assert trailers["x-end"] == name and trailers["x-end-bin"] == b"\x00\xff", trailers

    def large():
        message = b"x" * 3_000_000
        got = method("Unary", "unary_unary")(message, metadata=(PR,), timeout=20)
        assert got == b"pr-grpc::" + message, len(got)

    def server_stream():
        for name, metadata in ways:
            got = list(method("Stream", "unary_stream")(b"1000", metadata=metadata, timeout=20))
            assert len(got) == 1000 and got[-1] == f"{name}:999".encode(), got[-1:]

    def burst():
        # What a CPU quota does: the proxy stands still, and then finds many tiny messages at once.
        call = method("Stream", "unary_stream")(b"30000", metadata=(PR,), timeout=40)
        assert next(call) == b"pr-grpc:0"
        os.kill(proxy, signal.SIGSTOP)
        time.sleep(0.5)
        os.kill(proxy, signal.SIGCONT)
        assert sum(1 for _ in call) == 29_999

    def client_stream():
        requests = (b"x" * 1000 for _ in range(1000))
        got = method("Gather", "stream_unary")(requests, metadata=(PR,), timeout=20)
        assert got == b"1000000", got

    def bidi():
        # The next question is asked only when the last is answered: nothing may be held back.
        for name, metadata in ways:
            answered = threading.Semaphore(1)

            def questions(answered=answered):
                for turn in range(50):
                    answered.acquire()
                    yield str(turn).encode()

            got = []
            for answer in method("Converse", "stream_stream")(questions(), metadata=metadata, timeout=20):
                got.append(answer)
                answered.release()
            assert got == [f"{name}:{turn}".encode() for turn in range(50)], got[-1:]

    def status():
        for name, metadata in ways:
            try:
                method("Refuse", "unary_unary")(b"", metadata=metadata, timeout=10)
                raise AssertionError("it did not fail")
            except grpc.RpcError as error:
                assert error.code() == grpc.StatusCode.FAILED_PRECONDITION, error
                assert error.details() == f"{name} says: no, 100 % – sorry", error.details()
                assert dict(error.trailing_metadata())["grpc-status-details-bin"] == b"\x08\x09details"

    def deadline():
        for name, metadata in ways:
            key = f"deadline {name}".encode()
            call = method("Wait", "unary_stream")(key, metadata=metadata, timeout=1.5)
            left = float(next(call))
            # The wire rounds the deadline up; a server without one would say None.
            assert 0.5 < left < 1.6, left
            try:
                next(call)
                raise AssertionError("it did not end")
            except grpc.RpcError as error:
                assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
            assert CANCELLED[key].wait(5), "the server was not told"

    def cancellation():
        for name, metadata in ways:
            key = f"cancel {name}".encode()
            call = method("Wait", "unary_stream")(key, metadata=metadata, timeout=30)
            next(call)
            start = time.monotonic()
            call.cancel()
            assert CANCELLED[key].wait(5), "the server was not told"
            assert time.monotonic() - start < 2

    return (
        ("unary, metadata and trailers", unary),
        ("a message of 3 MB", large),
        ("server streaming", server_stream),
        ("30,000 tiny messages through a proxy that was paused", burst),
        ("client streaming", client_stream),
        ("bidirectional streaming, turn by turn", bidi),
        ("status, message and details", status),
        ("deadlines reach the server and end the call", deadline),
        ("cancellation reaches the server", cancellation),
    )
