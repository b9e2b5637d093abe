"""Image bytes as the vendor made them, within a budget. May be on a server of their own."""

from typing import Protocol

from msgspec import Struct


class ImagePlace(Struct, frozen=True):
    """One image of a generation's result."""

    scope: str
    id: str
    index: int


class ImageStats(Struct, frozen=True):
    """Image bytes held for one scope."""

    images: int
    bytes: int


class ImageStore(Protocol):
    async def put_image(
        self, place: ImagePlace, image: bytes | memoryview, ttl_ms: int, budget: int
    ) -> bool:
        """Hold an image if it fits the scope's budget (bytes): those that end first make room.

        Raises StoreUnavailable.
        """

    async def get_image(self, place: ImagePlace) -> bytes | None:
        """The whole image, or nothing. Raises StoreUnavailable."""

    async def image_stats(self, scope: str) -> ImageStats:
        """Raises StoreUnavailable."""

    async def purge_images(self, scope: str) -> int:
        """Raises StoreUnavailable."""

    async def aclose(self) -> None:
        """Release connections; the store is not used afterwards."""
