"""Pacing of upstream calls: `Pacer.slot` before each, `Pacer.sent` when it is on its way."""

from gateway.pacing.pacer import Pacer
from gateway.pacing.slots import LocalFallback
from gateway.pacing.wait_queue import NoSlot, QueueFull, Slot, SlotTooLate

__all__ = [
    "LocalFallback",
    "NoSlot",
    "Pacer",
    "QueueFull",
    "Slot",
    "SlotTooLate",
]
