"""Never paying twice: who makes a generation, who waits for it, and who is given what it brought.

What can still be paid twice, and nothing else:

- a leader is killed, or loses its network, between sending a call and hearing its answer: the
  vendor has no idempotency key, so whoever takes over sends that call again; calls that were
  answered before are kept as parts and not sent again;
- a leader's process stands still for longer than its lease: it is taken for dead;
- the store is away: identical requests in different workers do not see each other, and each
  worker that has one pays once; inside a worker everything holds;
- the store has lost its data (a restart without persistence, an eviction, a failover that lost
  writes): what was running is put back within a third of a lease, so an identical request in that
  time is paid again, and so is a repeat of what was finished before;
- the store was away for longer than a lease: in the quarter second between its return and that of
  the leader another worker's new request takes the leader for dead;
- a result outlives its signed URLs only with its images' bytes: a repeat after that is paid again.
"""

from gateway.results.decisions import Done, Failed, Follow, Lead, Place
from gateway.results.ledger import Ledger
from gateway.store.generations import Entry, How, Idempotency, Refusal

__all__ = [
    "Done",
    "Entry",
    "Failed",
    "Follow",
    "How",
    "Idempotency",
    "Lead",
    "Ledger",
    "Place",
    "Refusal",
]
