"""Image bytes in one process."""

from __future__ import annotations

import time
from collections.abc import Callable

from gateway.store.images import ImagePlace, ImageStats


class MemoryImages:
    """`clock` gives Unix seconds."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._now = clock
        self._scopes: dict[str, dict[ImagePlace, tuple[float, bytes]]] = {}
        """Each image with its expiry."""

    async def put_image(
        self, place: ImagePlace, image: bytes | memoryview, ttl_ms: int, budget: int
    ) -> bool:
        held = self._held(place.scope)
        held.pop(place, None)
        if len(image) > budget:
            return False
        while sum(len(other) for _, other in held.values()) + len(image) > budget:
            del held[min(held, key=lambda other: held[other][0])]
        held[place] = (self._now() + ttl_ms / 1000, bytes(image))
        return True

    async def get_image(self, place: ImagePlace) -> bytes | None:
        found = self._held(place.scope).get(place)
        return found[1] if found else None

    async def image_stats(self, scope: str) -> ImageStats:
        held = self._held(scope)
        return ImageStats(len(held), sum(len(image) for _, image in held.values()))

    async def purge_images(self, scope: str) -> int:
        return len(self._scopes.pop(scope, {}))

    async def aclose(self) -> None:
        self._scopes.clear()

    def _held(self, scope: str) -> dict[ImagePlace, tuple[float, bytes]]:
        held = self._scopes.setdefault(scope, {})
        for place in [place for place, (ends, _) in held.items() if ends <= self._now()]:
            del held[place]
        return held
