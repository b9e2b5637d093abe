"""Images as base64 inside JSON, written while they download, in bounded memory (0020)."""

from gateway.delivery.base64_json import in_events, in_one_answer
from gateway.delivery.conversion import Converter, Encoding
from gateway.delivery.copies import CopySink
from gateway.delivery.delivery import Delivery, OpenDelivery, ResultImages, take

__all__ = [
    "Converter",
    "CopySink",
    "Delivery",
    "Encoding",
    "OpenDelivery",
    "ResultImages",
    "in_events",
    "in_one_answer",
    "take",
]
