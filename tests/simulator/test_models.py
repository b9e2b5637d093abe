from __future__ import annotations

import pytest

from gateway.simulator.models import load_models
from gateway.simulator.replies import Replies

MODELS = load_models()

DOCUMENTED = [
    "qwen-image-3.0-pro",
    "qwen-image-3.0",
    "qwen-image-2.1-pro",
    "qwen-image-2.1-turbo",
    "qwen-image-2.0-pro",
    "qwen-image-2.0-pro-2026-03-03",
    "qwen-image-2.0-pro-2026-04-22",
    "qwen-image-2.0-pro-2026-06-22",
    "qwen-image-2.0",
    "qwen-image-2.0-2026-03-03",
    "qwen-image-max",
    "qwen-image-max-2025-12-30",
    "qwen-image-plus",
    "qwen-image-plus-2026-01-09",
    "qwen-image",
    "qwen-image-edit",
    "qwen-image-edit-plus",
    "qwen-image-edit-plus-2025-10-30",
    "qwen-image-edit-plus-2025-12-15",
    "qwen-image-edit-max",
    "qwen-image-edit-max-2026-01-16",
    "z-image-turbo",
    "wan2.6-t2i",
    "wan2.6-image",
    "wan2.7-image",
    "wan2.7-image-pro",
    "wan2.5-t2i-preview",
    "wan2.5-i2i-preview",
]


def test_every_documented_model_is_known_and_no_other() -> None:
    """Dated snapshots included."""
    assert sorted(MODELS) == sorted(DOCUMENTED)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_every_model_has_a_reply_and_a_size_it_accepts(name: str) -> None:
    """So that no entry of the catalogue is a dead end."""
    model = MODELS[name]
    if model.facts.serves not in {("text2image",), ("image2image",)}:
        assert Replies().success(model.family_name, {})["output"]["choices"]
    if model.facts.sizes:
        assert model.facts.default_size in model.facts.sizes


@pytest.mark.parametrize(
    ("name", "per_minute"),
    [
        ("qwen-image-2.0-pro", 2),
        ("qwen-image-2.0-pro-2026-03-03", 2),
        ("qwen-image-max", 2),
        ("qwen-image-edit-max", 2),
        ("qwen-image-2.0", 120),
        ("qwen-image-plus", 120),
        ("z-image-turbo", 120),
        ("wan2.6-t2i", 300),
    ],
)
def test_the_published_rates(name: str, per_minute: float) -> None:
    """Two a minute for the best models, per account."""
    rate = MODELS[name].facts.rate
    assert rate.count / rate.per_s * 60 == per_minute
