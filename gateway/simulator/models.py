"""The vendor's models as data: what each accepts, and how often it may be called."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from gateway.simulator.settings import Rate

Endpoint = Literal["sync", "image-generation", "text2image", "image2image"]
"""The four generation paths; only `sync` answers with the images themselves."""

DEFAULT_FILE_NAME = "{request_id}-{number}.png"


class Family(Struct, frozen=True, forbid_unknown_fields=True):
    """Models whose replies look alike; `replies/success/<name>.json` is that look."""

    parameters: tuple[str, ...]
    file_name: str = DEFAULT_FILE_NAME


class Entry(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One model as `models.yaml` states it. Sizes are `W*H` in pixels."""

    family: str
    rate: Rate
    serves: tuple[Endpoint, ...]
    default_size: str
    snapshots: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    images: tuple[int, int] = (0, 0)
    n: tuple[int, int] = (1, 1)
    n_default: int = 1
    n_sequential: int | None = None
    area: tuple[int, int] | None = None
    aspect: float | None = None
    side: tuple[int, int] | None = None
    sizes: tuple[str, ...] = ()
    keywords: dict[str, str] = {}
    edit_size: Literal["input", "megapixel"] | None = None
    prompt_extend: bool = True


class Model(Struct, frozen=True):
    """A model id the vendor knows, dated snapshots included."""

    name: str
    facts: Entry
    family_name: str
    file_name: str
    documented: frozenset[str]
    """Keys of `parameters` the vendor documents for this model."""


class _Catalogue(Struct, frozen=True, forbid_unknown_fields=True):
    parameters: tuple[str, ...]
    families: dict[str, Family]
    models: dict[str, Entry]


def load_models() -> dict[str, Model]:
    """Every model id, snapshots spelled out, read from `models.yaml`."""
    text = Path(__file__).with_name("models.yaml").read_bytes()
    catalogue = msgspec.yaml.decode(text, type=_Catalogue)
    return {
        name: _model(name, entry, catalogue.families[entry.family])
        for base, entry in catalogue.models.items()
        for name in (base, *(f"{base}-{date}" for date in entry.snapshots))
    }


def _model(name: str, entry: Entry, family: Family) -> Model:
    return Model(
        name=name,
        facts=entry,
        family_name=entry.family,
        file_name=family.file_name,
        documented=frozenset(entry.parameters or family.parameters),
    )
