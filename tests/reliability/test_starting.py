"""What is refused before anything is served."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.running import GatewayProcess

pytestmark = pytest.mark.slow

ALONE = """\
accounts: [{name: one, base_url: "http://127.0.0.1:1/api/v1", api_key: none}]
tenants: []
"""


def test_more_than_one_worker_needs_redis(tmp_path: Path) -> None:
    """And is told what to do."""
    config = tmp_path / "gateway.yaml"
    config.write_text(ALONE)
    with GatewayProcess("serve", "--config", str(config), "--workers", "2") as gateway:
        assert gateway.ended() == 1
    assert "more than one worker needs Redis" in gateway.output
    assert "Add `redis: {url: redis://HOST:6379/0}`" in gateway.output
    assert "use one worker" in gateway.output
