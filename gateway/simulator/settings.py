"""Every knob of the simulator, in one typed value."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

Seconds = Annotated[float, Meta(ge=0)]
"""A duration in seconds, 0 or more."""
Latency = float | tuple[float, float]
"""Seconds a generation takes: fixed, or drawn evenly from `[low, high]`.

Checked in `Settings` itself, since msgspec 0.22 reads the wrong memory when a union has both a
float with a bound and a tuple of fixed length.
"""
Count = Annotated[int, Meta(ge=0)]

MIB = 1024 * 1024


class Rate(Struct, frozen=True, forbid_unknown_fields=True):
    """A published call rate: `count` calls per `per_s` seconds, `burst` of them at once."""

    count: Annotated[float, Meta(gt=0)]
    per_s: Annotated[float, Meta(gt=0)] = 1.0
    burst: Annotated[int, Meta(ge=1)] | None = None
    """Calls that may arrive together; `count` when absent."""


class Settings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the pretend vendor is like. Unknown keys are refused wherever it is decoded."""

    api_keys: tuple[str, ...] = ()
    """Keys accepted; any non-empty key when the tuple is empty."""
    accounts: dict[str, str] = {}
    """Account of each key, since rates hold per account; `default` for a key not named."""

    latency_s: Latency | dict[str, Latency] = 0.0
    """How long a generation takes; by model id when a mapping (`*` is the rest, else 0)."""
    task_pending_s: Seconds = 0.0
    """How long an asynchronous task stays PENDING before its `latency_s` of RUNNING."""

    strict_parameters: bool = False
    """Refuse keys in `parameters` that the vendor does not document for the model."""
    choice_per_image: bool = False
    """One element of `choices` per image, instead of one choice with every image in it."""
    missing_images: Count = 0
    """How many fewer images than asked each call yields, though never fewer than one."""
    usage_geometry: Literal["lying", "true"] = "lying"
    """`lying` reports a width and height the images do not have, as the vendor's examples do."""
    prompt_faults: bool = True
    """Whether `[simulate:KIND]` in a prompt asks for that fault."""

    image_base: str | None = None
    """Scheme and authority of result URLs; the request's own Host when absent."""
    url_life: Literal["1d", "7d"] = "1d"
    """First path segment of result URLs, and so how long they live."""
    url_life_s: Seconds | None = None
    """Life of result URLs in seconds, instead of the one `url_life` stands for."""
    render: Literal["text", "plain"] = "text"
    """`text` paints the prompt; `plain` is a solid colour, for load tests."""
    image_bytes: Annotated[int, Meta(ge=0, le=256 * MIB)] = 0
    """Pad each PNG up to about this many bytes with noise that does not compress."""
    issued_images_max: Annotated[int, Meta(ge=1)] = 20_000
    """Images remembered; older ones answer 404."""
    rendered_max_bytes: Count = 64 * MIB
    """Bytes of rendered PNG kept in memory."""

    max_body_bytes: Annotated[int, Meta(ge=1)] = 16 * MIB
    """Largest request body; four times that when an image travels in it as base64."""
    throttle: Literal["off", "token_bucket", "spacing", "fixed_window"] = "off"
    """How call rates are enforced; `spacing` is the strictest: no two calls within 0.9/rate."""
    rates: dict[str, Rate] = {}
    """Rates by model id, in place of the published ones in `models.yaml`."""
    retry_after_s: Seconds | None = None
    """`Retry-After` on 429 answers; the vendor sends none, which is the default."""

    def __post_init__(self) -> None:
        """Refuses a latency below zero."""
        given = self.latency_s
        latencies = list(given.values()) if isinstance(given, dict) else [given]
        bounds = [b for each in latencies for b in (each if isinstance(each, tuple) else (each,))]
        if any(bound < 0 for bound in bounds):
            raise ValueError("latency_s must not be negative")

    def changed(self, changes: dict[str, Any]) -> Settings:
        """These settings with some fields replaced; `msgspec.ValidationError` names a bad one."""
        merged = {name: getattr(self, name) for name in self.__struct_fields__} | changes
        return msgspec.convert(msgspec.to_builtins(merged), type=Settings)


LIFELIKE = Settings(latency_s=1.5)
"""What `gateway simulate` starts with: slow enough to feel real, quick enough to play with."""
