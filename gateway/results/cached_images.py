"""Image bytes beside a cached result: a hit works after its URLs have died (`image_cache`).

Bytes are kept only of cacheable results, and only from what base64 answers stream anyway. Their
Redis may evict: a missing image is a miss.
"""

from __future__ import annotations

from collections.abc import Callable

from structlog.typing import FilteringBoundLogger

from gateway.config import ImageCache
from gateway.delivery import CopySink
from gateway.observability.metrics import Metrics
from gateway.results import Entry, Ledger
from gateway.results.cache_policy import MARGIN_S, Record
from gateway.store.availability import StoreUnavailable
from gateway.store.images import ImagePlace, ImageStore


class CachedImages:
    """`now` gives Unix seconds."""

    def __init__(
        self,
        store: ImageStore,
        ledger: Ledger,
        settings: ImageCache,
        *,
        metrics: Metrics,
        now: Callable[[], float],
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._settings = settings
        self._metrics = metrics
        self._now = now

    def keep(self, entry: Entry, id_: str, keep_s: float, log: FilteringBoundLogger) -> CopySink:
        """Copy a new result's images while they are sent, for `keep_s` seconds."""
        kept: set[int] = set()

        def missed(cause: str, size: int, told: str | None = None) -> None:
            self._metrics.cache_missed.labels(cause).inc()
            log.warning("image_not_kept", cause=cause, bytes=size, told=told)

        async def receive(index: int, image: memoryview) -> None:
            place = ImagePlace(entry.scope, id_, index)
            budget = self._settings.budget_bytes
            try:
                if await self._store.put_image(place, image, round(keep_s * 1000), budget):
                    kept.add(index)
                    self._metrics.cache_kept_bytes.inc(len(image))
                else:
                    missed("no_room", len(image))
            except StoreUnavailable as lost:
                missed("store_unavailable", len(image), str(lost))
            if len(kept) == entry.images:
                await self._ledger.pin_images(entry.scope, id_, keep_s)

        return CopySink(receive, self._settings.max_image_bytes, missed)

    def needs_bytes(self, record: Record) -> bool:
        """Whether the result's URLs are dead, or soon will be."""
        return record.life_s(self._now()) < MARGIN_S

    def most_bytes(self, entry: Entry) -> int:
        """How much `find` may bring into memory."""
        return entry.images * self._settings.max_image_bytes

    async def find(self, entry: Entry, id_: str) -> list[bytes] | None:
        """All images of a result, or None if one is gone."""
        images: list[bytes] = []
        for index in range(entry.images):
            try:
                image = await self._store.get_image(ImagePlace(entry.scope, id_, index))
            except StoreUnavailable:
                return None
            if image is None:
                return None
            images.append(image)
        self._metrics.cache_served_bytes.inc(sum(map(len, images)))
        return images
