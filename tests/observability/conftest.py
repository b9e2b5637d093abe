"""One run of the whole for every test that looks at what Prometheus has of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.observability.scraping import Run, has_prometheus, loaded

NEEDS_PROMETHEUS = "promtool was not found: install prometheus"


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Twelve seconds of load, a worker killed in the middle."""
    if not has_prometheus():
        pytest.skip(NEEDS_PROMETHEUS)
    with loaded(tmp_path_factory.mktemp("run"), seconds=12) as what_is_left:
        yield what_is_left


@pytest.fixture(scope="session")
def promtool() -> str:
    if not has_prometheus():
        pytest.skip(NEEDS_PROMETHEUS)
    return "promtool"
