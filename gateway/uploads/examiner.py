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
    """One for a worker."""

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        # Of what a picture says: its words would be in the log, and kept to be said only once.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        self._thread = ThreadPoolExecutor(1, "pictures")
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """Of the tenants: one who sends a thousand pictures has one in the queue."""

    async def examine(self, tenant: str, upload: Upload) -> Picture:
        """What is sent of it.

        Raises:
            InvalidRequest: `param` names the picture, which no model could read.
            ServiceUnavailable: there is no room for it.
        """
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
