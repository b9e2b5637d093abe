"""A request leaves nothing to the garbage collector, which would stop the loop for milliseconds.

An object that holds itself, by whatever way round, is freed by the collector alone: an error in the
frame that raised it, a callback in what it calls.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable
from types import FrameType, FunctionType, MethodType
from typing import Any

import httpx
import pytest

from gateway.config import Limits, Redis, Tenant
from gateway.config.decode import Secret
from tests.pictures import picture
from tests.running import LIMITED, Client, account, config_for, tenants
from tests.running_fixtures import Start
from tests.simulated import SimulatedDashScope

TIMES = 8
NOBODY = "sk-nobody-00000000"
Ask = Callable[[Client, int], httpx.Response]


def edit(client: Client, number: int) -> httpx.Response:
    return client.ask(
        "POST",
        "/v1/images/edits",
        data={"prompt": f"edit {number}", "model": "qwen-image-edit-plus"},
        files={"image": ("a.png", picture("PNG"), "image/png")},
    )


KINDS: dict[str, tuple[int, Ask]] = {
    "miss": (200, lambda client, n: client.generate(f"fox {n}", seed=n)),
    "hit": (200, lambda client, _: client.generate("fox", seed=1)),
    "b64_json": (200, lambda client, n: client.generate(f"ox {n}", response_format="b64_json")),
    "two calls": (200, lambda client, n: client.generate(f"elk {n}", model="qwen-image", n=2)),
    "stream": (200, lambda client, n: client.generate(f"bee {n}", stream=True)),
    "edit": (200, edit),
    "refused": (429, lambda client, n: client.generate(f"cat {n}", key=LIMITED)),
    "invalid": (400, lambda client, _: client.generate("fox", n=99)),
    "no key": (401, lambda client, _: client.generate("fox", key=NOBODY)),
    "no path": (404, lambda client, _: client.ask("POST", "/v1/images/nowhere")),
}


def left(kind: Callable[[int], httpx.Response], status: int) -> dict[str, int]:
    """What of the gateway's own each request leaves, which only the collector frees.

    What is there less often is not a request's, but a lost connection's error.
    """
    gc.collect()
    gc.disable()
    try:
        for number in range(TIMES):
            answer = kind(number)
            assert answer.status_code == status, answer.text
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found = Counter(filter(None, map(ours, gc.garbage)))
        return {name: count for name, count in found.items() if count >= TIMES}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def ours(found: Any) -> str | None:
    """What it is, if it is the gateway's."""
    match found:
        case FrameType():
            module, name = found.f_globals.get("__name__", ""), found.f_code.co_qualname
        case FunctionType() | MethodType():
            module, name = found.__module__, found.__qualname__
        case _:
            module, name = type(found).__module__, type(found).__qualname__
    is_ours = module.startswith("gateway.") and not module.startswith("gateway.simulator")
    return f"{module}.{name}" if is_ours else None


@pytest.mark.parametrize("store", ["in-process", "redis"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_request_leaves_no_garbage(
    kind: str,
    store: str,
    start: Start,
    simulator: SimulatedDashScope,
    request: pytest.FixtureRequest,
) -> None:
    redis = Redis(url=Secret(request.getfixturevalue("redis_url"))) if store == "redis" else None
    acme, limited, _ = tenants()
    none = Tenant(name="limited", keys=limited.keys, limits=Limits(images_per_day=0))
    client = start(config_for(account(simulator.base_url), tenants=(acme, none), redis=redis))
    status, ask = KINDS[kind]
    ask(client, TIMES)  # what is made once may be in a circle
    assert left(lambda number: ask(client, number), status) == {}
