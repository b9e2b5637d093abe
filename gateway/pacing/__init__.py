"""Pacing of upstream calls: `await Pacer.slot(...)` before each of them."""

from gateway.pacing.pacer import Pacer
from gateway.pacing.queue import NoSlot, QueueBounds, QueueFull, SlotTooLate
from gateway.pacing.slots import Accounts, Alone

__all__ = ["Accounts", "Alone", "NoSlot", "Pacer", "QueueBounds", "QueueFull", "SlotTooLate"]
