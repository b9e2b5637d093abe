"""Image bytes as the vendor made them, within a budget. All operations raise StoreUnavailable."""

from typing import Protocol

from msgspec import Struct


class ImagePlace(Struct, frozen=True):
    scope: str
    id: str
    index: int


class ImageStats(Struct, frozen=True):
    images: int
    bytes: int


class ImageStore(Protocol):
    async def put_image(
        self, place: ImagePlace, image: bytes | memoryview, ttl_ms: int, budget: int
    ) -> bool:
        """Store it if it fits the scope's budget in bytes; the first to expire make room."""

    async def get_image(self, place: ImagePlace) -> bytes | None:
        """Whole, or None."""

    async def image_stats(self, scope: str) -> ImageStats:
        """Raises StoreUnavailable."""

    async def purge_images(self, scope: str) -> int:
        """Raises StoreUnavailable."""

    async def aclose(self) -> None:
        """Release connections; the store is not used afterwards."""
