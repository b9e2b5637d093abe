"""Applying a changed configuration file without a restart.

Every worker looks at the file twice a second, and at once on SIGHUP. A file with faults is reported
and changes nothing. Tenants, keys, limits, models, aliases and accounts follow the file; everything
else (where it listens, Redis, time-outs) is read at start only, and a change there is reported.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import structlog
from msgspec.structs import replace

from gateway.config import Config, load_config
from gateway.decoding import ConfigError

EVERY_S = 0.5
FOLLOWED = ("accounts", "tenants", "aliases", "models", "catalogue", "default_model")
OVERRIDDEN = "listen"
"""The command line may have changed it."""

log = structlog.get_logger()


class BeingWritten(ConfigError):
    """The file changed while it was read: what was read may be half of it."""


class Follower:
    """One configuration file, and whether it has changed since it was last read."""

    def __init__(self, path: Path, config: Config) -> None:
        self._path = path
        self._catalogue = path.parent / config.models if config.models else None
        self._seen: tuple[object, ...] = ()

    def forget(self) -> None:
        """Have it read again as if it had changed."""
        self._seen = ()

    def has_changed(self) -> bool:
        """Whether a look at it is due."""
        return self._fingerprint() != self._seen

    def read(self) -> Config:
        """What it says now.

        Raises:
            ConfigError: its faults; BeingWritten where it is to be read again.
        """
        seen = self._seen = self._fingerprint()
        config = load_config(self._path)
        if self._fingerprint() != seen:
            self.forget()
            raise BeingWritten(self._path, [])
        self._catalogue = self._path.parent / config.models if config.models else None
        self._seen = self._fingerprint()
        return config

    def _fingerprint(self) -> tuple[object, ...]:
        """Changes whenever one of the files does; a replaced file has another inode."""
        return tuple(stamp(path) for path in (self._path, self._catalogue) if path is not None)


class Reloader:
    """Watches one configuration file for one worker.

    `apply` is given each new configuration; `tell_faults` the number of those in what is there.
    """

    def __init__(
        self,
        path: Path,
        config: Config,
        apply: Callable[[Config], None],
        tell_faults: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._path = path
        self._started_with = config
        self._apply = apply
        self._tell_faults = tell_faults
        self._follower = Follower(path, config)
        self._wake = asyncio.Event()
        self._has_read = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Watch in the background, from within a running event loop."""
        self._task = asyncio.create_task(self._run(), name="reload")

    def trigger(self) -> None:
        """Look now, and reload even if the file has not changed: its secrets' files may have."""
        self._follower.forget()
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
            if self._follower.has_changed():
                await self._reload()

    async def _reload(self) -> None:
        try:
            config = await asyncio.to_thread(self._follower.read)
            is_as_started, self._has_read = self._is_as_started(config), True
            if not is_as_started:
                self._apply(config)
        except BeingWritten:
            return
        except ConfigError as error:
            faults = [str(fault) for fault in error.faults]
            self._tell_faults(max(1, len(faults)))
            log.error("reload_refused", path=str(self._path), faults=faults)  # noqa: TRY400
        except Exception as error:  # noqa: BLE001 - later changes must still be seen
            self._tell_faults(1)
            # Neither its words nor its frames: they may hold what the file does.
            log.error("reload_failed", path=str(self._path), error=type(error).__name__)  # noqa: TRY400
        else:
            self._tell_faults(0)
            if is_as_started:
                return
            needs = self._needs_restart(config)
            log.info(
                "reloaded", path=str(self._path), tenants=len(config.tenants), needs_restart=needs
            )

    def _is_as_started(self, config: Config) -> bool:
        """Whether the first look found what the worker was started with, as it mostly does."""
        return not self._has_read and replace(config, listen=self._started_with.listen) == (
            self._started_with
        )

    def _needs_restart(self, config: Config) -> list[str]:
        """Sections that differ from what the worker started with and are not followed."""
        names = [n for n in config.__struct_fields__ if n not in (*FOLLOWED, OVERRIDDEN)]
        return [n for n in names if getattr(config, n) != getattr(self._started_with, n)]


def stamp(path: Path) -> tuple[int, int, int] | None:
    """A file's identity; None while it is away, as in the middle of being replaced."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
