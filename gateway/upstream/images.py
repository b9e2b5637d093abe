"""Fetching result images from the hosts that are allowed, over one pool of connections.

Nothing but the signed URL travels there: no key, no cookie, and no redirect is followed.
"""

from __future__ import annotations

from functools import partial

import aiohttp
from structlog.typing import FilteringBoundLogger
from yarl import URL

from gateway.config import Images
from gateway.domain.clock import Clock
from gateway.domain.errors import ImageUnavailable
from gateway.upstream.allow_list import AllowList, PublicResolver
from gateway.upstream.download import Download
from gateway.upstream.download_retry import Deadline, DownloadRetry

CONNECT_S = 10.0
IDLE_BUFFER_BYTES = 32 * 1024
"""aiohttp stops reading a download that nobody reads at twice this; a reader raises it."""


class ImageFetcher:
    """Checks and downloads result URLs."""

    def __init__(self, images: Images, clock: Clock) -> None:
        self._images = images
        self._allowed = AllowList(images)
        self._clock = clock
        self._session: aiohttp.ClientSession | None = None

    def check(self, text: str) -> URL:
        """Parse a result URL.

        Raises:
            ImageUnavailable: it may not be fetched, nor handed to a client.
        """
        url = self._allowed.parse(text)
        if url is None:
            message = "The image service returned an image address that is not allowed."
            raise ImageUnavailable(message, for_good=True)
        return url

    async def open(
        self, text: str, deadline: Deadline, log: FilteringBoundLogger, *, fresh: bool = False
    ) -> Download:
        """Begin a download; `fresh`: of an image made just now. The caller closes it.

        Raises:
            ImageUnavailable: not allowed, not there, not a PNG, too large, or broken every time.
        """
        connect = partial(self._get, self.check(text))
        retry = DownloadRetry(deadline, self._images.timeout_s, self._clock, log, fresh=fresh)
        download = Download(connect, retry, self._images.max_bytes)
        try:
            await download.open()
        except BaseException:
            download.close()
            raise
        return download

    async def aclose(self) -> None:
        """Close the pool."""
        if self._session is not None:
            await self._session.close()

    async def _get(self, url: URL, headers: dict[str, str]) -> aiohttp.ClientResponse:
        return await self._open().get(url, headers=headers, allow_redirects=False)

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            resolver = PublicResolver(self._allowed.exempt)
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(resolver=resolver, limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                headers={"accept": "image/png", "accept-encoding": "identity"},
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
                read_bufsize=IDLE_BUFFER_BYTES,
            )
        return self._session
