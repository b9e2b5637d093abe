"""Whether the store is there, and who else is working on it."""

from typing import Protocol

from msgspec import Struct


class StoreUnavailable(Exception):
    """The backend gave no answer in time, or none that can be trusted.

    Every operation names what it is about, and can be repeated.
    """

    def __init__(self, message: str, *, in_doubt: bool = False, advice: str = "") -> None:
        super().__init__(message)
        self.advice = advice
        """What to do, where it is set up wrong rather than away; it names no host."""
        self.in_doubt = in_doubt
        """Whether the operation may have happened, or may still."""


class Share(Struct, frozen=True):
    """This worker's place among the live ones."""

    index: int = 0
    workers: int = 1

    def of(self, limit: int) -> int:
        """Split `limit` so that the parts of all workers add up to exactly `limit`."""
        return limit * (self.index + 1) // self.workers - limit * self.index // self.workers


class Membership(Protocol):
    """Who else is working on this store, and whether it is still the same one."""

    async def heartbeat(self, worker: str, ttl_ms: int) -> Share:
        """Count `worker` as alive for `ttl_ms`; 0 signs it off. Raises StoreUnavailable."""

    @property
    def reconnects(self) -> int:
        """How often the way to the store was found again.

        Each time it may lead to another server, which lacks what was written last.
        """


class Closable(Protocol):
    """The life of a backend."""

    async def ping(self) -> None:
        """Raises StoreUnavailable."""

    async def probe(self) -> None:
        """Run a script of each kind, and leave nothing behind.

        Raises:
            StoreUnavailable: the message says what is set up wrong, and what to do.
        """

    async def aclose(self) -> None:
        """Release connections; the store is not used afterwards."""
