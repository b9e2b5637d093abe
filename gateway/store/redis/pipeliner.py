"""The way to one Redis server: micro-batches, a watch on its silence, and a breaker (0013).

closed ── a batch fails twice in a row ──▶ open: every call fails at once
▲                                           │ ▲
│                          answers a PING   ▼ │ not answered
└── answered ─────────────────────────── on trial: one batch at a time

A PING goes out four times a second, once a second after a failed trial: a proxy may answer it
without a server.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeAlias, cast

import hiredis
import structlog
from msgspec import Struct
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.exceptions import RedisError, ResponseError

from gateway.store.availability import StoreUnavailable
from gateway.store.redis.dns import DnsProbe

BATCH_MAX = 128
"""Commands per pipeline: some milliseconds of the server's time, far from the time-out."""
BATCHES_AT_ONCE = 2
"""One is answered while the next one is on its way."""
PROBE_EVERY_S = 0.25
PROBE_AGAIN_S = 1.0
LAG_S = 0.01
"""A timer later than this shows that this process was held up, not the server."""
LAGS_MAX = 5

log = structlog.get_logger()

Command = tuple[str | bytes | int, ...]
Reply: TypeAlias = Any
"""Depends on the command; an error reply is a value too."""


PACK = cast("Callable[[Command], bytes]", hiredis.pack_command)
"""hiredis packs nine times as fast as redis-py (15 µs less a script); too narrowly annotated."""


class Timeouts(Struct, frozen=True):
    """How long the server may be silent; every reply restarts the time."""

    connect_s: float = 0.1
    """Including the handshake."""
    command_s: float = 0.05


class Pipeliner:
    """One server. Replies are as Redis gave them, its errors as values."""

    def __init__(
        self, pool: ConnectionPool, timeouts: Timeouts, name: str, names: DnsProbe
    ) -> None:
        self._pool = pool
        self._names = names
        self._timeouts = timeouts
        self._name = name
        self._queue: deque[tuple[Command, asyncio.Future[Reply]]] = deque()
        self._under_way = 0
        self._is_scheduled = False
        self._is_closed = False
        self._tasks: set[asyncio.Task[None]] = set()
        self.reconnects = 0
        """New connections, whether to the same server or another."""
        self.failure: str | None = None
        """Why calls fail at once."""
        self._on_trial: str | None = None
        """Why calls failed, until the first one is answered."""

    def call(self, command: Command) -> asyncio.Future[Reply]:
        """Send a command with the next batch. Raises StoreUnavailable, at once or later."""
        failure = self._why_not()
        if failure is not None:
            raise StoreUnavailable(failure)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Reply] = loop.create_future()
        self._queue.append((command, future))
        if not self._is_scheduled:
            self._is_scheduled = True
            loop.call_soon(self._dispatch)
        return future

    async def reconnect(self) -> None:
        """Look for the server again: this one is not the right one. Raises StoreUnavailable."""
        try:
            await self._pool.disconnect(inuse_connections=False)
        except Exception as error:
            raise self._unavailable(error) from error

    async def aclose(self) -> None:
        self._is_closed = True
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._drop_queue(StoreUnavailable(f"{self._name} is closed"))
        self._names.close()
        await self._pool.aclose()

    # -- batches

    def _dispatch(self) -> None:
        self._is_scheduled = False
        at_once = 1 if self._on_trial else BATCHES_AT_ONCE
        while self._queue and self._under_way < at_once:
            batch: list[tuple[Command, asyncio.Future[Reply]]] = []
            while self._queue and len(batch) < BATCH_MAX:
                command, future = self._queue.popleft()
                if not future.cancelled():
                    batch.append((command, future))
            if batch:
                self._under_way += 1
                self._start(self._deliver(batch))

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work, name=f"{self._name} pipeline")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _deliver(self, batch: Sequence[tuple[Command, asyncio.Future[Reply]]]) -> None:
        commands = [command for command, _ in batch]
        try:
            replies = await self._exchange_or_retry(commands)
        except StoreUnavailable as lost:
            self._open(lost)
            for _, future in batch:
                if not future.done():
                    future.set_exception(StoreUnavailable(str(lost), in_doubt=lost.in_doubt))
                    future.exception()  # its caller may be gone
        else:
            self._passed()
            for (_, future), reply in zip(batch, replies, strict=True):
                if not future.done():
                    future.set_result(reply)
        finally:
            for _, future in batch:
                future.cancel()
            self._under_way -= 1
            self._dispatch()

    async def _exchange_or_retry(self, commands: Sequence[Command]) -> list[Reply]:
        """Once more on a new connection: the old one may have died with a former server."""
        try:
            return await self._exchange(commands)
        except StoreUnavailable as first:
            if self.failure or self._on_trial:
                raise
            try:
                await self.reconnect()
                return await self._exchange(commands)
            except StoreUnavailable as second:
                in_doubt = first.in_doubt or second.in_doubt
                raise StoreUnavailable(str(second), in_doubt=in_doubt) from None

    async def _exchange(self, commands: Sequence[Command]) -> list[Reply]:
        watch = _Watch(self._timeouts.connect_s)
        is_sent = False
        try:
            connection = await self._pool.get_connection()  # type: ignore[no-untyped-call]
            # From now on: its first connecting is over.
            connection.register_connect_callback(self._has_reconnected)
            try:
                packed = b"".join(map(PACK, commands))
                watch.heard(self._timeouts.command_s)
                is_sent = True
                await connection.send_packed_command(packed)
                replies = []
                for _ in commands:
                    replies.append(await _read(connection))
                    watch.heard(self._timeouts.command_s)
                return replies
            except BaseException:
                # Replies that are still to come must not be taken for another command's.
                await connection.disconnect(nowait=True)
                raise
            finally:
                await self._pool.release(connection)
        except asyncio.CancelledError:
            if not watch.is_expired:
                raise
            raise StoreUnavailable(f"{self._name} is silent", in_doubt=is_sent) from None
        except Exception as error:
            raise self._unavailable(error, in_doubt=is_sent) from error
        finally:
            watch.stop()

    def _has_reconnected(self, _: AbstractConnection) -> None:
        self.reconnects += 1

    def _unavailable(self, error: Exception, *, in_doubt: bool = False) -> StoreUnavailable:
        """Any failure of a connection; the breaker logs it once."""
        is_known = isinstance(error, RedisError | OSError)
        what = str(error) if is_known else f"{type(error).__name__}: {error}"
        return StoreUnavailable(f"{self._name}: {what}", in_doubt=in_doubt)

    # -- the breaker

    def _why_not(self) -> str | None:
        if self._is_closed:
            return f"{self._name} is closed"
        return self.failure or (self._on_trial if self._under_way else None)

    def _open(self, why: StoreUnavailable) -> None:
        if self.failure is None and not self._is_closed:
            if self._on_trial is None:
                log.warning("redis_lost", server=self._name, cause=str(why))
            every_s = PROBE_AGAIN_S if self._on_trial else PROBE_EVERY_S
            self.failure, self._on_trial = str(why), None
            self._start(self._probe(every_s))
        self._drop_queue(why)

    def _passed(self) -> None:
        if self._on_trial is not None:
            self._on_trial = None
            log.warning("redis_found", server=self._name)

    def _drop_queue(self, why: StoreUnavailable) -> None:
        while self._queue:
            _, future = self._queue.popleft()
            if not future.done():
                future.set_exception(StoreUnavailable(str(why)))
                future.exception()

    async def _probe(self, every_s: float) -> None:
        while self.failure:
            await asyncio.sleep(every_s)
            if not await self._names.are_found(self._timeouts.connect_s):
                continue
            with contextlib.suppress(StoreUnavailable):
                await self.reconnect()
                reply = (await self._exchange([("PING",)]))[0]
                if isinstance(reply, ResponseError):
                    continue
                self.failure, self._on_trial = None, self.failure


class _Watch:
    """Cancels the task that made it once the server has been silent for too long."""

    def __init__(self, allowed_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._lags = 0
        self.is_expired = False
        self.heard(allowed_s)
        self._arm(self._silent_until)

    def heard(self, allowed_s: float) -> None:
        """The server has answered, or the question was just sent."""
        self._silent_until = self._loop.time() + allowed_s
        self._allowed_s = allowed_s

    def stop(self) -> None:
        self._timer.cancel()
        if self.is_expired and self._task:
            self._task.uncancel()

    def _arm(self, due: float) -> None:
        self._due = due
        self._timer = self._loop.call_at(due, self._check)

    def _check(self) -> None:
        now = self._loop.time()
        if now - self._due > LAG_S and self._lags < LAGS_MAX:
            # This process slept; the reply may lie in the socket.
            self._lags += 1
            self._arm(now + self._allowed_s)
        elif now < self._silent_until:
            self._arm(self._silent_until)
        elif self._task:
            self.is_expired = True
            self._task.cancel()


async def _read(connection: AbstractConnection) -> Reply:
    try:
        return await connection.read_response(disconnect_on_error=False)
    except ResponseError as error:
        return error.with_traceback(None)  # which holds the frames that hold the error
