"""What one connection may take of the server."""

from __future__ import annotations

from msgspec import Struct


class Bounds(Struct, frozen=True, kw_only=True):
    """Times in seconds, sizes in bytes."""

    head_bytes: int = 32 * 1024
    """For a request's line and headers."""
    headers: int = 256
    head_s: float = 20.0
    """For a whole head, and for a new connection to begin one."""
    idle_s: float = 75.0
    """Between an answer and the next request."""
    ahead: int = 16
    """Requests sent before the answer to the first of them."""
    ahead_bytes: int = 64 * 1024
    """Bytes of those, together."""
    framing_bytes: int = 32 * 1024
    """For chunk sizes, extensions and trailers, beyond 16 for each byte of the body."""
    stalled_s: float = 90.0
    """For the client to take what has been written."""
    linger_s: float = 5.0
    """After the last answer, for input that is thrown away: closing would reset a client that still
    sends before it reads the answer. Each MiB restarts it."""
    linger_bytes: int = 64 * 1024 * 1024
    connections: int = 20_000
    """In one worker."""
    unread_bytes: int = 16 * 1024 * 1024
    """In one worker: unfinished heads, and requests sent ahead."""


class Unread:
    """Bytes that a worker's connections hold before they are a request."""

    __slots__ = ("size",)

    def __init__(self) -> None:
        self.size = 0
