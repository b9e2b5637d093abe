"""A vendor that takes its time, and a site before it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.operations.site import Site
from tests.simulated import SimulatedDashScope


@pytest.fixture
def vendor() -> Iterator[SimulatedDashScope]:
    with SimulatedDashScope(render="plain") as simulator:
        yield simulator


@pytest.fixture
def site(tmp_path: Path, vendor: SimulatedDashScope, redis_url: str) -> Site:
    """Two workers that share a Redis, once started."""
    return Site(tmp_path, vendor.base_url, redis_url)
