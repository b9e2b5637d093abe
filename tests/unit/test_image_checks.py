"""What `gateway check-config` warns of about images."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from gateway.config import Config, Images, with_catalogue
from gateway.config.warn import image_warnings
from gateway.domain.catalogue import AreaSizes, FixedSizes

SHIPPED = with_catalogue(Config(accounts=(), tenants=()))
MIB = 1024 * 1024


def warnings(config: Config = SHIPPED, **images: Any) -> list[str]:
    return list(map(str, image_warnings(replace(config, images=Images(**images)))))


def with_sizes(sizes: AreaSizes | FixedSizes) -> Config:
    """One model, whose pictures may be as large as that."""
    [name, model], *_ = SHIPPED.catalogue.models.items()
    models = {name: replace(model, sizes=sizes)}
    return replace(SHIPPED, catalogue=replace(SHIPPED.catalogue, models=models))


LARGEST: list[AreaSizes | FixedSizes] = [
    FixedSizes(("1024x1024", "4096x4096")),
    AreaSizes(min=262_144, max=4096 * 4096, max_ratio=8),
]


def test_the_default_limit_fits_every_picture() -> None:
    """Of the shipped catalogue, and the vendor's largest."""
    assert warnings() == []
    for sizes in LARGEST:
        assert warnings(with_sizes(sizes)) == []


@pytest.mark.parametrize("sizes", LARGEST)
def test_a_limit_below_the_largest_picture(sizes: AreaSizes | FixedSizes) -> None:
    [warning] = warnings(with_sizes(sizes), max_bytes=64 * MIB)

    assert warning.startswith("images.max_bytes: a PNG of ")


@pytest.mark.parametrize("network", ["0.0.0.0/0", "8.8.8.0/24", "2600::/16"])
def test_trust_in_public_networks(network: str) -> None:
    [warning] = warnings(trusted_networks=("10.0.0.0/8", "fd00::/8", network))

    assert (
        warning
        == f"images.trusted_networks[2]: {network} is public: public addresses need no trust"
    )
