"""Real clients, servers and proxies on both sides of session-proxy."""

import asyncio
import hashlib
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time

import grpc_peers
import websockets
from bed import Bed, Tally, free_port, start_app

BIG = 64 * 1024 * 1024


def run(*command, **options):
    """What a command prints, when it succeeds within a minute."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, **options
    )
    if done.returncode != 0:
        text = (done.stdout + done.stderr).decode(errors="replace")
        raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}: {text[-2000:]}")
    return done.stdout.decode(errors="replace")


def curl(*arguments):
    return run("curl", "-sS", "--max-time", "50", *arguments)


def curl_json(*arguments):
    return json.loads(curl(*arguments))


def equal(got, wanted):
    if got != wanted:
        raise AssertionError(f"got {got!r}, wanted {wanted!r}")


def fields(got, name):
    return [value for field, value in got["headers"] if field == name]


class World:
    """All peers and one proxy between them."""

    def __init__(self, bed):
        self.bed = bed
        self.baseline, self.pr = start_app("baseline"), start_app("pr-42")
        self.http, self.https, self.grpc, self.tcp = (free_port() for _ in range(4))
        self.nginx, self.nginx_front, self.haproxy = (free_port() for _ in range(3))
        self.node, self.socat, self.websocket = (free_port() for _ in range(3))
        self.grpc_baseline = grpc_peers.serve("baseline")
        self.grpc_pr = grpc_peers.serve("pr-grpc")
        self.payload = bed.path("payload")
        with open(self.payload, "wb") as file:
            for _ in range(BIG // (1 << 20)):
                file.write(os.urandom(1 << 20))
        with open(self.payload, "rb") as file:
            self.digest = hashlib.file_digest(file, "sha256").hexdigest()
        self.certificate = bed.path("tls.crt")
        self.key = bed.path("tls.key")
        run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
            "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
            "-keyout", self.key, "-out", self.certificate)  # fmt: skip
        at = "127.0.0.1:{}".format
        http_listener = {"baseline": at(self.baseline), "protocol": "http"}
        self.proxy = bed.proxy({
            "listeners": [
                {"name": "http", "address": at(self.http), **http_listener},
                {"name": "https", "address": at(self.https), "protocol": "https",
                 "baseline": at(self.baseline),
                 "tls": {"certificate": self.certificate, "privateKey": self.key}},
                {"name": "grpc", "address": at(self.grpc), "protocol": "http",
                 "baseline": at(self.grpc_baseline)},
                {"name": "tcp", "address": at(self.tcp), "protocol": "tcp", "target": at(self.socat)},
            ],
            "sessions": {
                "pr-42": {"endpoints": [at(self.pr)], "protocol": "h1"},
                "pr-nginx": {"endpoints": [at(self.nginx)], "protocol": "h1"},
                "pr-node": at(self.node),
                "pr-ws": at(self.websocket),
                "pr-grpc": at(self.grpc_pr),
            },
            "admin": "off",
        })  # fmt: skip
        self.url = f"http://127.0.0.1:{self.http}"


TAGGED = ("-H", "x-dev-session: pr-42")
NGINX = ("-H", "x-dev-session: pr-nginx")


def curl_checks(world, tally):
    url = world.url

    def plain():
        got = curl_json("-H", "accept: a/b", f"{url}/a/../b//c%2e/?q=1", "--path-as-is")
        equal(got["app"], "baseline")
        equal(got["target"], "/a/../b//c%2e/?q=1")
        equal(fields(got, "accept"), ["a/b"])
        equal(fields(got, "host"), [f"127.0.0.1:{world.http}"])
        equal(len(fields(got, "via")), 1)

    def tagged():
        got = curl_json(*TAGGED, url)
        equal(got["app"], "pr-42")
        equal(fields(got, "x-dev-session"), ["pr-42"])
        equal(fields(got, "via"), [])
        equal(curl_json("-H", "baggage: a=1, dev-session=pr-42;p", url)["app"], "pr-42")

    def unknown():
        head = curl("-i", "-H", "x-dev-session: pr-404", url)
        assert "x-dev-session-route: baseline; reason=unknown-session" in head, head

    def http_10():
        equal(curl_json("--http1.0", *TAGGED, url)["app"], "pr-42")

    def http_2():
        format = ("-o", "/dev/null", "-w", "%{http_version} %{http_code}")
        equal(curl("--http2-prior-knowledge", *TAGGED, *format, url), "2 200")
        got = curl_json("--http2-prior-knowledge", *TAGGED, f"{url}/two")
        equal((got["app"], got["target"]), ("pr-42", "/two"))
        equal(fields(got, "host"), [f"127.0.0.1:{world.http}"])

    def expect():
        upload = ("-T", world.payload, "--expect100-timeout", "20")
        start = time.monotonic()
        got = curl_json(*TAGGED, "-H", "Expect: 100-continue", *upload, f"{url}/up")
        equal((got["length"], got["sha256"]), (BIG, world.digest))
        assert time.monotonic() - start < 15, "nobody said 100"

    def chunked():
        got = curl_json(*TAGGED, "-H", "transfer-encoding: chunked", "-T", world.payload, f"{url}/up")
        equal((got["length"], got["sha256"]), (BIG, world.digest))

    def https():
        tls = ("--cacert", world.certificate, f"https://localhost:{world.https}/tls")
        equal(curl_json(*TAGGED, *tls)["app"], "pr-42")
        written = curl("-o", "/dev/null", "-w", "%{http_version}", *TAGGED, *tls)
        equal(written, "2")
        equal(curl_json("--http1.1", *tls)["app"], "baseline")

    tally.check("curl: an untagged request reaches the baseline as it was sent", plain)
    tally.check("curl: header and baggage reach the session", tagged)
    tally.check("curl: an unknown session reaches the baseline and says so", unknown)
    tally.check("curl: HTTP/1.0", http_10)
    tally.check("curl: HTTP/2 with prior knowledge to an HTTP/1 app", http_2)
    tally.check("curl: 64 MiB after Expect: 100-continue", expect)
    tally.check("curl: 64 MiB chunked", chunked)
    tally.check("curl: HTTPS, HTTP/2 by ALPN", https)


def nghttp_checks(world, tally):
    def trailers():
        # gRPC servers end every answer with trailers; an unknown method is one without a body.
        text = run("nghttp", "-v", "-H", "content-type: application/grpc", "-H", "te: trailers",
                   "-H", ":method: POST", "--trailer", "x-end: 1", "-d", "/dev/null",
                   f"http://127.0.0.1:{world.grpc}/no.Such/Method")  # fmt: skip
        assert "grpc-status: 12" in text, text

    def h2load(*arguments):
        text = run("h2load", *arguments)
        found = re.search(r"requests: (\d+) total.* (\d+) succeeded, (\d+) failed", text)
        total, succeeded, failed = map(int, found.groups())
        equal((succeeded, failed), (total, 0))
        assert f"status codes: {total} 2xx" in text, text

    def streams():
        h2load("-n", "20000", "-c", "8", "-m", "64", "-H", "x-dev-session: pr-nginx",
               f"{world.url}/small")  # fmt: skip

    def h1():
        h2load("--h1", "-n", "20000", "-c", "32", "-H", "x-dev-session: pr-nginx",
               f"{world.url}/small")  # fmt: skip

    tally.check("nghttp: request trailers and a trailers-only answer", trailers)
    tally.check("h2load: 20,000 requests in 8 x 64 streams", streams)
    tally.check("h2load: 20,000 requests on 32 HTTP/1 connections", h1)


def nginx_checks(world, tally):
    url = world.url

    def host():
        got = curl("--http2-prior-knowledge", *NGINX, "-H", "host: orders.local", f"{url}/host")
        equal(got, "orders.local\n")
        # nginx answers 400 to HTTP/1.1 without Host.
        equal(curl(*NGINX, f"{url}/host"), "127.0.0.1\n")

    def keep_alive():
        connection = http.client.HTTPConnection("127.0.0.1", world.http, timeout=10)
        seen = set()
        for _ in range(50):
            connection.request("GET", "/connection", headers={"x-dev-session": "pr-nginx"})
            seen.add(connection.getresponse().read())
        connection.close()
        equal(len(seen), 1)

    def download():
        for version in ("--http1.1", "--http2-prior-knowledge"):
            out = world.bed.path("download")
            curl(version, *NGINX, "-o", out, f"{url}/payload")
            with open(out, "rb") as file:
                equal(hashlib.file_digest(file, "sha256").hexdigest(), world.digest)

    def upload():
        for version in ("--http1.1", "--http2-prior-knowledge"):
            got = curl_json(version, *NGINX, "-T", world.payload, f"{url}/app/up")
            equal((got["length"], got["sha256"]), (BIG, world.digest))

    def ranges():
        got = curl_bytes(*NGINX, "-r", "1000-1999", f"{url}/payload")
        with open(world.payload, "rb") as file:
            file.seek(1000)
            equal(got, file.read(1000))

    def front():
        at = f"http://127.0.0.1:{world.nginx_front}"
        for _ in range(100):
            equal(curl_json(*TAGGED, f"{at}/x")["app"], "pr-42")
            equal(curl_json(f"{at}/x")["app"], "baseline")
        got = curl_json(*TAGGED, "-T", world.payload, f"{at}/up")
        equal(got["sha256"], world.digest)

    tally.check("nginx behind: Host is right from HTTP/2 and HTTP/1", host)
    tally.check("nginx behind: 50 requests on one connection", keep_alive)
    tally.check("nginx behind: download of 64 MiB by HTTP/1 and HTTP/2", download)
    tally.check("nginx behind: upload of 64 MiB by HTTP/1 and HTTP/2", upload)
    tally.check("nginx behind: a range", ranges)
    tally.check("nginx in front: 200 requests and an upload", front)


def curl_bytes(*arguments):
    command = ("curl", "-sS", "--max-time", "50", *arguments)
    return subprocess.run(command, check=True, capture_output=True, timeout=60).stdout


def start_nginx(world):
    config = world.bed.write("nginx.conf", f"""
        worker_processes 1; daemon off; pid {world.bed.path('nginx.pid')};
        error_log {world.bed.path('nginx.error')};
        events {{ worker_connections 1024; }}
        http {{
            access_log off; client_max_body_size 0; keepalive_requests 1000000;
            client_body_temp_path {world.bed.path('body')}; proxy_temp_path {world.bed.path('proxy')};
            fastcgi_temp_path {world.bed.path('f')}; uwsgi_temp_path {world.bed.path('u')};
            scgi_temp_path {world.bed.path('s')};
            upstream session_proxy {{ server 127.0.0.1:{world.http}; keepalive 4; }}
            server {{
                listen 127.0.0.1:{world.nginx};
                location = /small {{ return 200 "small\\n"; }}
                location = /host {{ return 200 "$host\\n"; }}
                location = /connection {{ return 200 "$connection\\n"; }}
                location = /payload {{ root {world.bed.folder}; }}
                location /app/ {{ proxy_pass http://127.0.0.1:{world.baseline}; }}
            }}
            server {{
                listen 127.0.0.1:{world.nginx_front};
                location / {{
                    proxy_pass http://session_proxy; proxy_http_version 1.1;
                    proxy_set_header Connection ""; proxy_request_buffering off;
                }}
            }}
        }}
    """)  # fmt: skip
    # `user` stays unset; as root the workers need to read the folder.
    world.bed.start("nginx", "-e", world.bed.path("nginx.start"), "-c", config, port=world.nginx)


def haproxy_checks(world, tally):
    config = world.bed.write("haproxy.cfg", f"""
global
    maxconn 1000
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
    http-reuse always
frontend front
    bind 127.0.0.1:{world.haproxy}
    default_backend proxy
backend proxy
    server one 127.0.0.1:{world.http}
""")

    def reuse():
        world.bed.start("haproxy", "-db", "-f", config, port=world.haproxy)
        at = f"http://127.0.0.1:{world.haproxy}/small"
        text = run("h2load", "--h1", "-n", "5000", "-c", "16", "-H", "x-dev-session: pr-nginx", at)
        assert "status codes: 5000 2xx" in text, text
        connection = http.client.HTTPConnection("127.0.0.1", world.haproxy, timeout=10)
        for turn in range(200):
            session = ("pr-42", "baseline")[turn % 2]
            connection.request("POST", "/", b"x" * turn, {"x-dev-session": session})
            got = json.loads(connection.getresponse().read())
            equal((got["app"], got["length"]), (session, turn))
        connection.close()

    tally.check("haproxy in front: connections shared between sessions", reuse)


def websocket_checks(world, tally):
    async def echo(connection):
        async for message in connection:
            await connection.send(message)

    async def talk():
        async with websockets.serve(echo, "127.0.0.1", world.websocket, max_size=None):
            session = {"x-dev-session": "pr-ws"}
            uri = f"ws://127.0.0.1:{world.http}/echo"
            async with websockets.connect(uri, additional_headers=session, max_size=None) as client:
                for message in ("hello", b"\x00\xff" * 10, "x" * 3_000_000, ""):
                    await client.send(message)
                    equal(await asyncio.wait_for(client.recv(), 10), message)
                pong = await client.ping()
                await asyncio.wait_for(pong, 10)
            equal(client.close_code, 1000)

    tally.check("websockets: text, bytes, 3 MB, ping and close", lambda: asyncio.run(talk()))


NODE_APP = """
const server = require('http').createServer((request, response) => {
  let length = 0;
  request.on('data', chunk => length += chunk.length);
  request.on('end', () => response.end(String(length)));
});
server.listen(Number(process.argv[2]), '127.0.0.1');
"""


def node_checks(world, tally):
    def boundary():
        script = world.bed.write("app.js", NODE_APP)
        world.bed.start("node", script, str(world.node), port=world.node)
        wrong = []

        def client(gap):
            # Each on a client connection of its own, so that no pause is cut short by another.
            connection = http.client.HTTPConnection("127.0.0.1", world.http, timeout=10)
            for turn in range(3):
                connection.request("POST", "/", b"x" * 100, {"x-dev-session": "pr-node"})
                response = connection.getresponse()
                text = response.read()
                if (response.status, text) != (200, b"100"):
                    wrong.append((gap, turn, response.status, text))
                time.sleep(gap)

        # Around Node's 5 s, and around our own 2 s.
        gaps = [4.9 + n * 0.01 for n in range(21)] + [1.9 + n * 0.01 for n in range(21)]
        clients = [threading.Thread(target=client, args=(gap,)) for gap in gaps]
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join()
        equal(wrong, [])

    tally.check("node: POSTs around its 5 s of keep-alive lose none", boundary)


def socat_checks(world, tally):
    def through():
        world.bed.start("socat", f"TCP-LISTEN:{world.socat},bind=127.0.0.1,fork,reuseaddr",
                        "EXEC:sha256sum", port=world.socat)  # fmt: skip
        with open(world.payload, "rb") as file, socket.create_connection(("127.0.0.1", world.tcp), 30) as client:
            client.sendfile(file)
            client.shutdown(socket.SHUT_WR)
            got = b""
            while chunk := client.recv(4096):
                got += chunk
        equal(got.split()[0].decode(), world.digest)

    tally.check("socat: 64 MiB through a tcp listener, answered after the half-close", through)


def grpc_checks(world, tally):
    for name, deed in grpc_peers.checks(world.grpc, world.proxy.pid):
        tally.check(f"grpc: {name}", deed)


GROUPS = {
    "curl": curl_checks,
    "nghttp": nghttp_checks,
    "nginx": nginx_checks,
    "haproxy": haproxy_checks,
    "grpc": grpc_checks,
    "websocket": websocket_checks,
    "node": node_checks,
    "socat": socat_checks,
}


def main():
    binary, *wanted = sys.argv[1:]
    tally = Tally()
    with Bed(binary) as bed:
        world = World(bed)
        tally.check("nginx: starts", lambda: start_nginx(world))
        for name, checks in GROUPS.items():
            if not wanted or name in wanted:
                checks(world, tally)
    code = tally.close("target/peers.result")
    # gRPC's threads do not end by themselves.
    sys.stdout.flush()
    os._exit(code)


main()
