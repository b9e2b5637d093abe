"""Attackers of each kind at once, beside a tenant that behaves; bench/hostile_load.py is longer."""

from __future__ import annotations

import pytest

from tests.security.hostile_load import run_load

P90_MS, SLOWEST_MS = 250.0, 5_000.0
"""Of some fifty requests; bench/hostile_load.py has thousands, and looks at their p99."""
WORKER_MIB = 24.0
"""In seconds, the first of everything still comes; ten minutes grow no more."""
REDIS_MIB = 2.0


@pytest.mark.timing
def test_a_tenant_that_behaves_is_served_rightly_beside_attackers() -> None:
    outcome = run_load(9.0)
    print(outcome.show())  # noqa: T201

    assert set(outcome.good) == {200}
    assert outcome.recorded == outcome.images
    assert not any(kind.endswith("500") for kind in outcome.attacks)
    assert not outcome.failures
    assert outcome.p90_ms <= P90_MS
    assert outcome.p99_ms <= SLOWEST_MS
    growth = outcome.growth_mib()
    assert growth.pop("redis") <= REDIS_MIB
    assert max(growth.values()) <= WORKER_MIB
