"""Whether the store is there, and who else is working on it."""

from typing import Protocol

from msgspec import Struct


class StoreUnavailable(Exception):
    """No answer in time, or none that can be trusted. Every operation can be repeated."""

    def __init__(self, message: str, *, in_doubt: bool = False, advice: str = "") -> None:
        super().__init__(message)
        self.advice = advice
        """What to do where it is set up wrong rather than away; names no host."""
        self.in_doubt = in_doubt
        """Whether the operation may have happened, or may still."""


class Share(Struct, frozen=True):
    """This worker's place among the live ones."""

    index: int = 0
    workers: int = 1

    def of(self, limit: int) -> int:
        """Shares of all workers add up to exactly `limit`."""
        return limit * (self.index + 1) // self.workers - limit * self.index // self.workers


class Membership(Protocol):
    """Who else works on this store, and whether it is still the same one."""

    async def heartbeat(self, worker: str, ttl_ms: int) -> Share:
        """Count `worker` as alive for `ttl_ms`; 0 signs it off. Raises StoreUnavailable."""

    @property
    def reconnects(self) -> int:
        """How often the store was found again; each time it may lack what was written last."""


class Closable(Protocol):
    async def ping(self) -> None:
        """Raises StoreUnavailable."""

    async def probe(self) -> None:
        """Run a script of each kind, leave nothing. Raises StoreUnavailable with advice."""

    async def aclose(self) -> None:
        """Release connections; the store is not used afterwards."""
