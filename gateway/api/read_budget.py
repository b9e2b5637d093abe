"""What bodies may take before their requests are admitted."""

from __future__ import annotations

from collections import Counter
from types import TracebackType
from typing import Self

from gateway.config import Reading
from gateway.domain.errors import RateLimited, ServiceUnavailable

RETRY_AFTER_S = 1.0


class ReadBudget:
    """Counts the bodies of a worker that are read, or wait to be parsed."""

    def __init__(self, limits: Reading) -> None:
        self._limits = limits
        self._bytes: Counter[str] = Counter()
        self._unfinished: Counter[str] = Counter()
        self._all_bytes = 0
        self.timeout_s = limits.body_timeout_s

    def begin(self, tenant: str) -> BodyReading:
        """A context in which a body of the tenant is read; given back at its end."""
        return BodyReading(self, tenant)

    def wait(self, tenant: str) -> None:
        """Count an incomplete body. Raises RateLimited if the tenant has too many."""
        if self._unfinished[tenant] >= self._limits.tenant_requests:
            message = (
                f"{self._limits.tenant_requests} requests of yours have not sent their whole body. "
                "Finish those before you send more."
            )
            raise RateLimited(message, retry_after_s=RETRY_AFTER_S)
        self._unfinished[tenant] += 1

    def add(self, tenant: str, size: int) -> None:
        """Count more bytes. Raises RateLimited for the tenant, ServiceUnavailable for all."""
        if self._bytes[tenant] + size > self._limits.tenant_bytes:
            message = (
                f"Your requests hold {self._limits.tenant_bytes} bytes here until they are done. "
                "Send fewer at a time."
            )
            raise RateLimited(message, retry_after_s=RETRY_AFTER_S)
        if self._all_bytes + size > self._limits.worker_bytes:
            message = "The gateway is reading as many requests as it can hold. Try again soon."
            raise ServiceUnavailable(message, retry_after_s=RETRY_AFTER_S)
        self._bytes[tenant] += size
        self._all_bytes += size

    def give_back(self, tenant: str, size: int, *, is_unfinished: bool) -> None:
        """A body has been parsed, or is given up."""
        self._all_bytes -= size
        for counted, amount in ((self._bytes, size), (self._unfinished, int(is_unfinished))):
            counted[tenant] -= amount
            if not counted[tenant]:
                del counted[tenant]


class BodyReading:
    __slots__ = ("_budget", "_is_unfinished", "_size", "_tenant")

    def __init__(self, budget: ReadBudget, tenant: str) -> None:
        self._budget = budget
        self._tenant = tenant
        self._size = 0
        self._is_unfinished = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def timeout_s(self) -> float:
        """For the whole body."""
        return self._budget.timeout_s

    def add(self, size: int, *, more: bool) -> None:
        """`more`: this part is not the last. Raises RateLimited or ServiceUnavailable."""
        self._budget.add(self._tenant, size)
        self._size += size
        if more and not self._is_unfinished:
            self._budget.wait(self._tenant)
            self._is_unfinished = True

    def finished(self) -> None:
        """It is read, and what it holds is kept."""
        self._give_back(0)

    def close(self) -> None:
        """Give back all of it, once."""
        size, self._size = self._size, 0
        self._give_back(size)

    def _give_back(self, size: int) -> None:
        is_unfinished, self._is_unfinished = self._is_unfinished, False
        self._budget.give_back(self._tenant, size, is_unfinished=is_unfinished)
