"""Shared state behind atomic decisions (0011, 0012, 0021): contracts, `memory`, and `redis`."""

from typing import Protocol

from gateway.store.availability import Closable, Membership
from gateway.store.generations import CacheAdmin, GenerationNotes, GenerationStore
from gateway.store.limits import LimitStore
from gateway.store.pacing import PaceStore
from gateway.store.requests import RequestStore


class Store(
    RequestStore,
    LimitStore,
    GenerationStore,
    GenerationNotes,
    CacheAdmin,
    PaceStore,
    Membership,
    Closable,
    Protocol,
):
    """A backend with every capability; `tests/contract` runs the same cases over each."""
