"""The page at /docs: off unless it is wanted, and all of it from the gateway itself."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.browser import visit
from tests.running import ROOT, Client, account, config_for
from tests.running_fixtures import Start
from tests.simulated import SimulatedDashScope


@pytest.fixture
def shown(start: Start, simulator: SimulatedDashScope) -> Client:
    return start(config_for(account(simulator.base_url), docs=True))


@pytest.mark.parametrize("path", ["/docs", "/docs/swagger-ui-bundle.js"])
def test_by_itself_there_is_none(path: str, gateway: Client) -> None:
    assert gateway.ask("GET", path, key=None).status_code == 404


def test_the_page_and_its_files_need_no_key_and_no_other_host(shown: Client) -> None:
    page = shown.ask("GET", "/docs", key=None)
    files = re.findall(r'(?:src|href)="(/[^"]+)"', page.text)

    assert page.headers["content-type"].startswith("text/html")
    assert "//" not in page.text.replace("<!doctype", "")
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; ")
    assert not re.search(r"https?:|\*|unsafe-eval", policy)
    assert len(files) == 3
    for path in files:
        answer = shown.ask("GET", path, key=None)
        assert answer.status_code == 200
        kind = "text/css" if path.endswith(".css") else "text/javascript"
        assert answer.headers["content-type"].startswith(kind)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert shown.ask("HEAD", path, key=None).status_code == 200


def test_its_files_are_those_that_were_published() -> None:
    script = ROOT / "scripts" / "renew-swagger-ui"
    subprocess.run([sys.executable, script, "--check"], check=True)


@pytest.mark.slow
def test_a_browser_shows_every_operation_and_asks_nobody_else(
    shown: Client, tmp_path: Path
) -> None:
    paths = shown.ask("GET", "/openapi.json", key=None).json()["paths"]
    opened = paths["/v1/images/generations"]["post"]["operationId"]
    page = visit(f"{shown.url}/docs#/default/{opened}", tmp_path)

    for path in paths:
        assert f'data-path="{path}"' in page.dom
    assert "Authorize" in page.dom
    assert "Execute" in page.dom
    assert "a fox in the snow" in page.dom
    assert [line for line in page.console if "Deprecated" not in line] == []
    assert page.hosts == {urlsplit(shown.url).netloc}
