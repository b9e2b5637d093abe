"""Starting: one screen that says what runs, or every reason why it does not."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import pytest

from tests.operations.site import Site, document, one_account, tenant, write
from tests.running import ACME, UPSTREAM_KEY, GatewayProcess, key_of
from tests.simulated import SimulatedDashScope

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
def test_a_worker_that_cannot_start_ends_it(site: Site, workers: int) -> None:
    """Instead of waiting for it for ever."""
    site.write(usage_log="/nowhere/usage.jsonl")
    with GatewayProcess("serve", "--config", str(site.file), "--workers", str(workers)) as gateway:
        assert gateway.ended(15) == 1
    assert "/nowhere/usage.jsonl" in gateway.output


def test_it_is_ready_soon(tmp_path: Path, vendor: SimulatedDashScope) -> None:
    path = write(tmp_path / "gateway.yaml", document(vendor.base_url))
    taken = []
    for _ in range(3):
        started = time.perf_counter()
        with GatewayProcess.serving(path):
            taken.append(time.perf_counter() - started)
    assert statistics.median(taken) < READY_S * SLACK
