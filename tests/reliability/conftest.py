"""What the suite needs of the machine, and how its figures are shown."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterator

import pytest

OPEN_FILES = 8192
"""Thousands of connections at once; the gateways inherit it."""


@pytest.fixture(scope="session", autouse=True)
def open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < OPEN_FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(OPEN_FILES, hard), hard))


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Iterator[Callable[[str], None]]:
    """Says what was measured: seen with `pytest -s`, and when a test fails."""
    lines: list[str] = []
    yield lines.append
    for line in lines:
        sys.stdout.write(f"\n{request.node.name}: {line}")
