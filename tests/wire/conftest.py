"""One simulator and one gateway per worker, reached over bare sockets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from gateway.server.bounds import Bounds
from tests.running import Client, RunningGateway
from tests.wire.talking import Dial, Line


@pytest.fixture
def dial(gateway: Client) -> Iterator[Dial]:
    """Opens a connection to the gateway."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(Line(gateway.url))


@pytest.fixture
def line(dial: Dial) -> Line:
    """A connection to the gateway."""
    return dial()


@pytest.fixture
def bounds(running_gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has the connections that are opened from now on held to other bounds."""

    def hold_to(**changes: float) -> None:
        monkeypatch.setattr(running_gateway, "bounds", Bounds(**changes))  # type: ignore[arg-type]

    return hold_to
