"""A page in a real browser makes an image with openai-node, from an origin of its own."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final
from urllib.parse import urlencode

import pytest
from msgspec.structs import replace

from gateway.config import Cors, Limits
from tests.browser import OPTIONS, chromium
from tests.running import ACME, REQUEST_ID, account, config_for, tenants
from tests.running_fixtures import Start
from tests.simulated import SimulatedDashScope

pytestmark = [pytest.mark.peers, pytest.mark.slow]

HERE: Final = Path(__file__).parent
SDK: Final = HERE.parent / "peers" / "node" / "node_modules" / "openai"


class Site:
    """Where the page is from. It tells the site what it found."""

    def __init__(self) -> None:
        self.found: Any = None
        self.is_found = threading.Event()
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                file = HERE / "page.html" if path == "/" else SDK / path.removeprefix("/openai/")
                if not file.is_file():
                    self.send_error(404)
                    return
                kind = "text/html" if file.suffix == ".html" else "text/javascript"
                self.send_response(200)
                self.send_header("content-type", kind)
                self.end_headers()
                self.wfile.write(file.read_bytes())

            def do_POST(self) -> None:
                site.found = json.loads(self.rfile.read(int(self.headers["content-length"])))
                self.send_response(204)
                self.end_headers()
                site.is_found.set()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.origin = f"http://localhost:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def site() -> Iterator[Site]:
    if not SDK.is_dir():
        pytest.skip("no Node SDK: install node >= 20 and npm; `make test` does the rest")
    site = Site()
    yield site
    site.close()


def visit(url: str, site: Site, profile: Path) -> Any:
    """What the page at this address found."""
    more = [f"--user-data-dir={profile}", "--remote-debugging-port=0"]
    command = [chromium(), *OPTIONS, *more, url]
    # The path of a socket that it makes there has at most 107 characters.
    with TemporaryDirectory(dir="/tmp") as short, (profile / "log").open("wb") as log:
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(profile), "TMPDIR": short}
        browser = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            assert site.is_found.wait(60), (profile / "log").read_text()[-2000:]
        finally:
            browser.kill()
            browser.wait(10)
    return site.found


def test_it_makes_an_image_and_reads_the_headers(
    start: Start, simulator: SimulatedDashScope, site: Site, tmp_path: Path
) -> None:
    limits = Limits(requests_per_minute=10, images_per_minute=20)
    limited = tuple(replace(each, limits=limits) for each in tenants())
    cors = Cors(allow_origins=(site.origin,))
    gateway = start(config_for(account(simulator.base_url), tenants=limited, cors=cors))
    query = urlencode({"base": f"{gateway.url}/v1", "key": ACME})

    found = visit(f"{site.origin}/?{query}", site, tmp_path)

    assert "error" not in found, found
    made, failed = found["made"], found["failed"]
    assert (made["width"], made["height"]) == (512, 512)
    assert REQUEST_ID.fullmatch(made["headers"].pop("x-request-id"))
    assert made["headers"] == {
        "x-ratelimit-remaining-requests": "9",
        "x-ratelimit-limit-images": "20",
        "x-cache": "bypass",
    }
    assert REQUEST_ID.fullmatch(failed.pop("request_id"))
    assert failed == {"class": "NotFoundError", "status": 404, "code": "model_not_found"}
    assert "gpt-image-1" in found["models"]
    assert simulator.state(log=0)["paid"] == {"qwen-image-2.0-pro": 1}


def test_a_page_that_may_not_reads_nothing_and_pays_nothing(
    start: Start, simulator: SimulatedDashScope, site: Site, tmp_path: Path
) -> None:
    cors = Cors(allow_origins=("https://app.example.com",))
    gateway = start(config_for(account(simulator.base_url), cors=cors))
    query = urlencode({"base": f"{gateway.url}/v1", "key": ACME})

    found = visit(f"{site.origin}/?{query}", site, tmp_path)

    assert found == {"error": "Error: Connection error."}
    assert simulator.state(log=0)["paid"] == {}
