"""A paid result for whose answer there is no memory just then."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from gateway.config import Images, with_catalogue
from gateway.delivery import Delivery
from gateway.domain.errors import ServiceUnavailable
from tests.running import account, captured_logs, config_for
from tests.virtual_gateway import Call, Site, Vendor, made
from tests.virtual_time import in_virtual_time


@pytest.fixture(autouse=True)
def full(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    async def refuse(*_: Any, **__: Any) -> None:
        raise ServiceUnavailable("no memory")

    monkeypatch.setattr(Delivery, "open", refuse)
    with captured_logs():
        yield


async def at_once(call: Call) -> httpx.Response:
    return await made(call, 1.0)


@in_virtual_time
async def test_it_is_kept_for_the_same_request_again() -> None:
    """A plain repeat, as well as an SDK's: it pays nothing."""
    images = Images(allowed_hosts=(".aliyuncs.com",))
    config = with_catalogue(config_for(account("http://127.0.0.1:9/api/v1"), images=images))
    async with Site(config, Vendor(at_once)) as site:
        for headers in ([], [], [("x-stainless-retry-count", "1")]):
            visit = site.ask(prompt="a fox", response_format="b64_json", headers=headers)
            await visit
            assert visit.status == 503
        assert site.vendor.paid == 1
