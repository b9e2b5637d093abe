"""Faults of a configuration that its types cannot show: what fits together, and what is safe."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from ipaddress import ip_network
from typing import get_args
from urllib.parse import SplitResult, urlsplit

from msgspec.structs import replace

from gateway.config.decode import Fault, Secret
from gateway.config.redis_url import parse as parse_redis_url
from gateway.config.sections import Account, Config
from gateway.domain.catalogue import Alias, Catalogue, Model, matches
from gateway.domain.clock import find_zone
from gateway.domain.prices import Tiers
from gateway.observability.tracing import EXPORTER
from gateway.protocol.openai import Quality

ORIGIN = re.compile(r"\A[a-z][a-z0-9+.-]*://[^\s/@?#,*]+")
PLAIN = re.compile(r"[!-~]+")
LEVELS = tuple(level for level in get_args(Quality) if level != "auto")
NAME = re.compile(r"[A-Za-z0-9._:/-]{1,200}")


def faults_of_meaning(config: Config) -> Iterator[Fault]:
    """In the order of the file."""
    if not config.accounts:
        yield Fault("accounts", "at least one account is needed")
    for index, account in enumerate(config.accounts):
        yield from account_faults(account, f"accounts[{index}]")
    yield from network_faults(config)
    if config.otlp_endpoint is not None and not has_tracing():
        yield Fault("otlp_endpoint", "spans need the extra: pip install '.[otel]'")
    if config.catalogue.models:
        yield from alias_faults(config)
    yield from repeated("accounts", [account.name for account in config.accounts])
    yield from repeated("tenants", [tenant.name for tenant in config.tenants])
    if config.catalogue.models:
        yield from default_model_faults(config)
        yield from glob_faults(config)
    yield from key_faults(config)


def has_tracing() -> bool:
    try:
        return find_spec(EXPORTER) is not None
    except ImportError:  # not even its parent is
        return False


def network_faults(config: Config) -> Iterator[Fault]:
    """Hosts, networks and servers that cannot be meant."""
    networks = {"metrics.allow": config.metrics.allow or ()}
    networks["images.trusted_networks"] = config.images.trusted_networks
    for name, listed in networks.items():
        for index, network in enumerate(listed):
            if not is_network(network):
                yield Fault(f"{name}[{index}]", "expected a network such as 10.0.0.0/8")
    yield from listen_faults(config)
    yield from origin_faults(config.cors.allow_origins)
    if config.redis is not None:
        yield from redis_faults(config.redis.url, "redis.url")
    yield from image_cache_faults(config)
    if find_zone(config.budgets.time_zone) is None:
        yield Fault(
            "budgets.time_zone",
            f"no time zone is named {config.budgets.time_zone!r} on this machine: take one of the "
            "IANA database, as Asia/Shanghai, and install tzdata where it is missing",
        )
    for index, host in enumerate(config.images.allowed_hosts):
        if "://" in host or "/" in host or not host.strip("."):
            yield Fault(f"images.allowed_hosts[{index}]", "expected a host or a .suffix, no URL")


def listen_faults(config: Config) -> Iterator[Fault]:
    """Two addresses of which only one can be listened on."""
    own, main = config.metrics.listen, config.listen
    if own is None or own.port == 0 or own.port != main.port:
        return
    if own.host == main.host or {own.host, main.host} & {"0.0.0.0", "::"}:  # noqa: S104 - all of them
        yield Fault("metrics.listen.port", "is the port of `listen` as well; take another")


def origin_faults(origins: tuple[str, ...]) -> Iterator[Fault]:
    """Texts that no browser sends as an origin."""
    for index, origin in enumerate(origins):
        if origin != "*" and not ORIGIN.fullmatch(origin):
            wanted = "expected https://HOST, without a path, or *"
            yield Fault(f"cors.allow_origins[{index}]", wanted)


def alias_faults(config: Config) -> Iterator[Fault]:
    """Aliases that lead nowhere; an alias of an alias would hide which model answers."""
    for name, alias in config.aliases.items():
        if not NAME.fullmatch(name):
            yield Fault(f"aliases.{name!r}", "expected letters, digits and . _ : / -")
        if config.catalogue.has_model(name):
            yield Fault(f"aliases.{name}", "is the name of a model")
        yield from target_faults(config, f"aliases.{name}", "model", alias)
        if alias.edits is not None and not edits(config.catalogue, alias.edits):
            yield Fault(f"aliases.{name}.edits", f"no model that edits is named {alias.edits!r}")
        for level, target in alias.quality.items():
            if level not in LEVELS:
                expected = f"expected one of {', '.join(LEVELS)}"
                yield Fault(f"aliases.{name}.quality.{level}", expected)
            elif not matches(config.catalogue.served, target):
                yield Fault(f"aliases.{name}.quality.{level}", f"no account serves {target!r}")
            else:
                led = replace(alias, model=target)
                yield from target_faults(config, f"aliases.{name}", f"quality.{level}", led)


def target_faults(config: Config, path: str, place: str, alias: Alias) -> Iterator[Fault]:
    """A model behind an alias that does not exist, or does not make its size."""
    family = config.catalogue.family_of(alias.model)
    if family is None:
        yield Fault(f"{path}.{place}", f"no model named {alias.model!r}")
        return
    sizes = config.catalogue.models[family].sizes
    if alias.size is not None and not sizes.allows(alias.size):
        yield Fault(f"{path}.size", f"expected {sizes}, as {alias.model} takes")


def edits(catalogue: Catalogue, name: str) -> bool:
    family = catalogue.family_of(name)
    return family is not None and catalogue.models[family].edits > 0


def catalogue_faults(models: Mapping[str, Model]) -> Iterator[Fault]:
    """Models that no request could use, or that could not be paid for."""
    for name, model in models.items():
        path = f"models.models.{name}"
        yield from price_faults(model.price, f"{path}.price")
        try:
            model.sizes.validate()
        except ValueError as fault:
            yield Fault(f"{path}.sizes", str(fault))
        else:
            if model.default_size is not None and not model.sizes.allows(model.default_size):
                yield Fault(f"{path}.default_size", f"expected {model.sizes}")


def price_faults(price: Tiers | dict[str, Tiers], path: str) -> Iterator[Fault]:
    """A price that some image would not have."""
    lists = price if isinstance(price, dict) else {"": price}
    if not lists:
        yield Fault(path, "expected a price of at least one region")
    for region, tiers in lists.items():
        where = f"{path}.{region}" if region else path
        if not tiers or tiers[-1].up_to is not None:
            yield Fault(where, "the last tier must have no `up_to`")


def glob_faults(config: Config) -> Iterator[Fault]:
    """Names and globs that cover nothing, which are most likely mistyped."""
    names = (*config.catalogue.models, *config.catalogue.aliases)
    wanted = [
        *((f"tenants[{i}].models", t.models) for i, t in enumerate(config.tenants)),
        *((f"accounts[{i}].models", a.models) for i, a in enumerate(config.accounts)),
        *((f"accounts[{i}].rates", tuple(a.rates)) for i, a in enumerate(config.accounts)),
        *((f"accounts[{i}].prices", tuple(a.prices)) for i, a in enumerate(config.accounts)),
    ]
    for path, globs in wanted:
        for glob in globs:
            if not any(matches((glob,), name) for name in names) and not config.catalogue.has_model(
                glob
            ):
                yield Fault(path, f"{glob!r} covers no model or alias")


def account_faults(account: Account, path: str) -> Iterator[Fault]:
    """An account that could not be called, or whose key would travel in the clear."""
    parts = split_url(account.base_url)
    if parts is None:
        yield Fault(f"{path}.base_url", "expected https://HOST/api/v1")
    elif parts.scheme == "http" and parts.hostname not in {"127.0.0.1", "localhost", "::1"}:
        yield Fault(f"{path}.base_url", "http:// would send the key in the clear; use https://")
    for glob, tiers in account.prices.items():
        yield from price_faults(tiers, f"{path}.prices.{glob}")
    key = account.api_key.reveal()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        yield Fault(f"{path}.api_key", "expected a key without spaces or line ends")


def split_url(url: str) -> SplitResult | None:
    """The parts of an API's base URL; None if it is not one."""
    try:
        parts = urlsplit(url)
        is_url = bool(
            PLAIN.fullmatch(url)
            and parts.scheme in {"http", "https"}
            and parts.hostname
            and parts.port != 0
        )
    except ValueError:
        return None
    more = parts.query or parts.fragment or "@" in parts.netloc
    return parts if is_url and not more else None


def is_network(text: str) -> bool:
    try:
        ip_network(text)
    except ValueError:
        return False
    return True


def image_cache_faults(config: Config) -> Iterator[Fault]:
    """Bytes that other workers would look for and not find."""
    cache = config.image_cache
    if cache is None:
        return
    if cache.url is None and config.redis is not None:
        yield Fault("image_cache.url", "is missing: with `redis`, workers share what they keep")
    if cache.url is not None:
        yield from redis_faults(cache.url, "image_cache.url")


def redis_faults(url: Secret, path: str) -> Iterator[Fault]:
    """An address that the first command would fail at."""
    try:
        parse_redis_url(url.reveal())
    except ValueError as fault:
        yield Fault(path, str(fault))


def default_model_faults(config: Config) -> Iterator[Fault]:
    """Default models that do not exist, or that their tenant may not use."""
    if config.catalogue.find(config.default_model) is None:
        yield Fault("default_model", f"no model or alias named {config.default_model!r}")
    for index, tenant in enumerate(config.tenants):
        name = tenant.default_model
        if name is None:
            continue
        choice = config.catalogue.find(name)
        if choice is None:
            yield Fault(f"tenants[{index}].default_model", f"no model or alias named {name!r}")
        elif not choice.is_covered(tenant.models):
            yield Fault(
                f"tenants[{index}].default_model", f"{name!r} is not in the tenant's models"
            )


def key_faults(config: Config) -> Iterator[Fault]:
    """A key of two tenants, or a time without its zone."""
    seen: dict[str, str] = {}
    for index, tenant in enumerate(config.tenants):
        for number, key in enumerate(tenant.keys):
            path = f"tenants[{index}].keys[{number}]"
            if key.hash in seen:
                yield Fault(f"{path}.hash", f"the same key is at {seen[key.hash]}")
            seen.setdefault(key.hash, path)
            if key.expires_at is not None and key.expires_at.tzinfo is None:
                yield Fault(f"{path}.expires_at", "expected a time zone, for example a final Z")


def repeated(section: str, names: list[str]) -> Iterator[Fault]:
    """Names that appear twice in a section."""
    for index, name in enumerate(names):
        if name in names[:index]:
            yield Fault(f"{section}[{index}].name", f"{name!r} is already taken")
