"""How a test shows what it measured."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import pytest

Figure = Callable[[str], None]


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Iterator[Figure]:
    """Says what was measured: seen with `pytest -s`, and when a test fails."""
    lines: list[str] = []
    yield lines.append
    for line in lines:
        sys.stdout.write(f"\n{request.node.name}: {line}")
