"""What checks stand on: processes ended by pid, free ports, a proxy, a small app, a tally."""

import hashlib
import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import traceback


class Tally:
    """Counts checks, each under its name."""

    def __init__(self):
        self.passed = 0
        self.failed = 0

    def check(self, name, deed):
        """Runs `deed`; an exception is a failure and its text the reason."""
        start = time.monotonic()
        try:
            deed()
        except Exception as error:
            self.failed += 1
            print(f"FAIL {name}: {error!r}", flush=True)
            traceback.print_exc()
        else:
            self.passed += 1
            print(f"pass {name} ({time.monotonic() - start:.1f} s)", flush=True)

    def close(self, path):
        """The last line, and the same for whoever sums up."""
        with open(path, "w") as result:
            result.write(f"{self.passed} {self.failed}\n")
        print(f"{self.passed} passed, {self.failed} failed", flush=True)
        return 1 if self.failed else 0


class Bed:
    """A folder and the processes that were started in it; all end with it."""

    def __init__(self, binary):
        self.binary = binary
        self.folder = tempfile.mkdtemp(prefix="session-proxy-")
        os.chmod(self.folder, 0o755)
        self.children = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for child in reversed(self.children):
            end(child)
        shutil.rmtree(self.folder, ignore_errors=True)

    def path(self, name):
        return os.path.join(self.folder, name)

    def write(self, name, text):
        with open(self.path(name), "w") as file:
            file.write(text)
        return self.path(name)

    def start(self, *command, port=None, **options):
        """A child process; returns when `port` accepts connections."""
        log = open(self.path(f"{len(self.children)}-{os.path.basename(command[0])}.log"), "wb")
        options.setdefault("stdout", log)
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT, **options
        )
        self.children.append(child)
        if port is not None:
            until_open(port, child, log.name)
        return child

    def proxy(self, config, *arguments):
        """A proxy with this configuration (JSON is YAML), started and ready."""
        path = self.write(f"proxy-{len(self.children)}.yaml", json.dumps(config))
        command = [self.binary, "run", "--config", path, *arguments]
        log = open(path + ".log", "wb")
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log
        )
        self.children.append(child)
        for line in child.stdout:
            if line == b"ready\n":
                return child
        raise RuntimeError(f"the proxy did not start: {open(path + '.log').read()}")


def end(child):
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(5)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def free_port():
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until_open(port, child=None, log=None, limit=15):
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        if child is not None and child.poll() is not None:
            raise RuntimeError(f"{child.args[0]} ended: {open(log).read()}")
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.02)
    raise RuntimeError(f"nothing listens on port {port}")


class App(http.server.BaseHTTPRequestHandler):
    """Answers with what it got, as JSON."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    # One write per answer head.
    wbufsize = -1

    def answer(self):
        digest = hashlib.sha256()
        length = 0
        for chunk in self.chunks():
            digest.update(chunk)
            length += len(chunk)
        got = {
            "app": self.server.app,
            "method": self.command,
            "target": self.path,
            "version": self.request_version,
            "headers": [[name.lower(), value] for name, value in self.headers.items()],
            "length": length,
            "sha256": digest.hexdigest(),
        }
        body = json.dumps(got).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def chunks(self):
        if "chunked" in self.headers.get("transfer-encoding", ""):
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
        else:
            left = int(self.headers.get("content-length", 0))
            while left:
                chunk = self.rfile.read(min(left, 1 << 16))
                left -= len(chunk)
                yield chunk

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = do_OPTIONS = answer

    def log_message(self, *_):
        pass


def start_app(name):
    """An app in this process; returns its port."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), App)
    server.daemon_threads = True
    server.app = name
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_address[1]
