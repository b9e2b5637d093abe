"""No test passes while a gateway shows a secret, whoever else has read its output."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.running import ROOT

pytestmark = pytest.mark.slow

LEAKS: Final = """
import base64, logging, os, sys
import pytest, structlog
from tests.running import ACME, UPSTREAM_KEY, GatewayProcess, captured_logs

def test_output(): print("the key is", ACME)
def test_errors(): sys.stderr.write(UPSTREAM_KEY)
def test_below_python(): os.write(2, ACME.encode())
def test_base64(): print(base64.b64encode(ACME.encode()))
def test_read_by_the_test(capsys):
    print(ACME)
    assert ACME in capsys.readouterr().out
def test_library_s_log(): logging.getLogger("gateway").warning("no: %s", UPSTREAM_KEY)
def test_log(): structlog.get_logger().warning("no", key=ACME)
def test_collected_log():
    with captured_logs(): structlog.get_logger().warning("no", headers={"authorization": [ACME]})
def test_trace():
    with captured_logs():
        try:
            raise ValueError(UPSTREAM_KEY)
        except ValueError as fault:
            structlog.get_logger().error("defect", exc_info=fault)
def test_process():
    with GatewayProcess("check-config", f"/{ACME}") as gateway:
        assert gateway.ended() == 1
@pytest.fixture
def late():
    yield
    print(ACME)
def test_end(late): pass

def test_nothing(capsys):
    print("sk-gw-acme", "sk-upstream")
    with captured_logs(): structlog.get_logger().warning("no", key=ACME[:12])
"""


def test_a_leak_fails_the_test_that_it_happens_in(tmp_path: Path) -> None:
    """Each way out is watched."""
    (tmp_path / "test_it.py").write_text(LEAKS)
    settings = ("-c", ROOT / "pyproject.toml", "-p", "tests.conftest", "-p", "no:cacheprovider")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *settings, tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    every = set(re.findall(r"def (test_\w+)", LEAKS))
    found = set(re.findall(r"^ERROR .*::(test_\w+) - secrets were shown", run.stdout, re.MULTILINE))
    assert found == every - {"test_nothing"}, run.stdout
    assert f"{len(every)} passed" in run.stdout
