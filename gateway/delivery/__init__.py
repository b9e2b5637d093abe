"""Images as base64 inside JSON, written while they download, in bounded memory."""

from gateway.delivery.delivery import Delivery, OpenDelivery
from gateway.delivery.keeping import Keep

__all__ = ["Delivery", "Keep", "OpenDelivery"]
