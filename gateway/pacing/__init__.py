"""Pacing of upstream calls: `Pacer.slot` before each, `Pacer.sent` when it is on its way."""

from gateway.pacing.pacer import Pacer
from gateway.pacing.slots import Accounts, LocalFallback
from gateway.pacing.wait_queue import NoSlot, QueueBounds, QueueFull, Slot, SlotTooLate

__all__ = [
    "Accounts",
    "LocalFallback",
    "NoSlot",
    "Pacer",
    "QueueBounds",
    "QueueFull",
    "Slot",
    "SlotTooLate",
]
