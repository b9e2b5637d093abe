"""`gateway doctor`: the accounts, the proxies, the image hosts and Redis, asked at no cost."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from tempfile import gettempdir

from gateway.config import Config, Uploads
from gateway.config.warn import warnings_of
from gateway.domain.findings import Finding
from gateway.observability.logs import masker
from gateway.store.redis.examine import examine_image_cache, examine_redis
from gateway.upstream.examine import examine_account, examine_image_hosts, examine_proxies


async def examine(config: Config) -> list[Finding]:
    """Everything that the configuration names, all at once, in the order of the file."""
    accounts = (examine_account(one, config.proxies, time.time) for one in config.accounts)
    asked = await asyncio.gather(
        examine_proxies(config.proxies), *accounts, examine_image_hosts(config), stores(config)
    )
    return [
        *(Finding("configuration", str(warning), "warning") for warning in warnings_of(config)),
        *(finding for found in asked for finding in found),
        *files(config),
    ]


async def stores(config: Config) -> list[Finding]:
    """Redis, and the image cache's."""
    redis, cache = config.redis, config.image_cache
    if redis is None:
        found = [Finding("redis", "none: limits and results are those of a single worker")]
    else:
        url = redis.url.reveal()
        found = await examine_redis(url, redis.prefix, redis.command_timeout_ms, time.time)
    if cache is not None and cache.url is not None:
        found += await examine_image_cache(cache.url.reveal())
    return found


def files(config: Config) -> Iterable[Finding]:
    yield pictures(config.uploads)
    if config.usage_log is None:
        return
    path = Path(config.usage_log)
    target = path if path.exists() else path.parent
    if os.access(target, os.W_OK):
        yield Finding("usage record", f"{path} can be written")
    else:
        advice = f"let the gateway's user write {target}"
        yield Finding("usage record", f"{path} cannot be written", "fails", advice)


def pictures(uploads: Uploads) -> Finding:
    try:
        folder = uploads.directory or gettempdir()
    except FileNotFoundError:  # it tries to write there
        folder = "/tmp"  # noqa: S108 - the place that is missing
    if not os.access(folder, os.W_OK | os.X_OK):
        advice = f"let the gateway's user write {folder}, or name another folder"
        return Finding("uploads.directory", f"{folder} cannot be written", "fails", advice)
    free, wanted = shutil.disk_usage(folder).free >> 20, uploads.worker_bytes >> 20
    if free < wanted:
        text = f"{folder} has {free} MiB free, and a worker may take {wanted}"
        return Finding("uploads.directory", text, "warning", "give it more, or lower worker_bytes")
    return Finding("uploads.directory", f"{folder} can be written, {free} MiB free")


def report(findings: Iterable[Finding]) -> list[str]:
    """A line each, without secrets, whatever a host or Redis has said."""
    return [masker(None, "", str(finding)) for finding in findings]
