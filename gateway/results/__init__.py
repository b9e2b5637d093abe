"""Never paying twice; docs/caching.md says what still can be paid twice."""

from gateway.results.decisions import Decision, Done, Follow, Lead, Place, Repeated
from gateway.results.ledger import Ledger
from gateway.store.generations import Entry, How, Idempotency, Refusal

__all__ = [
    "Decision",
    "Done",
    "Entry",
    "Follow",
    "How",
    "Idempotency",
    "Lead",
    "Ledger",
    "Place",
    "Refusal",
    "Repeated",
]
