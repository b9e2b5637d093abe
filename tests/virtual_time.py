"""An event loop whose clock jumps to the next timer: seconds of waiting take no time."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import wraps
from typing import Any, TypeVar

T = TypeVar("T")

STUCK_AFTER_S = 1e6
OUTSIDE_S = 10.0


class _Selector(selectors.DefaultSelector):
    """Instead of waiting, moves the loop's clock on, unless somebody outside is waited for."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout != 0 and self.loop.outside:
            return super().select(OUTSIDE_S)
        if not ready:
            if timeout is None or self.loop.now > STUCK_AFTER_S:
                raise RuntimeError("everybody waits, and nothing will happen")
            self.loop.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """For code that waits for nothing but timers and itself."""

    def __init__(self) -> None:
        self.now = 0.0
        self.outside = 0
        """What is waited for of other threads: it takes no time here."""
        selector = _Selector()
        super().__init__(selector)
        selector.loop = self

    def time(self) -> float:
        return self.now


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end, with tasks left behind cancelled."""
    faults: list[Mapping[str, Any]] = []
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.get_loop().set_exception_handler(lambda _, fault: faults.append(fault))
        result = runner.run(work)
    assert not faults, faults
    return result


def in_virtual_time(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run a test in a loop of its own, in which waiting takes no time."""

    @wraps(test)
    def started(*args: object, **named: object) -> None:
        async def whole() -> None:
            await test(*args, **named)

        run(whole())

    return started
