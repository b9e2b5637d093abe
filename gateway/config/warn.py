"""What a configuration may say, and what will hurt later: for `gateway check-config`."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_network
from urllib.parse import urlsplit

from gateway.config.decode import Fault, Secret
from gateway.config.loading import region_of_account
from gateway.config.redis_url import RedisUrl, parse
from gateway.config.sections import Account, Config
from gateway.domain.catalogue import Model, Size, matches
from gateway.domain.png import largest_png
from gateway.domain.prices import region_of

NAMED_MAX = 5
WIDEST_NETWORK = 8
"""Prefix length of the widest network whose members one may know."""
SHORTEST_IDLE_S = 60.0
"""The default of AWS' and Alibaba's balancers; docs/operations.md has the others."""
READER_SIGNS = frozenset(("replica", "reader", "readonly", "ro"))
EXTREMES = (Size(1, 1), Size(16, 1), Size(1, 16))


def warnings_of(config: Config) -> Iterator[Fault]:
    """In the order of the file."""
    for index, account in enumerate(config.accounts):
        path = f"accounts[{index}]"
        yield from region_warnings(account, path)
        yield from price_warnings(account, config, path)
        yield from snapshot_warnings(account, config, path)
    yield from flat_price_warnings(config)
    yield from keep_alive_warnings(config)
    yield from redis_warnings(config)
    yield from image_warnings(config)
    yield from network_warnings(config)
    yield from drain_warnings(config)


def named(names: list[str]) -> str:
    """A few of the names, and how many more there are."""
    more = len(names) - NAMED_MAX
    shown = ", ".join(names[:NAMED_MAX])
    return f"{shown} and {more} more" if more > 0 else shown


def region_warnings(account: Account, path: str) -> Iterator[Fault]:
    """A region that the host contradicts."""
    told = region_of(urlsplit(account.base_url).hostname or "")
    if account.price_region and told and account.price_region != told and not is_local(account):
        message = f"the prices of {account.price_region} are booked, but its host is in {told}"
        yield Fault(f"{path}.price_region", message)


def is_local(account: Account) -> bool:
    """Whether it is a simulator on this machine."""
    return (urlsplit(account.base_url).hostname or "") in {"127.0.0.1", "localhost", "::1"}


def price_warnings(account: Account, config: Config, path: str) -> Iterator[Fault]:
    """Models without a known price in the account's region."""
    region = region_of_account(account)
    if is_local(account):
        return
    unknown = [
        name
        for name, model in config.catalogue.models.items()
        if isinstance(model.price, dict)
        and region not in model.price
        and config.catalogue.covers(account.models, name)
        and not any(matches((glob,), name) for glob in account.prices)
    ]
    if not unknown:
        return
    place = f"in {region}" if region else "in the region of its host, which is not known,"
    more = "" if region else f", or name it in {path}.price_region"
    message = (
        f"no price is known {place} for {named(unknown)}; the dearest that is known is booked. "
        f"Give them in {path}.prices{more}"
    )
    yield Fault(path if region else f"{path}.base_url", message)


def snapshot_warnings(account: Account, config: Config, path: str) -> Iterator[Fault]:
    """Rates and prices for a single snapshot, which nothing asks for."""
    for key, globs in (("rates", account.rates), ("prices", account.prices)):
        for glob in globs:
            family = config.catalogue.family_of(glob)
            if family not in {None, glob}:
                message = f"a snapshot has the rate and price of its model; name {family} instead"
                yield Fault(f"{path}.{key}.{glob}", message)


def flat_price_warnings(config: Config) -> Iterator[Fault]:
    """One price for accounts in several regions, whose prices differ by a tenth to a quarter."""
    regions = sorted({region_of_account(one) or "elsewhere" for one in config.accounts})
    flat = [
        name
        for name, model in config.catalogue.models.items()
        if not isinstance(model.price, dict)
        and any(config.catalogue.covers(one.models, name) for one in config.accounts)
    ]
    if len(regions) > 1 and flat:
        message = (
            f"the accounts are in {' and '.join(regions)}, and one price holds for all of them: "
            f"{named(flat)}. Give a price for each region"
        )
        yield Fault("models", message)


def keep_alive_warnings(config: Config) -> Iterator[Fault]:
    """Balancers that keep their connections for longer send requests into closing ones."""
    if config.listen.keep_alive_s <= SHORTEST_IDLE_S:
        message = (
            f"{config.listen.keep_alive_s:g} s is not longer than the idle time-out of a balancer "
            f"such as AWS' ALB ({SHORTEST_IDLE_S:g} s, or more where it is raised for images): "
            "some requests would end in its 502"
        )
        yield Fault("listen.keep_alive_s", message)


def redis_warnings(config: Config) -> Iterator[Fault]:
    """Addresses that answer, and then cannot do what is asked of them."""
    cache = config.image_cache
    urls = (
        ("redis.url", config.redis.url if config.redis else None),
        ("image_cache.url", cache.url if cache else None),
    )
    for path, url in urls:
        if url is not None:
            yield from address_warnings(parse(url.reveal()), path)
    if is_same_server(urls[0][1], urls[1][1]):
        message = (
            "image bytes are on the Redis of the limits: one that may evict forgets budgets, and "
            "one that may not fills up. Use two"
        )
        yield Fault("image_cache.url", message)


def address_warnings(url: RedisUrl, path: str) -> Iterator[Fault]:
    """By what the names of hosts say."""
    if url.is_cluster or url.service is not None or url.socket is not None:
        return
    [(host, _)] = url.hosts
    first, *others = host.lower().split(".")
    words = first.split("-")
    scheme = "rediss+cluster" if url.tls else "redis+cluster"
    if "cluster" in words or "clustercfg" in {*words, *others}:
        yield Fault(path, f"{host} looks like the address of a cluster: use {scheme}://")
    if not READER_SIGNS.isdisjoint({*words, *others}):
        yield Fault(path, f"{host} looks like the address of read-only replicas: use the primary's")


def is_same_server(one: Secret | None, other: Secret | None) -> bool:
    """Whichever the database."""
    if one is None or other is None:
        return False
    first, second = parse(one.reveal()), parse(other.reveal())
    return (first.hosts, first.socket, first.service) == (
        second.hosts,
        second.socket,
        second.service,
    )


def network_warnings(config: Config) -> Iterator[Fault]:
    """Metrics for everybody: they name tenants, accounts and what is spent."""
    for index, network in enumerate(config.metrics.allow or ()):
        if ip_network(network).prefixlen < WIDEST_NETWORK:
            yield Fault(f"metrics.allow[{index}]", f"{network} lets almost anybody read /metrics")


def drain_warnings(config: Config) -> Iterator[Fault]:
    """A drain that gives up what is paid for."""
    deadlines = [config.upstream.deadline_s, *(t.deadline_s or 0.0 for t in config.tenants)]
    if config.drain_s <= max(deadlines):
        message = (
            f"a stop waits {config.drain_s:g} s, a request may take {max(deadlines):g} s: what is "
            "being made then is paid for in vain"
        )
        yield Fault("drain_s", message)


def image_warnings(config: Config) -> Iterator[Fault]:
    """For `gateway check-config`; none is a fault."""
    limit = config.images.max_bytes
    for name, model in config.catalogue.models.items():
        most = max(map(largest_png, sizes_of(model)), default=0)
        if most > limit:
            yield Fault(
                "images.max_bytes",
                f"a PNG of {name} may have {most} bytes: with {limit} it is refused after paying",
            )
    for index, network in enumerate(config.images.trusted_networks):
        if ip_network(network).is_global:
            yield Fault(
                f"images.trusted_networks[{index}]",
                f"{network} is public: public addresses need no trust",
            )


def sizes_of(model: Model) -> Iterator[Size]:
    """The largest sizes of a model, among others."""
    for shape in EXTREMES:
        yield from model.sizes.candidates(shape)
