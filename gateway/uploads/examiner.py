"""Examines pictures beside the event loop: one at a time, so that memory holds one decoded."""

from __future__ import annotations

import asyncio
import warnings
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

from gateway.domain.errors import InvalidRequest
from gateway.domain.pictures import Picture
from gateway.uploads.examine import Unfit, examine
from gateway.uploads.spool import Part, Upload


class Examiner:
    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        # Of what a picture says: its words would be in the log, and kept to be said only once.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        self._thread = ThreadPoolExecutor(1, "pictures")
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """By tenant: a thousand pictures of one tenant take one place in the queue."""

    async def examine(self, tenant: str, upload: Upload) -> Picture:
        """Raises InvalidRequest with the picture as `param`, or ServiceUnavailable without room."""
        part = upload.part
        try:
            async with self._turns[tenant]:
                found = await part.spool.run(
                    self._thread, examine, part.size, part.offset, self._max_pixels
                )
        except Unfit as unfit:
            message = f"The image '{upload.name}' {unfit}."
            raise InvalidRequest(message, param=upload.name, code="invalid_image_file") from None
        if found.rewritten is not None:
            offset = await part.spool.append(found.rewritten)
            part = Part(part.spool, offset, len(found.rewritten))
        return Picture(f"sha256:{upload.digest}", found.mime, part.size, part)

    def close(self) -> None:
        """Without waiting."""
        self._thread.shutdown(wait=False, cancel_futures=True)
