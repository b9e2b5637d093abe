"""Edits as the vendor is asked for them, and which cannot be honoured."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.domain.catalogue import Choice
from gateway.domain.errors import InvalidRequest
from gateway.domain.pictures import Inputs, Picture
from gateway.domain.prices import Money
from gateway.protocol.dashscope import InputImage, Text
from gateway.protocol.openai import ImageEditRequest, ImageReference
from gateway.results.cache_policy import fingerprint
from gateway.translate.request import Plan, to_dashscope
from tests.running import shipped_catalogue

MIB = 1024 * 1024
ADDRESS = "https://example.com/a.png"


def chosen(name: str) -> Choice:
    found = shipped_catalogue().find(name, is_edit=True)
    assert found is not None
    return found


def uploaded(seed: int = 0, size: int = 1000) -> Picture:
    return Picture(f"sha256:{seed:064x}", "image/png", size, None)  # type: ignore[arg-type]


def plan(model: str, *given: Picture | str, **fields: Any) -> Plan:
    request = ImageEditRequest(prompt="a hat", images=[ImageReference()], **fields)
    return to_dashscope(request, chosen(model), "nearest", Inputs(given))


def test_pictures_come_in_their_order_before_the_text() -> None:
    [call] = plan("qwen-image-2.0", uploaded(2), ADDRESS, uploaded(1)).calls

    assert call.input.messages[0].content == (
        InputImage(uploaded(2).reference),
        InputImage(ADDRESS),
        InputImage(uploaded(1).reference),
        Text("a hat"),
    )


def test_what_tells_plans_apart() -> None:
    plans = [
        plan("qwen-image-2.0", uploaded(1)),
        plan("qwen-image-2.0", uploaded(2)),
        plan("qwen-image-2.0", uploaded(1), uploaded(2)),
        plan("qwen-image-2.0", uploaded(2), uploaded(1)),
        plan("qwen-image-2.0", ADDRESS),
    ]

    assert len(set(map(fingerprint, plans))) == len(plans)
    assert fingerprint(plans[0]) == fingerprint(plan("qwen-image-2.0", uploaded(1, size=7)))


@pytest.mark.parametrize(
    ("model", "count", "words"),
    [
        ("qwen-image-max", 1, "cannot edit"),
        ("z-image-turbo", 1, "cannot edit"),
        ("qwen-image-2.0", 4, "up to 3"),
        ("qwen-image-edit", 0, "only edits"),
        ("qwen-image-2.1-pro", 11, "up to 10"),
    ],
)
def test_a_model_takes_so_many_pictures(model: str, count: int, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        plan(model, *map(uploaded, range(count)))


def test_all_of_a_call_fits_the_vendor_s_body_though_one_stands_in_it_often() -> None:
    """The vendor reads 64 MiB of a body, with one picture in it ten times as with ten."""
    once = uploaded(size=7 * MIB)

    assert plan("qwen-image-2.1-pro", *[once] * 6).inputs.sent_bytes < 60 * MIB
    with pytest.raises(InvalidRequest, match="too large together"):
        plan("qwen-image-2.1-pro", *[once] * 7)


def test_input_pictures_are_paid_for_where_the_vendor_charges_them() -> None:
    def cost(model: str, count: int) -> Money:
        return plan(model, *map(uploaded, range(count)), size="1024x1024").cost()

    assert cost("qwen-image-3.0", 2).micros - cost("qwen-image-3.0", 1).micros == 22_483
    assert cost("qwen-image-2.0", 2) == cost("qwen-image-2.0", 1)
