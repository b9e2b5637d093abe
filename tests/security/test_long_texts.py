"""What others write is cut before anything looks at it: nobody's text stops a worker."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import structlog

from gateway.observability.log_writer import log_writer
from gateway.observability.logs import configure_logs
from tests.operations.site import document, tenant, write
from tests.running import ACME, GatewayProcess
from tests.security.hostile import HostileVendor, result

pytestmark = pytest.mark.slow

LONG: Final = "https://" + ":" * 900_000
"""Within the largest reply that is read. Where masking is quadratic, it takes hours."""
LONGEST_LINE: Final = 64 * 1024
STALL_S: Final = 1.0


@contextmanager
def probing(url: str) -> Iterator[list[float]]:
    """Ask for /healthz again and again meanwhile; how long each took."""
    took: list[float] = []
    ended = threading.Event()

    def probe() -> None:
        with httpx.Client(trust_env=False, timeout=30) as http:
            while not (took and ended.wait(0.01)):
                started = time.monotonic()
                http.get(f"{url}/healthz")
                took.append(time.monotonic() - started)

    thread = threading.Thread(target=probe)
    thread.start()
    try:
        yield took
    finally:
        ended.set()
        thread.join(60)


def ask(
    gateway: GatewayProcess, prompt: str, headers: Mapping[str, str] | None = None
) -> httpx.Response:
    """One request for an image."""
    return httpx.post(
        f"{gateway.url}/v1/images/generations",
        headers={"authorization": f"Bearer {ACME}", **(headers or {})},
        json={"prompt": prompt, "model": "qwen-image-2.0"},
        timeout=30,
        trust_env=False,
    )


def lines_of(gateway: GatewayProcess) -> list[str]:
    return [line for line in gateway.output.splitlines() if line.startswith("{")]


ANSWERS: Final[dict[str, tuple[int, Any]]] = {
    "id": (200, {**result("http://127.0.0.1:9/x.png"), "request_id": LONG}),
    "id of a failure": (500, {"code": "InternalError", "message": "no", "request_id": LONG}),
    "code": (500, {"code": LONG, "message": "no", "request_id": "r"}),
    "message": (500, {"code": "InternalError", "message": LONG, "request_id": "r"}),
    "all of them": (500, dict.fromkeys(("code", "message", "request_id"), LONG[:300_000])),
    "page": (503, LONG.encode()),
    "url": (200, result("http://127.0.0.1:9/" + ":" * 900_000)),
}  # fmt: skip


@pytest.mark.parametrize("which", ANSWERS)
def test_a_vendor_s_long_text_stops_nobody(
    which: str, vendor: HostileVendor, tmp_path: Path
) -> None:
    status, body = ANSWERS[which]
    vendor.answers(body, status=status)
    file = write(tmp_path / "gateway.yaml", document(vendor.base_url))
    with GatewayProcess.serving(file) as gateway, probing(gateway.url) as took:
        answer = ask(gateway, "a fox")
        gateway.wait_for(r'"event":"request|"status":')
        lines = lines_of(gateway)

    assert answer.elapsed.total_seconds() < 10
    assert max(took) < STALL_S
    assert lines
    assert max(map(len, lines)) < LONGEST_LINE


def test_a_logged_prompt_stops_nobody(vendor: HostileVendor, tmp_path: Path) -> None:
    """Nor do twenty of them at once, all over their tenant's limit."""
    vendor.answers({"code": "DataInspectionFailed", "message": "no", "request_id": "r"}, status=400)
    limited = tenant("acme", ACME, log_prompts=True, limits={"requests_per_minute": 1})
    content = document(vendor.base_url, tenants=[limited])
    file = write(tmp_path / "gateway.yaml", content)
    with GatewayProcess.serving(file) as gateway, probing(gateway.url) as took:
        for _ in range(20):
            ask(gateway, "https://" + ":" * 31_000)
        gateway.wait_for(r'"prompt":"https')
        lines = lines_of(gateway)

    assert max(took) < STALL_S
    assert max(map(len, lines)) < LONGEST_LINE


def test_a_long_cache_control_stops_nobody_and_pays_nothing(
    vendor: HostileVendor, tmp_path: Path
) -> None:
    """A line of 31 KB stopped a worker for four seconds, past every limit."""
    file = write(tmp_path / "gateway.yaml", document(vendor.base_url))
    hostile = "a=" + " " * 31_000 + '"'
    with GatewayProcess.serving(file) as gateway, probing(gateway.url) as took:
        answers = [
            ask(gateway, "a fox", headers={"cache-control": value})
            for value in (hostile, "only-if-cached" + ", x" * 400)
        ]

    assert [answer.status_code for answer in answers] == [400, 400]
    assert {answer.json()["error"]["code"] for answer in answers} == {"invalid_cache_control"}
    assert max(took) < STALL_S
    assert vendor.asked == []


@pytest.mark.parametrize("json_lines", [True, False])
def test_every_value_of_a_line_is_cut(json_lines: bool, capfd: pytest.CaptureFixture[str]) -> None:
    """Inside of lists and mappings, too; and it says how much is missing."""
    configure_logs(json_lines=json_lines)
    long = "x" * 200_000
    structlog.get_logger().info(
        "odd", text=long, parts=[long] * 3, named={long: long}, many=list(range(100_000))
    )
    log_writer.flush()
    structlog.reset_defaults()
    line = capfd.readouterr().err

    assert len(line) < LONGEST_LINE
    assert "… (191808 more)" in line or "\\u2026 (191808 more)" in line
    if json_lines:
        assert json.loads(line)["event"] == "odd"
