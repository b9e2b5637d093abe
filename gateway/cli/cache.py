"""`gateway cache`: what each tenant's cache holds, and emptying it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
from msgspec import Struct

from gateway.config import Tenant
from gateway.results.cache_policy import scope_of
from gateway.store.generations import CacheAdmin
from gateway.store.images import ImageStore


class CacheReport(Struct, frozen=True):
    """One scope's cache: that of a tenant, or of a group of tenants."""

    scope: str
    results: int
    result_bytes: int
    images: int
    image_bytes: int
    found: Mapping[str, int]
    """How often results were found, by how; `led` were paid for."""


def scopes(tenants: Iterable[Tenant], name: str | None) -> list[str]:
    """All tenants' or one's, each group once. Empty for an unknown tenant."""
    found = (t for t in tenants if name in {None, t.name})
    return list(dict.fromkeys(scope_of(tenant.name, tenant.cache.group) for tenant in found))


async def report(
    store: CacheAdmin, images: ImageStore | None, names: Iterable[str]
) -> list[CacheReport]:
    """Raises StoreUnavailable."""
    reports = []
    for name in names:
        stats = await store.cache_stats(name)
        held = await images.image_stats(name) if images else None
        reports.append(
            CacheReport(
                scope=name,
                results=stats.entries,
                result_bytes=stats.bytes,
                images=held.images if held else 0,
                image_bytes=held.bytes if held else 0,
                found=stats.counts,
            )
        )
    return reports


async def purge(store: CacheAdmin, images: ImageStore | None, names: Iterable[str]) -> int:
    """Empty each scope, and count its results. Raises StoreUnavailable."""
    purged = 0
    for name in names:
        purged += await store.purge(name)
        if images:
            await images.purge_images(name)
    return purged


def as_json(reports: Iterable[CacheReport]) -> str:
    return msgspec.json.format(msgspec.json.encode(list(reports))).decode()


def as_table(reports: Iterable[CacheReport]) -> str:
    lines = [f"{'scope':28}{'results':>9}{'images':>9}{'MiB':>9}  found"]
    for one in reports:
        size = (one.result_bytes + one.image_bytes) / 2**20
        found = ", ".join(f"{how} {count}" for how, count in sorted(one.found.items()))
        lines.append(f"{one.scope:28}{one.results:>9}{one.images:>9}{size:>9.1f}  {found}")
    return "\n".join(lines)
