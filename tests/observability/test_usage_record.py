"""The usage record on a full disk, after a crash, and rotated under a running gateway."""

from __future__ import annotations

import gzip
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.tenants.usage_log import UsageLog, read
from tests.observability.full_disk import LINE
from tests.operations.site import document, write
from tests.running import ACME, ROOT, GatewayProcess
from tests.simulated import SimulatedDashScope

pytestmark = pytest.mark.slow


def usage(file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gateway", "usage", "--config", str(file), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def total(file: Path) -> Any:
    return json.loads(usage(file, "--by", "tenant", "--json").stdout)["total"]["generations"]


def test_a_line_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    """A disk that takes a part of a line says nothing; the kernel's limit on a file does as it."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    record = tmp_path / "usage.jsonl"

    command = [sys.executable, "-m", "tests.observability.full_disk", str(record)]
    written = subprocess.run(command, capture_output=True, check=True, cwd=ROOT)

    lost = int(written.stdout)
    assert lost > 0
    assert len([*read(record, None, pytest.fail)]) == 20 - lost + 1


def test_a_torn_line_is_ended_left_out_and_told_of(tmp_path: Path) -> None:
    record = tmp_path / "usage.jsonl"
    for _ in range(2):
        log = UsageLog(record)
        log.append(LINE)
        log.close()
        with record.open("ab") as torn:
            torn.write(b'{"at":"2026-11')
    file = write(tmp_path / "gateway.yaml", document("http://127.0.0.1:9", usage_log=str(record)))

    summed = usage(file, "--by", "tenant", "--json")

    assert summed.returncode == 0
    assert json.loads(summed.stdout)["total"]["generations"] == 2
    assert summed.stderr == f"{record}: left out what is no record: line 2, 4.\n"


def test_a_running_gateway_s_record_can_be_rotated(
    simulator: SimulatedDashScope, tmp_path: Path
) -> None:
    """By renaming it, without a word to the gateway; the command reads what has become of it."""
    record, rotated = tmp_path / "usage.jsonl", tmp_path / "usage.jsonl.1"
    content = document(simulator.base_url, usage_log=str(record))
    file = write(tmp_path / "gateway.yaml", content)
    with GatewayProcess.serving(file) as gateway:

        def generate() -> None:
            answer = httpx.post(
                f"{gateway.url}/v1/images/generations",
                json={"prompt": "a fox", "model": "qwen-image-2.0"},
                headers={"authorization": f"Bearer {ACME}"},
                trust_env=False,
                timeout=20,
            )
            assert answer.status_code == 200

        generate()
        record.rename(rotated)
        assert total(file) == 1
        generate()
        assert total(file) == 2
        (tmp_path / "usage.jsonl.1.gz").write_bytes(gzip.compress(rotated.read_bytes()))
        assert total(file) == 2
        rotated.unlink()
        (tmp_path / "usage.jsonl.bak").write_bytes(record.read_bytes())
        assert total(file) == 2
        record.unlink()
        generate()
        assert len([*read(record, None, pytest.fail)]) == 1


def test_an_unknown_tenant_and_a_missing_record_are_sentences(tmp_path: Path) -> None:
    record = tmp_path / "usage.jsonl"
    file = write(tmp_path / "gateway.yaml", document("http://127.0.0.1:9", usage_log=str(record)))

    missing = usage(file, "--by", "tenant")
    log = UsageLog(record)
    log.append(LINE)
    log.close()
    unknown = usage(file, "acne", "--since", "2026-11-01")

    assert (missing.returncode, missing.stdout) == (1, "")
    assert missing.stderr.startswith(f"There is no {record}")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "No tenant named 'acne'" in unknown.stderr
