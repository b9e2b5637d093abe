"""What happened: counters since the last reset, and the last thousand generation calls."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
from litestar.types import Scope
from msgspec import Struct

from gateway.simulator.wire import Cut

KEPT_CALLS = 1000
KEPT_BODY_BYTES = 32 * 1024
REDACTED = "[redacted]"


class Call(Struct, kw_only=True):
    """One generation call. Times in Unix seconds; `took_s` on the monotonic clock."""

    at: float
    path: str
    request_id: str
    raw_headers: Any
    """As the server left them; the authorisation is redacted as they are read, by `as_json`."""
    raw_body: bytes = b""
    model: str = ""
    account: str = ""
    status: int | None = None
    """Absent while under way, and when the connection was cut."""
    outcome: str = "in flight"
    """`generated`, `submitted`, an error code, or the kind of fault met."""
    inputs: list[dict[str, Any]] = []
    """Of an edit: type, bytes and SHA-256 of each picture that came with the call, or its URL."""
    images: int = 0
    took_s: float = 0.0
    client_gone: bool = False
    """The client had hung up by the time there was an answer."""

    def as_json(self) -> dict[str, Any]:
        """For the control API: body decoded, authorisation redacted."""
        shown = {name: getattr(self, name) for name in self.__struct_fields__ if name[:4] != "raw_"}
        return shown | {"headers": _redacted(self.raw_headers), "body": _readable(self.raw_body)}


class Journal:
    """Counts, in one event loop, so without locks."""

    def __init__(self) -> None:
        self._under_way: set[asyncio.Task[Any] | None] = set()
        self.clear()

    def clear(self) -> None:
        """Starts again from nothing; calls under way are cut, and come to nothing."""
        former, self._under_way = self._under_way, set()
        for task in former:
            if task is not None:
                task.cancel()
        self.calls: Counter[str] = Counter()
        self.paid: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.downloads: Counter[str] = Counter()
        self.authorised_downloads = 0
        self.clients_gone = 0
        self.peak_in_flight = 0
        self.log: deque[Call] = deque(maxlen=KEPT_CALLS)

    @property
    def in_flight(self) -> int:
        return len(self._under_way)

    @contextmanager
    def call(self, scope: Scope, request_id: str, now: float) -> Iterator[Call]:
        """One that has arrived, until its answer is made. Raises Cut when cleared meanwhile."""
        call = Call(at=now, path=scope["path"], request_id=request_id, raw_headers=scope["headers"])
        task, under_way = asyncio.current_task(), self._under_way
        under_way.add(task)
        self.log.append(call)
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        try:
            yield call
        except asyncio.CancelledError:
            if task is None or under_way is self._under_way:
                raise  # the server ends
            task.uncancel()
            raise Cut from None
        finally:
            under_way.discard(task)
            if under_way is self._under_way:
                self.clients_gone += call.client_gone

    def as_json(self, last: int) -> dict[str, Any]:
        """Counters, and the `last` calls, oldest first."""
        names = ("calls", "paid", "refused", "faults", "downloads")
        plain = ("authorised_downloads", "clients_gone", "in_flight", "peak_in_flight")
        log = list(self.log)[-last:] if last else []
        return {
            **{name: dict(getattr(self, name)) for name in names},
            **{name: getattr(self, name) for name in plain},
            "log": [call.as_json() for call in log],
        }


def _redacted(headers: list[tuple[bytes, bytes]]) -> dict[str, str]:
    return {
        name.decode("latin-1"): REDACTED if name == b"authorization" else value.decode("latin-1")
        for name, value in headers
    }


def _readable(body: bytes) -> object:
    """The JSON received; text when it is none, and only its start when it is long."""
    if len(body) < KEPT_BODY_BYTES:
        try:
            return msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            pass
    return body.decode("utf-8", "replace")
