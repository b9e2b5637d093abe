"""A vendor that keeps account of what it was paid for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.paying.shop import Vendor
from tests.running import HeldClock


@pytest.fixture(scope="session")
def running_vendor() -> Iterator[Vendor]:
    with Vendor() as vendor:
        yield vendor


@pytest.fixture
def vendor(running_vendor: Vendor, clock: HeldClock) -> Vendor:
    """As if just started; its URLs live by the gateway's clock."""
    running_vendor.reset()
    running_vendor.time = lambda: clock.now
    return running_vendor
