"""Never paying twice: who makes a generation, who waits for it, and who is given what it brought.

What can still be paid twice, and nothing else, stands in docs/caching.md.
"""

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
