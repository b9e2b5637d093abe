"""What a configuration allows and will hurt later: images too large, networks too wide."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_network

from gateway.config.decode import Fault
from gateway.config.sections import Config
from gateway.domain.catalogue import Model, Size
from gateway.domain.png import largest_png

EXTREMES = (Size(1, 1), Size(16, 1), Size(1, 16))


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
