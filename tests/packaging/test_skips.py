"""In CI a skipped test fails the run: what is not run is not known to work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

pytestmark = pytest.mark.slow

ROOT: Final = Path(__file__).parents[2]
SKIPPED: Final = "import pytest\n\ndef test_one(): pytest.skip('no such program')\n"
SKIPPED_WHOLE: Final = "import pytest\n\npytest.importorskip('no_such_module')\n"
NOT_SKIPPED: Final = (
    "import pytest\n\n@pytest.mark.xfail\ndef test_one(): assert False\n\ndef test_two(): pass\n"
)


@pytest.mark.parametrize(
    ("content", "workers"),
    [(SKIPPED, "0"), (SKIPPED_WHOLE, "2")],
    ids=["one test", "a file, in two processes"],
)
def test_a_skip_fails_the_run_in_ci_and_is_named(
    content: str, workers: str, tmp_path: Path
) -> None:
    run = run_pytest(tmp_path, content, workers, ci="true")

    assert run.returncode == 1, run.stdout
    assert "skipped, which fails the run in CI" in run.stdout
    assert "no such program" in run.stdout or "no_such_module" in run.stdout


def test_an_expected_failure_is_no_skip(tmp_path: Path) -> None:
    run = run_pytest(tmp_path, NOT_SKIPPED, "0", ci="true")

    assert run.returncode == 0, run.stdout


def test_elsewhere_a_skip_is_only_reported(tmp_path: Path) -> None:
    run = run_pytest(tmp_path, SKIPPED, "0", ci="")

    assert run.returncode == 0, run.stdout
    assert "no such program" in run.stdout


def run_pytest(
    folder: Path, content: str, workers: str, *, ci: str
) -> subprocess.CompletedProcess[str]:
    """Under the suite's own settings and hooks."""
    (folder / "test_it.py").write_text(content)
    settings = ("-c", ROOT / "pyproject.toml", "-p", "tests.conftest", "-p", "no:cacheprovider")
    return subprocess.run(
        [sys.executable, "-m", "pytest", *settings, "--numprocesses", workers, folder],
        cwd=ROOT,
        env={**os.environ, "CI": ci},
        capture_output=True,
        text=True,
        check=False,
    )
