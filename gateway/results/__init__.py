"""Never paying twice; docs/caching.md says what still can be paid twice."""

from gateway.results.ledger import Ledger
from gateway.store.generations import (
    Doubtful,
    Entry,
    Follow,
    Found,
    How,
    Idempotency,
    Lead,
    Refusal,
)

__all__ = [
    "Doubtful",
    "Entry",
    "Follow",
    "Found",
    "How",
    "Idempotency",
    "Lead",
    "Ledger",
    "Refusal",
]
