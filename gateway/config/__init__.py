"""The configuration file: one YAML document, typed, unknown keys refused, every fault at once.

`${NAME}` in any value comes from the environment; a `Secret` may also be `{file: PATH}`.
`gateway.config.decode` finds the faults of form; this module adds those of meaning.
"""

from gateway.config.egress import Proxies, Proxy
from gateway.config.loading import load_config, with_catalogue, with_prices, with_proxies
from gateway.config.sections import (
    Account,
    Auth,
    Cache,
    Config,
    Cors,
    Egress,
    ImageCache,
    Images,
    Key,
    Limits,
    Listen,
    Metrics,
    MetricsListen,
    OnLoss,
    Pacing,
    Reading,
    Redis,
    Sending,
    Tenant,
    Uploads,
    Upstream,
    serves,
)

__all__ = [
    "Account",
    "Auth",
    "Cache",
    "Config",
    "Cors",
    "Egress",
    "ImageCache",
    "Images",
    "Key",
    "Limits",
    "Listen",
    "Metrics",
    "MetricsListen",
    "OnLoss",
    "Pacing",
    "Proxies",
    "Proxy",
    "Reading",
    "Redis",
    "Sending",
    "Tenant",
    "Uploads",
    "Upstream",
    "load_config",
    "serves",
    "with_catalogue",
    "with_prices",
    "with_proxies",
]
