"""What the author of a configuration file would try."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.running import (
    ROOT,
)

pytestmark = pytest.mark.slow


LAUGHS: Final = "\n".join(
    ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(LAUGHS, id="a billion laughs"),
        pytest.param("a: &a [*a]", id="a list of itself"),
        pytest.param("a: &a {b: *a}", id="a mapping of itself"),
        pytest.param("[" * 50_000, id="deep"),
        pytest.param("!!python/object/apply:os.system ['id']", id="a call"),
        pytest.param("accounts: !!python/name:os.system", id="a name"),
        pytest.param("accounts: 2026-99-99", id="no day"),
        pytest.param("accounts: !!binary '*'", id="no base 64"),
        pytest.param("accounts: !!int ''", id="no number"),
        pytest.param("accounts: {? [a, b] : c}", id="a list as a key"),
        pytest.param("accounts: {? {a: b} : c}", id="a mapping as a key"),
        pytest.param("\x00", id="NUL"),
        pytest.param("tenants: ${" + "A" * 100_000, id="a reference without end"),
    ],
)
def test_a_file_that_is_a_trap_ends_in_a_fault(tmp_path: Path, text: str) -> None:
    """Named, with status 1, in bounded time and memory, and without a stack trace."""
    path = tmp_path / "gateway.yaml"
    path.write_text(text)
    limit = 400 * 1024 * 1024
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "check-config", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=15,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert done.returncode == 1
    assert "fault" in done.stderr
    assert "Traceback" not in done.stderr
