"""Image bytes kept beside a cached result, so that a hit works after its URLs have died.

Optional: without the section `image_cache` a result lives as long as its URLs. Bytes are kept from
what base64 answers stream anyway, never downloaded for the cache alone, and only of cacheable
results. They may be on a Redis of their own, whose policy may evict: an image that is gone is a
miss.
"""

from __future__ import annotations

from collections.abc import Callable

from structlog.typing import FilteringBoundLogger

from gateway.config import ImageCache as Settings
from gateway.delivery import CopySink
from gateway.observability.metrics import Metrics
from gateway.results import Done, Lead, Ledger
from gateway.store.availability import StoreUnavailable
from gateway.store.generations import MARGIN_MS
from gateway.store.images import ImagePlace, ImageStore

MARGIN_S = MARGIN_MS / 1000


class ImageCache:
    """Keeps and finds the images of one worker's results. `now` gives Unix seconds."""

    def __init__(
        self,
        store: ImageStore,
        ledger: Ledger,
        settings: Settings,
        *,
        metrics: Metrics,
        now: Callable[[], float],
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._settings = settings
        self._metrics = metrics
        self._now = now

    def keep(self, lead: Lead, keep_s: float, log: FilteringBoundLogger) -> CopySink:
        """Take copies of a new result's images while they are sent, for `keep_s` seconds."""
        kept: set[int] = set()

        def missed(cause: str, size: int, told: str | None = None) -> None:
            self._metrics.cache_missed.labels(cause).inc()
            log.warning("image_not_kept", cause=cause, bytes=size, told=told)

        async def receive(index: int, image: memoryview) -> None:
            place = ImagePlace(lead.entry.scope, lead.id, index)
            budget = self._settings.budget_bytes
            try:
                if await self._store.put_image(place, image, round(keep_s * 1000), budget):
                    kept.add(index)
                    self._metrics.cache_kept_bytes.inc(len(image))
                else:
                    missed("no_room", len(image))
            except StoreUnavailable as lost:
                missed("store_unavailable", len(image), str(lost))
            if len(kept) == lead.entry.images:
                await self._ledger.pin_images(lead, keep_s)

        return CopySink(receive, self._settings.max_image_bytes, missed)

    def needs_bytes(self, done: Done) -> bool:
        """Whether a result's URLs are dead, or soon will be, so that only held bytes serve it."""
        return done.record.life_s(self._now()) < MARGIN_S

    def most_bytes(self, done: Done) -> int:
        """What `find` may bring into memory."""
        return done.entry.images * self._settings.max_image_bytes

    async def find(self, done: Done) -> list[bytes] | None:
        """All images of a result, or None if one of them is gone."""
        images: list[bytes] = []
        for index in range(done.entry.images):
            try:
                image = await self._store.get_image(ImagePlace(done.entry.scope, done.id, index))
            except StoreUnavailable:
                return None
            if image is None:
                return None
            images.append(image)
        self._metrics.cache_served_bytes.inc(sum(map(len, images)))
        return images
