"""What holds for the repository as a whole: its files, its locks, its Makefile, its scripts."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT: Final = Path(__file__).parents[2]
INDEX_HOST: Final = re.compile(r"(pypi|pythonhosted|npmjs|debian)[.](org|com)")
MACHINE_PATH: Final = re.compile(rf"{re.escape(str(ROOT))}/|/(home|Users)/\w|/roo[t]/")


def test_no_file_names_a_package_index_or_a_path_of_a_machine() -> None:
    found = [
        f"{name}:{number}: {line.strip()}"
        for name in repository_files()
        for number, line in enumerate(text_of(name).splitlines(), 1)
        if INDEX_HOST.search(line) or MACHINE_PATH.search(line)
    ]
    assert found == []


def test_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    listed = re.findall(r"^  make (\S+)  +\S", make("help"), re.MULTILINE)

    assert sorted(listed) == sorted(re.findall(r"^\.PHONY: (\S+)$", makefile, re.MULTILINE))


def test_the_locks_hold_what_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = project["dependency-groups"]

    assert unmet(project["project"]["dependencies"], pins("requirements.lock")) == []
    for group in groups:
        assert unmet(groups[group], pins(f"requirements-{group}.lock")) == []


def test_the_development_lock_pins_what_production_runs() -> None:
    assert pins("requirements.lock").items() <= pins("requirements-dev.lock").items()
    assert pins("requirements-build.lock").items() <= pins("requirements-dev.lock").items()


@pytest.mark.parametrize(
    ("stub", "sentence"),
    [
        (
            'case "$*" in *print*) echo 3.9;; *) exit 1;; esac',
            "is Python 3.9: 3.11 or later is needed",
        ),
        ("exit 127", "does not run: name a Python 3.11 or later"),
        (
            'case "$*" in *ensurepip*) exit 1;; *) echo 3.11;; esac',
            "on Debian install python3.11-venv",
        ),
    ],
)
def test_a_python_that_will_not_do_is_named_in_one_sentence(
    stub: str, sentence: str, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{stub}\n")
    python.chmod(0o755)
    script = ROOT / "scripts" / "make-venv"

    run = subprocess.run(
        [script, tmp_path / "venv", python], capture_output=True, text=True, check=False
    )

    assert run.returncode == 1
    assert run.stderr.count("\n") == 1
    assert sentence in run.stderr


def repository_files() -> list[str]:
    """Those that git has or would add."""
    try:
        run = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is not a git checkout, or git is not installed")
    return run.stdout.splitlines()


def text_of(name: str) -> str:
    path = ROOT / name
    return path.read_bytes().decode(errors="replace") if path.is_file() else ""


def make(target: str) -> str:
    run = subprocess.run(["make", target], cwd=ROOT, capture_output=True, text=True, check=True)
    return run.stdout


def pins(lock: str) -> dict[str, str]:
    text = (ROOT / lock).read_text()
    return dict(re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;]+)", text, re.MULTILINE))


def unmet(requirements: list[Any], locked: dict[str, str]) -> list[str]:
    parsed = map(Requirement, requirements)
    return [
        str(one)
        for one in parsed
        if not one.specifier.contains(locked.get(canonicalize_name(one.name), "0"))
    ]
