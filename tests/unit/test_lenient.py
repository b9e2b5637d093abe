"""Requests in another vendor's dialect, as tenants may allow them."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.api.body import to_request
from gateway.protocol.openai import ImageRequest
from gateway.translate.fields import FOREIGN, KNOWN, SHOWN_NAMES, adapted


def test_what_cherry_studio_s_painting_page_sends() -> None:
    """As recorded: SiliconFlow's names, and a seed as text."""
    fields, left_out = adapted(
        {
            "model": "qwen-image-2.0",
            "prompt": "a fox",
            "negative_prompt": "",
            "image_size": "1024x1024",
            "batch_size": 2,
            "seed": "123",
            "num_inference_steps": 25,
            "guidance_scale": 4.5,
            "prompt_enhancement": False,
        }
    )
    request = to_request(fields, ImageRequest, strict=False)

    assert (request.size, request.n, request.seed) == ("1024x1024", 2, 123)
    assert request.prompt_extend is False
    assert request.negative_prompt is None
    assert left_out == ("num_inference_steps", "guidance_scale")


@pytest.mark.parametrize(("foreign", "own"), FOREIGN.items())
def test_each_foreign_name_is_one_of_ours(foreign: str, own: str) -> None:
    """Under its own name a field comes first, null or empty counts for nothing."""
    assert own in KNOWN
    assert foreign not in KNOWN
    assert adapted({foreign: 1, own: 2})[0] == {own: 2}
    assert adapted({foreign: 1, own: None})[0] == {own: 1}
    assert adapted({foreign: None, own: 2})[0] == {own: 2}
    assert adapted({foreign: "", own: 2})[0] == {own: 2}


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [("n", "2", 2), ("seed", "7", 7), ("watermark", "true", True), ("stream", "false", False)],
)
def test_numbers_and_truth_values_may_come_as_text(field: str, text: str, value: Any) -> None:
    request = to_request({"prompt": "a", field: text}, ImageRequest, strict=False)

    assert getattr(request, field) == value


def test_left_out_names_fit_into_a_header() -> None:
    """Whatever they hold, and however many there are."""
    odd = {"a\r\nset-cookie: x": 1, "ключ": 1, "b,c": 1, "x" * 500: 1}
    _, shown = adapted(odd)

    assert shown == ("a??set-cookie:?x", "????", "b?c", "x" * 64)
    assert len(adapted({f"field{i}": 1 for i in range(1000)})[1]) == SHOWN_NAMES
