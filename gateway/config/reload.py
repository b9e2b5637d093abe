"""Applying a changed configuration file without a restart.

Every worker looks at the file, and at the files that it names, twice a second and on SIGHUP. Faults
change nothing. Tenants, keys, limits, models, aliases and accounts follow the file; other changes
are reported and need a restart.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import structlog
from msgspec.structs import replace

from gateway.config import Config, Listen, load_config
from gateway.config.decode import ConfigError, Fault, files_read
from gateway.config.loading import FILLED

EVERY_S = 0.5
FOLLOWED = ("accounts", "tenants", "aliases", "models", "catalogue", "default_model")
AGAIN_S = 1.0
"""How long a refused file that does not change rests before it is read again."""
AGAIN_SHARE = 10
"""Or so many times as long as reading it took."""

log = structlog.get_logger()


class BeingWritten(ConfigError):
    """The file changed while it was read: what was read may be half of it."""


def read_whole(path: Path) -> Config:
    """Any failure to read it is a ConfigError."""
    try:
        return load_config(path)
    except ConfigError:
        raise
    except Exception as fault:  # noqa: BLE001 - a file must end nobody who follows it
        # Not its words: they may hold what the file does.
        told = Fault("", f"cannot be read, which is a defect here: {type(fault).__name__}")
        raise ConfigError(path, [told]) from None


class Follower:
    """One configuration file with those that it names, and whether they are to be read again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files = {path}
        self._seen: tuple[object, ...] = ()
        self._again_at: float | None = None

    def forget(self) -> None:
        """Have it read again as if it had changed."""
        self._seen = ()

    def has_changed(self) -> bool:
        """Since it was read last."""
        return self._fingerprint() != self._seen

    def is_due(self) -> bool:
        """A refused file is due, too: others may have found it whole."""
        return self.has_changed() or (
            self._again_at is not None and time.monotonic() >= self._again_at
        )

    def read(self) -> Config:
        """Raises ConfigError for its faults, BeingWritten where it is to be read again."""
        seen, started = self._fingerprint(), time.monotonic()
        with files_read() as files:
            try:
                config = read_whole(self._path)
            except ConfigError:
                self._keep(seen, files)
                self.refuse(time.monotonic() - started)
                raise
        self._keep(seen, files)
        self._again_at = None
        return config

    def refuse(self, took_s: float = 0.0) -> None:
        """Read it again after a while, even if nothing changes."""
        self._again_at = time.monotonic() + max(AGAIN_S, AGAIN_SHARE * took_s)

    def _keep(self, seen: tuple[object, ...], files: set[Path]) -> None:
        if self._fingerprint() != seen:
            self.forget()
            raise BeingWritten(self._path, [])
        self._files = files | {self._path}
        self._seen = self._fingerprint()

    def _fingerprint(self) -> tuple[object, ...]:
        """Changes whenever one of the files does; a replaced file has another inode."""
        return tuple((path, stamp(path)) for path in sorted(self._files))


class Reloader:
    """`apply` gets each new configuration, `tell_faults` the number of faults in the file."""

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
        self._follower = Follower(path)
        self._told: object = None
        self._listen: Listen | None = None
        self._wake = asyncio.Event()
        self._has_read = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Watch in the background; needs a running event loop."""
        self._task = asyncio.create_task(self._run(), name="reload")

    def trigger(self) -> None:
        """Look now, and reload even if no file has changed."""
        self._follower.forget()
        self._wake.set()

    async def aclose(self) -> None:
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
                self._told = None
            if self._follower.is_due():
                await self._reload()

    async def _reload(self) -> None:
        try:
            config = await asyncio.to_thread(self._follower.read)
            self._listen = self._listen or config.listen
            is_as_started, self._has_read = self._is_as_started(config), True
            if not is_as_started:
                self._apply(config)
        except BeingWritten:
            return
        except ConfigError as error:
            faults = [str(fault) for fault in error.faults]
            self._tell_faults(max(1, len(faults)))
            self._tell("reload_refused", faults=faults)
        except Exception as error:  # noqa: BLE001 - later changes must still be seen
            self._follower.refuse()
            self._tell_faults(1)
            # Neither its words nor its frames: they may hold what the file does.
            self._tell("reload_failed", error=type(error).__name__)
        else:
            self._told = None
            self._tell_faults(0)
            if is_as_started:
                return
            needs = self._needs_restart(config)
            log.info(
                "reloaded", path=str(self._path), tenants=len(config.tenants), needs_restart=needs
            )

    def _tell(self, event: str, **what: object) -> None:
        """Log once: the file is read again and again."""
        if (event, what) != self._told:
            log.error(event, path=str(self._path), **what)
        self._told = event, what

    def _is_as_started(self, config: Config) -> bool:
        """Whether the first look found what the worker was started with, as it mostly does."""
        return not self._has_read and replace(config, listen=self._started_with.listen) == (
            self._started_with
        )

    def _needs_restart(self, config: Config) -> list[str]:
        """Changed sections that only a restart follows."""
        would_be = replace(config, listen=self._listens(config.listen))
        names = [n for n in config.__struct_fields__ if n not in {*FOLLOWED, *FILLED}]
        return [n for n in names if getattr(would_be, n) != getattr(self._started_with, n)]

    def _listens(self, file: Listen) -> Listen:
        """Where a restart would listen: the command line may override the file."""
        now, first = self._started_with.listen, self._listen or file
        return Listen(
            file.host if now.host == first.host else now.host,
            file.port if now.port == first.port else now.port,
        )


def stamp(path: Path) -> tuple[int, int, int] | None:
    """A file's identity; None while it is away, as in the middle of being replaced."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
