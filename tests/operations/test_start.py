"""Starting: one screen that says what runs, or every reason why it does not."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.operations.site import Site, children_of, document, one_account, tenant, write
from tests.running import ACME, ROOT, UPSTREAM_KEY, GatewayProcess, key_of, until
from tests.simulated import SimulatedDashScope

pytestmark = pytest.mark.timing

READY_S = 1.5
SLACK = 4
"""Machines that run tests are slow and shared; bench/restart.py holds the goal itself."""


def test_it_says_in_one_screen_what_it_is_doing(site: Site, vendor: SimulatedDashScope) -> None:
    """Address, workers, store, accounts, tenants and models; names and hosts alone."""
    accounts = [one_account(site.base_url, name=name) for name in ("first", "second")]
    site.write(accounts=accounts, tenants=[tenant("acme", ACME), tenant("b", key_of("b"))])
    with site.start() as gateway:
        gateway.wait_for(r"models +\d+")
        shown = gateway.output[: gateway.output.index("models")]
    host = f"127.0.0.1:{vendor.port}"
    assert f"first ({host}), second ({host})" in shown
    assert "workers   2" in shown
    assert "Redis at 127.0.0.1:" in shown
    assert "tenants   2" in shown
    assert len(shown.splitlines()) < 12
    for secret in (UPSTREAM_KEY, ACME, "redis://"):
        assert secret not in gateway.output


def test_it_refuses_a_file_with_every_fault(tmp_path: Path, vendor: SimulatedDashScope) -> None:
    content = document(vendor.base_url, listen={"port": 99999}, colour="red", usage_log=5)
    path = write(tmp_path / "gateway.yaml", content)
    with GatewayProcess("serve", "--config", str(path)) as gateway:
        assert gateway.ended() == 1
    assert "3 faults" in gateway.output
    for place in ("listen.port", "colour", "usage_log"):
        assert place in gateway.output


@pytest.mark.parametrize("workers", [1, 2])
def test_a_usage_record_that_cannot_be_written_is_a_sentence(site: Site, workers: int) -> None:
    site.write(usage_log="/nowhere/usage.jsonl")
    with GatewayProcess("serve", "--config", str(site.file), "--workers", str(workers)) as gateway:
        assert gateway.ended(15) == 1
    told = "gateway: cannot open /nowhere/usage.jsonl: No such file or directory"
    assert gateway.output.splitlines() == [told]


def test_a_missing_folder_for_pictures_is_a_sentence(site: Site) -> None:
    site.write(uploads={"directory": "/nowhere/pictures"})
    with GatewayProcess("serve", "--config", str(site.file)) as gateway:
        assert gateway.ended(15) == 1
    told = "gateway: cannot open /nowhere/pictures: No such file or directory"
    assert gateway.output.splitlines() == [told]


@pytest.mark.parametrize("command", ["serve", "demo", "simulate"])
def test_a_port_that_is_none_is_a_sentence(site: Site, command: str) -> None:
    site.write()
    config = ("--config", str(site.file)) if command == "serve" else ()
    with GatewayProcess(command, *config, "--port", "99999") as gateway:
        assert gateway.ended(15) == 1
    assert gateway.output.splitlines() == ["--port: expected 0 to 65535"]


def test_a_worker_that_the_system_has_no_process_for_is_tried_again(site: Site) -> None:
    """At the start and later: said once each, and not of the port; signals still end it."""
    site.write(lame_duck_s=0)
    program = """
import os
forks, fork = [], os.fork
def fail_at_times():
    forks.append(1)
    if len(forks) in (2, 4, 5):
        raise BlockingIOError(11, "Resource temporarily unavailable")
    return fork()
os.fork = fail_at_times
"""
    sitecustomize = site.file.parent / "sitecustomize.py"
    sitecustomize.write_text(program)
    arguments = ("serve", "--config", str(site.file), "--workers", "2")
    environment = {"PYTHONPATH": str(site.file.parent)}
    with GatewayProcess(*arguments, environment=environment) as gateway:
        gateway.wait_for("listening on")
        assert gateway.output.count("worker_not_started") == 1
        former = children_of(gateway.pid)
        os.kill(former[0], signal.SIGKILL)

        def is_replaced() -> bool:
            now = children_of(gateway.pid)
            return len(now) == 2 and former[0] not in now

        until(is_replaced)
        gateway.stop()
        assert gateway.ended() == 0
    assert gateway.output.count("worker_not_started") == 2
    assert "cannot listen" not in gateway.output


def broken(fault: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, where a part of each worker does not work."""
    program = f"""
from gateway import sampling
from gateway import cli
def fail(*_, **__): raise {fault}
sampling.Sampler.__init__ = fail
cli.main({list(arguments)!r})
"""
    command = [sys.executable, "-c", program]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=20
    )


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(
    ("fault", "error", "advice"),
    [
        ("ImportError('no moon')", "ImportError: no moon", "Install the gateway again"),
        ("OSError(24, 'Too many open files')", "Too many open files", "Raise the limit"),
        ("PermissionError(13, 'Denied', '/some/file')", "/some/file", "access to /some/file"),
        ("RuntimeError('the key is ' + 'sk-' + 24 * 'x')", "RuntimeError", "defect"),
    ],
)
def test_a_worker_s_last_words_are_a_line_of_its_log(
    site: Site, workers: str, fault: str, error: str, advice: str
) -> None:
    """What failed and what to do, masked like every line; and nobody waits for it for ever."""
    site.write()
    ended = broken(fault, "serve", "--config", str(site.file), "--workers", workers)

    assert (ended.returncode, ended.stdout) == (1, "")
    lines = [json.loads(line) for line in ended.stderr.splitlines()]
    assert 1 <= len(lines) <= int(workers)
    for line in lines:
        assert (line["event"], line["level"]) == ("worker_failed", "critical")
        assert error in line["error"]
        assert advice in line["advice"]
        assert "Traceback" in line["exception"]
    assert "xxxx" not in ended.stderr


def test_it_is_ready_soon(tmp_path: Path, vendor: SimulatedDashScope) -> None:
    path = write(tmp_path / "gateway.yaml", document(vendor.base_url))
    taken = []
    for _ in range(3):
        started = time.perf_counter()
        with GatewayProcess.serving(path):
            taken.append(time.perf_counter() - started)
    assert statistics.median(taken) < READY_S * SLACK
