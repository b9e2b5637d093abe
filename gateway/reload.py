"""Applying a changed configuration file without a restart.

Every worker looks at the file twice a second, and at once on SIGHUP. A file with faults is reported
and changes nothing. Tenants, keys, limits, models, aliases and accounts follow the file; everything
else (where it listens, Redis, time-outs) is read at start only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import structlog

from gateway.config import Config, load_config
from gateway.decoding import ConfigError

EVERY_S = 0.5

log = structlog.get_logger()


class Reloader:
    """Watches one configuration file for one worker; `apply` is given each new configuration."""

    def __init__(self, path: Path, config: Config, apply: Callable[[Config], None]) -> None:
        self._path = path
        self._apply = apply
        self._catalogue = path.parent / config.models if config.models else None
        # A worker that replaces a dead one was given what its supervisor read at the start.
        self._seen: tuple[object, ...] = ()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Watch in the background, from within a running event loop."""
        self._task = asyncio.create_task(self._run(), name="reload")

    def trigger(self) -> None:
        """Look now, and reload even if the file has not changed: its secrets' files may have."""
        self._seen = ()
        self._wake.set()

    async def aclose(self) -> None:
        """Stop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(EVERY_S):
                    await self._wake.wait()
            self._wake.clear()
            seen = self._fingerprint()
            if seen != self._seen:
                self._seen = seen
                await self._reload()

    async def _reload(self) -> None:
        try:
            config = await asyncio.to_thread(load_config, self._path)
        except ConfigError as error:
            faults = [str(fault) for fault in error.faults]
            log.error("reload_refused", path=str(self._path), faults=faults)  # noqa: TRY400
            return
        self._catalogue = self._path.parent / config.models if config.models else None
        self._apply(config)
        log.info("reloaded", path=str(self._path), tenants=len(config.tenants))

    def _fingerprint(self) -> tuple[object, ...]:
        """Changes whenever one of the files does; a replaced file has another inode."""
        return tuple(stamp(path) for path in (self._path, self._catalogue) if path is not None)


def stamp(path: Path) -> tuple[int, int, int] | None:
    """A file's identity; None while it is away, as in the middle of being replaced."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
