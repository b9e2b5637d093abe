"""The images handed out, painted only when somebody fetches one."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from msgspec import Struct

from gateway.simulator.faults import Fault
from gateway.simulator.images import Picture, paint, paint_plain
from gateway.simulator.settings import Settings

INLINE_BYTES = 64 * 1024
"""A plain image up to this size costs less than the hop to a thread."""


class Issued(Struct, frozen=True):
    """An image behind a result URL, and the fault its prompt asked for on download, if any."""

    picture: Picture
    fault: Fault | None = None


class Rendered(NamedTuple):
    """The bytes of an image, and the ETag object storage would give them."""

    png: bytes
    etag: str


class _Job(NamedTuple):
    picture: Picture
    render: str
    min_bytes: int


class Gallery:
    """Which image is behind which path, and the bytes of those fetched lately; both bounded."""

    def __init__(self) -> None:
        self._issued: OrderedDict[str, Issued] = OrderedDict()
        self._rendered: OrderedDict[_Job, Rendered] = OrderedDict()
        self._painting: dict[_Job, asyncio.Future[Rendered]] = {}
        self._rendered_bytes = 0

    def issue(self, path: str, image: Issued, limit: int) -> None:
        """Remembers what is behind `path`, forgetting the oldest beyond `limit`."""
        self._issued[path] = image
        while len(self._issued) > limit:
            self._issued.popitem(last=False)

    def find(self, path: str) -> Issued | None:
        """What is behind `path`, if it is still known."""
        return self._issued.get(path)

    async def png(self, picture: Picture, settings: Settings) -> Rendered:
        """The bytes of a picture; painted once, in a thread, however many ask at the same time."""
        job = _Job(picture, settings.render, settings.image_bytes)
        kept = self._rendered.get(job)
        if kept is not None:
            self._rendered.move_to_end(job)
            return kept
        if settings.render == "plain" and settings.image_bytes <= INLINE_BYTES:
            return self._keep(job, _render(job), settings.rendered_max_bytes)
        return await self._paint_once(job, settings.rendered_max_bytes)

    def clear(self) -> None:
        """Forgets every image."""
        self._issued.clear()
        self._rendered.clear()
        self._rendered_bytes = 0

    async def _paint_once(self, job: _Job, max_bytes: int) -> Rendered:
        under_way = self._painting.get(job)
        if under_way is None:
            under_way = asyncio.ensure_future(asyncio.to_thread(_render, job))
            self._painting[job] = under_way
            under_way.add_done_callback(lambda _: self._painting.pop(job))
        # Shielded, since others may be waiting for the image a client has given up on.
        return self._keep(job, await asyncio.shield(under_way), max_bytes)

    def _keep(self, job: _Job, rendered: Rendered, max_bytes: int) -> Rendered:
        if job not in self._rendered:
            self._rendered[job] = rendered
            self._rendered_bytes += len(rendered.png)
        while self._rendered_bytes > max_bytes:
            _, dropped = self._rendered.popitem(last=False)
            self._rendered_bytes -= len(dropped.png)
        return rendered


def _render(job: _Job) -> Rendered:
    painter: Callable[[Picture, int], bytes] = paint_plain if job.render == "plain" else paint
    png = painter(job.picture, job.min_bytes)
    return Rendered(png, hashlib.md5(png, usedforsecurity=False).hexdigest().upper())
