"""The gateway in a thread as an attacker finds it, and a vendor that has turned against it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.security.hostile import HostileVendor, Listener


@pytest.fixture
def vendor() -> Iterator[HostileVendor]:
    with HostileVendor() as hostile:
        yield hostile


@pytest.fixture
def inside() -> Iterator[Listener]:
    """A service that only the gateway's own network can reach."""
    with Listener() as listener:
        yield listener
