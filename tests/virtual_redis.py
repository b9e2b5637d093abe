"""A real Redis as the store of virtual gateways: its answers take no time; its clock is theirs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self, cast

import redis

from gateway.store.redis import RedisStore, Timeouts
from tests.redis_server import RedisServer
from tests.virtual_gateway import NOON, SharedStore
from tests.virtual_time import VirtualLoop

PATIENT = Timeouts(connect_s=10.0, command_s=10.0)


class Remote:
    """A store in a thread with a loop of its own, as seen from a virtual one."""

    def __init__(self, url: str) -> None:
        self.caller: VirtualLoop | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._store = self._run(self._open(url))

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        async def ask(*args: Any) -> Any:
            caller = cast("VirtualLoop", asyncio.get_running_loop())
            asked = asyncio.run_coroutine_threadsafe(getattr(self._store, name)(*args), self._loop)
            caller.outside += 1
            try:
                return await asyncio.wrap_future(asked)
            finally:
                caller.outside -= 1

        return ask

    async def aclose(self) -> None:
        """Gateways come and go: it stays."""

    def close(self) -> None:
        self._run(self._store.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _open(self, url: str) -> RedisStore:
        return RedisStore(url, timeouts=PATIENT, clock_us=self._clock_us)

    def _clock_us(self) -> int:
        now = NOON + (self.caller.now if self.caller else 0.0)
        return round(now * 1e6)

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)


class RedisSharedStore(SharedStore):
    """Usable as a context manager."""

    def __init__(self) -> None:
        super().__init__()
        self._server = RedisServer(args=["--rdbcompression", "no"])
        self._remote = Remote(self._server.url)
        self.inner = cast("Any", self._remote)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._remote.close()
        self._server.close()

    def lose_everything(self) -> None:
        self._server.flush()

    def forget(self) -> None:
        super().forget()
        self._remote.caller = cast("VirtualLoop", asyncio.get_running_loop())

    async def fail_over(self, lost_s: float) -> None:
        """To one that has everything: a real replica is tested elsewhere."""
        await asyncio.sleep(lost_s)
        self.reconnects += 1

    def holds(self, requests: set[str]) -> set[str]:
        with redis.Redis(port=self._server.port) as client:
            dumps = [cast("bytes", client.dump(key) or b"") + key for key in client.scan_iter()]
        return {each for each in requests if any(each.encode() in dump for dump in dumps)}
