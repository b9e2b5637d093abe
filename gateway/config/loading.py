"""From a file to a checked configuration."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from msgspec import Struct
from msgspec.structs import replace

from gateway.config.checks import catalogue_faults, faults_of_meaning
from gateway.config.decode import ConfigError, Fault, breaks, decode, read_yaml
from gateway.config.egress import Bypass, from_environment, parse_bypass, parse_proxy
from gateway.config.sections import Account, Config
from gateway.domain.catalogue import Alias, Catalogue, Model, matches
from gateway.domain.prices import PriceLists, region_of

FILLED = ("catalogue", "proxies")
"""Fields that are not keys of the file."""


class CatalogueFile(Struct, frozen=True):
    """`config/models.yaml`."""

    currency: str
    models: dict[str, Model]


def load_config(path: Path, environment: Mapping[str, str] = os.environ) -> Config:
    """Raises ConfigError with every fault, each with its path."""
    faults: list[Fault] = []
    document = read_yaml(path, environment, faults)
    for name in FILLED:
        if isinstance(document, dict) and name in document:
            faults.append(Fault(name, "unknown key", leaves_rest=True))
            del document[name]
    config = decode(document, Config, "", faults)
    if config is None or breaks(faults, 0):
        raise ConfigError(path, faults)
    config = with_catalogue(config, path.parent, faults)
    config = with_proxies(config, environment, faults)
    faults.extend(faults_of_meaning(config))
    if faults:
        raise ConfigError(path, faults)
    return config


def with_catalogue(
    config: Config, folder: Path = Path(), faults: list[Fault] | None = None
) -> Config:
    """With its models and aliases filled in; `models` is relative to `folder`."""
    faults = [] if faults is None else faults
    return replace(config, catalogue=load_catalogue(config, folder, faults))


def with_proxies(
    config: Config, environment: Mapping[str, str], faults: list[Fault] | None = None
) -> Config:
    """With the proxies filled in; the file comes before the environment."""
    faults = [] if faults is None else faults
    egress = config.egress
    proxies = from_environment(environment if egress.environment else {}, faults)
    if egress.proxy is not None:
        try:
            proxy = parse_proxy(egress.proxy.reveal(), "egress.proxy")
            proxies = replace(proxies, https=proxy, http=proxy)
        except ValueError as fault:
            faults.append(Fault("egress.proxy", str(fault)))
    if egress.no_proxy is not None:
        proxies = replace(proxies, bypasses=tuple(bypasses(egress.no_proxy, faults)))
    return replace(config, proxies=proxies)


def bypasses(rules: tuple[str, ...], faults: list[Fault]) -> Iterator[Bypass]:
    """The file's own rules; an unreadable one is a fault."""
    for index, rule in enumerate(rules):
        try:
            yield parse_bypass(rule)
        except ValueError as fault:
            faults.append(Fault(f"egress.no_proxy[{index}]", str(fault)))


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
    served = tuple(glob for account in config.accounts for glob in account.models) or ("*",)
    catalogue = Catalogue(models.currency, models.models, {**kept, **config.aliases}, served)
    return with_prices(catalogue, config.accounts)


def with_prices(catalogue: Catalogue, accounts: Iterable[Account]) -> Catalogue:
    """With the price of each model on each account that serves it."""
    used = tuple(accounts)
    prices = {
        name: {
            one.name: price_lists(one, name, model)
            for one in used
            if catalogue.covers(one.models, name)
        }
        for name, model in catalogue.models.items()
    }
    return replace(catalogue, prices=prices)


def price_lists(account: Account, name: str, model: Model) -> PriceLists:
    """The account's price for a model, else its region's, else the dearest."""
    for glob, tiers in account.prices.items():
        if matches((glob,), name):
            return (tiers,)
    return model.price_lists(region_of_account(account))


def region_of_account(account: Account) -> str | None:
    """Where an account makes its images; None if unknown."""
    try:
        host = urlsplit(account.base_url).hostname or ""
    except ValueError:  # which is a fault of its own
        host = ""
    return account.price_region or region_of(host)


def shipped(name: str) -> Path:
    """A default file: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parent.parent
    installed = package / "_config" / name
    return installed if installed.exists() else package.parent / "config" / name
