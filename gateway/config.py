"""The configuration file: one YAML document, typed, unknown keys refused, every fault at once.

`${NAME}` in any value is replaced from the environment; a `Secret` may also be `{file: PATH}`.
`gateway.decoding` finds the faults of form; this module adds those of meaning.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import SplitResult, urlsplit

from msgspec import Meta, Struct, field
from msgspec.structs import replace

from gateway.catalogue import Alias, Catalogue, Model, Money, Rate, matches
from gateway.decoding import ConfigError, Fault, Secret, decode, read_yaml

Port = Annotated[int, Meta(ge=0, le=65535)]
Positive = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
KeyHash = Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}$")]
Globs = tuple[str, ...]
REDIS_SCHEMES = (
    "redis://",
    "rediss://",
    "unix://",
    "redis+sentinel://",
    "rediss+sentinel://",
    "redis+cluster://",
    "rediss+cluster://",
)


class Listen(Struct, frozen=True):
    """Where the gateway listens."""

    host: str = "127.0.0.1"
    port: Port = 8080


class OnLoss(Struct, frozen=True):
    """What happens while Redis is away: see docs/reliability.md for the bound of each."""

    rates: Literal["local", "allow", "refuse"] = "local"
    """Requests and images a minute, concurrent requests; `local` is this worker's share."""
    budgets: Literal["local", "allow", "refuse"] = "refuse"
    """Images a day, spend a month."""


class Redis(Struct, frozen=True, kw_only=True):
    """The store that workers and replicas share."""

    url: Secret
    """redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://; docs/reliability.md."""
    prefix: str = "gateway:"
    connect_timeout_ms: Count = 100
    command_timeout_ms: Count = 50
    replicas: Count = 1
    """Gateways that share it; used for the local share until Redis has told the number."""
    on_loss: OnLoss = OnLoss()


class Pacing(Struct, frozen=True):
    """How many upstream calls may wait for their slot in one worker."""

    waiting_per_model: Count = 10_000
    waiting_per_tenant: Count = 5_000
    """Of one tenant for one model."""


class Account(Struct, frozen=True, kw_only=True):
    """A DashScope account. Accounts are tried in the order of the file."""

    name: Name
    base_url: str
    api_key: Secret
    models: Globs = ("*",)
    """Models this account is used for."""
    rates: dict[str, Rate] = field(default_factory=dict)
    """By model or glob, over the catalogue's published rate; the first match holds."""


class Images(Struct, frozen=True):
    """Where result URLs may point, and how much is read from them."""

    allowed_hosts: tuple[str, ...] = (".aliyuncs.com",)
    """Exact hosts (`host`, `host:port`) or `.suffixes`; a private address only for an exact one."""
    allow_http: bool = False
    max_bytes: Count = 32 * 1024 * 1024
    """The largest image, in bytes."""
    timeout_s: Positive = 60.0
    """For one image, from connect to the last byte."""


class Upstream(Struct, frozen=True):
    """How the vendor is called."""

    deadline_s: Positive = 300.0
    """For a whole image request; the vendor's own limit is 300 s."""
    connect_timeout_s: Positive = 5.0
    keepalive_s: Positive = 15.0
    """How long an idle connection is kept."""
    max_connections: Count = 10_000


class Key(Struct, frozen=True, kw_only=True):
    """One key of a tenant; `hash` is `sha256:` and the hex SHA-256 of the whole key."""

    hash: KeyHash
    label: str = ""
    expires_at: datetime | None = None


class Limits(Struct, frozen=True, kw_only=True):
    """What a tenant may use; an absent one is no limit."""

    requests_per_minute: Count | None = None
    images_per_minute: Count | None = None
    concurrent_requests: Count | None = None
    images_per_day: Count | None = None
    spend_per_month: Money | None = None
    """In the catalogue's currency."""


class Cache(Struct, frozen=True, kw_only=True):
    """Which of a tenant's answers are kept, and for how long."""

    mode: Literal["off", "seeded", "always"] = "seeded"
    ttl_s: Positive = 86_400.0


class Tenant(Struct, frozen=True, kw_only=True):
    """A team or an application, with its keys and rights."""

    name: Name
    keys: tuple[Key, ...]
    models: Globs = ("*",)
    """Names or globs of the models and aliases it may use."""
    default_model: str | None = None
    """For requests that name none; absent: the top-level `default_model`."""
    size_policy: Literal["nearest", "strict"] = "nearest"
    deadline_s: Positive | None = None
    limits: Limits = Limits()
    cache: Cache = Cache()


class Config(Struct, frozen=True, kw_only=True):
    """The whole file."""

    accounts: tuple[Account, ...]
    tenants: tuple[Tenant, ...]
    listen: Listen = Listen()
    redis: Redis | None = None
    images: Images = Images()
    upstream: Upstream = Upstream()
    pacing: Pacing = Pacing()
    default_model: str = "qwen-image-2.0-pro"
    models: str | None = None
    """A catalogue to use instead of the shipped one; relative to this file."""
    aliases: dict[str, Alias] = field(default_factory=dict)
    max_body_bytes: Count = 1024 * 1024
    catalogue: Catalogue = Catalogue("", {})
    """Filled by `load_config` from `models` and the shipped tables; not a key of the file."""


class CatalogueFile(Struct, frozen=True):
    """`config/models.yaml`."""

    currency: str
    models: dict[str, Model]


def load_config(path: Path, environment: Mapping[str, str] = os.environ) -> Config:
    """Read and check a configuration file.

    Raises:
        ConfigError: every fault in it, each with its path.
    """
    faults: list[Fault] = []
    document = read_yaml(path, environment, faults)
    if isinstance(document, dict) and "catalogue" in document:
        faults.append(Fault("catalogue", "unknown key"))
        del document["catalogue"]
    config = decode(document, Config, "", faults)
    if config is None or faults:
        raise ConfigError(path, faults)
    config = with_catalogue(config, path.parent, faults)
    faults.extend(faults_of_meaning(config))
    if faults:
        raise ConfigError(path, faults)
    return config


def with_catalogue(
    config: Config, folder: Path = Path(), faults: list[Fault] | None = None
) -> Config:
    """The same with its models and aliases filled in; `folder` is where `models` is relative to."""
    faults = [] if faults is None else faults
    return replace(config, catalogue=load_catalogue(config, folder, faults))


def load_catalogue(config: Config, folder: Path, faults: list[Fault]) -> Catalogue:
    """The shipped models and aliases, or the configured models, under the configured aliases."""
    source = folder / config.models if config.models else shipped("models.yaml")
    models = decode(read_yaml(source, {}, faults, "models"), CatalogueFile, "models", faults)
    aliases = decode(
        read_yaml(shipped("aliases.yaml"), {}, faults), dict[str, Alias], "aliases", faults
    )
    if models is None or aliases is None:
        return Catalogue("", {})
    faults.extend(catalogue_faults(models.models))
    kept = {name: alias for name, alias in aliases.items() if alias.model in models.models}
    return Catalogue(models.currency, models.models, {**kept, **config.aliases})


def shipped(name: str) -> Path:
    """A default file: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    installed = package / "_config" / name
    return installed if installed.exists() else package.parent / "config" / name


def faults_of_meaning(config: Config) -> Iterator[Fault]:
    """Faults that types cannot show, in the order of the file."""
    if not config.accounts:
        yield Fault("accounts", "at least one account is needed")
    for index, account in enumerate(config.accounts):
        yield from account_faults(account, f"accounts[{index}]")
    if config.redis is not None:
        yield from redis_faults(config.redis)
    for index, host in enumerate(config.images.allowed_hosts):
        if "://" in host or "/" in host or not host.strip("."):
            yield Fault(f"images.allowed_hosts[{index}]", "expected a host or a .suffix, no URL")
    for name, alias in config.aliases.items():
        if config.catalogue.models and not config.catalogue.has_model(alias.model):
            yield Fault(f"aliases.{name}.model", f"no model named {alias.model!r}")
    yield from repeated("accounts", [account.name for account in config.accounts])
    yield from repeated("tenants", [tenant.name for tenant in config.tenants])
    yield from default_model_faults(config)
    yield from key_faults(config)


def catalogue_faults(models: Mapping[str, Model]) -> Iterator[Fault]:
    """Models that no request could use, or that could not be paid for."""
    for name, model in models.items():
        path = f"models.models.{name}"
        if not model.price or model.price[-1].up_to is not None:
            yield Fault(f"{path}.price", "the last tier must have no `up_to`")
        try:
            model.sizes.validate()
        except ValueError as fault:
            yield Fault(f"{path}.sizes", str(fault))
        else:
            if model.default_size is not None and not model.sizes.allows(model.default_size):
                yield Fault(f"{path}.default_size", f"expected {model.sizes}")


def account_faults(account: Account, path: str) -> Iterator[Fault]:
    """An account that could not be called, or whose key would travel in the clear."""
    parts = split_url(account.base_url)
    if parts is None:
        yield Fault(f"{path}.base_url", "expected https://HOST/api/v1")
    elif parts.scheme == "http" and parts.hostname not in {"127.0.0.1", "localhost", "::1"}:
        yield Fault(f"{path}.base_url", "http:// would send the key in the clear; use https://")
    key = account.api_key.reveal()
    if not key or not key.isascii() or any(char.isspace() for char in key):
        yield Fault(f"{path}.api_key", "expected a key without spaces or line ends")


def split_url(url: str) -> SplitResult | None:
    """The parts of an API's base URL; None if it is not one."""
    try:
        parts = urlsplit(url)
        is_url = bool(parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0)
    except ValueError:
        return None
    return parts if is_url and not (parts.query or parts.fragment or parts.username) else None


def redis_faults(redis: Redis) -> Iterator[Fault]:
    """A URL of no known form; it is not shown, since it may hold a password."""
    if not redis.url.reveal().startswith(REDIS_SCHEMES):
        yield Fault("redis.url", f"expected one of {', '.join(REDIS_SCHEMES)}")


def default_model_faults(config: Config) -> Iterator[Fault]:
    """Default models that do not exist, or that their tenant may not use."""
    if not config.catalogue.models:
        return
    if config.catalogue.find(config.default_model) is None:
        yield Fault("default_model", f"no model or alias named {config.default_model!r}")
    for index, tenant in enumerate(config.tenants):
        name = tenant.default_model
        if name is None:
            continue
        if config.catalogue.find(name) is None:
            yield Fault(f"tenants[{index}].default_model", f"no model or alias named {name!r}")
        elif not matches(tenant.models, name):
            yield Fault(
                f"tenants[{index}].default_model", f"{name!r} is not in the tenant's models"
            )


def key_faults(config: Config) -> Iterator[Fault]:
    """A key that would open two doors, or a time whose zone has to be guessed."""
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
    """Names that stand twice in a section."""
    for index, name in enumerate(names):
        if name in names[:index]:
            yield Fault(f"{section}[{index}].name", f"{name!r} is already taken")
