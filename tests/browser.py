"""Debian's Chromium without a screen, for pages that a person would open."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import pytest

OPTIONS: Final = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--no-proxy-server"),
)


class Visit(NamedTuple):
    """What became of a page."""

    dom: str
    console: list[str]
    hosts: set[str]
    """That the page asked for anything; what Chromium asks for itself is not in it."""


def chromium() -> str:
    """Its path; without one the test is skipped."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("chromium was not found: install chromium")
    return found


def visit(url: str, folder: Path) -> Visit:
    """Open a page, let its scripts run to their end, and read it."""
    net_log = folder / "net.json"
    run = subprocess.run(
        [
            *(chromium(), *OPTIONS, f"--user-data-dir={folder / 'profile'}"),
            *("--enable-logging=stderr", "--log-level=0"),
            *(f"--log-net-log={net_log}", "--virtual-time-budget=20000", "--dump-dom", url),
        ],
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    console = [line for line in run.stderr.splitlines() if ":CONSOLE" in line]
    asked = json.loads(net_log.read_text())["events"]
    parameters = [event.get("params", {}) for event in asked]
    own = [each["url"] for each in parameters if each.get("initiator") == origin(url)]
    return Visit(run.stdout, console, {urlsplit(each).netloc for each in own})


def origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"
