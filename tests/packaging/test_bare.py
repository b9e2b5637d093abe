"""`scripts/bare` runs a command as on a machine with nothing but Debian's base, make and Python."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

import pytest

pytestmark = pytest.mark.slow

BARE: Final = Path(__file__).parents[2] / "scripts" / "bare"
BEYOND: Final = (
    "git redis-server nginx prometheus promtool node npm java gcc docker podman pip curl"
)


def test_what_debian_s_base_lacks_is_out_of_reach() -> None:
    script = 'for name in "$@"; do command -v "$name"; done; true'

    assert bare("sh", "-c", script, "sh", *BEYOND.split()) == ""


@pytest.mark.parametrize("command", [("make", "--version"), ("python3", "-c", "print(1)")])
def test_make_and_python_are_there(command: tuple[str, ...]) -> None:
    assert bare(*command) != ""


def test_an_environment_that_is_made_in_it_works_after_it(tmp_path: Path) -> None:
    bare("python3", "-m", "venv", "--without-pip", str(tmp_path / "made"))

    python = tmp_path / "made" / "bin" / "python"
    assert subprocess.run([python, "-c", ""], check=False).returncode == 0


def test_the_command_s_status_is_its_own_and_its_folder_goes() -> None:
    done = subprocess.run(
        [BARE, "sh", "-c", "echo $PATH; exit 3"], capture_output=True, text=True, check=False
    )

    assert done.returncode == 3
    assert not Path(done.stdout.strip()).exists()


def bare(*command: str) -> str:
    return subprocess.run([BARE, *command], capture_output=True, text=True, check=True).stdout
