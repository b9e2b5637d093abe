"""The ledger: who pays for a generation, who waits for it, and what this worker holds meanwhile.

docs/caching.md says what can still be paid twice.
"""

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
