"""Pacing of upstream calls: `Pacer.slot` before each, `Pacer.sent` when it is on its way."""

from gateway.pacing.pacer import Pacer
from gateway.pacing.slots import Accounts, Alone
from gateway.pacing.wait_queue import NoSlot, QueueBounds, QueueFull, Slot, SlotTooLate

__all__ = [
    "Accounts",
    "Alone",
    "NoSlot",
    "Pacer",
    "QueueBounds",
    "QueueFull",
    "Slot",
    "SlotTooLate",
]
