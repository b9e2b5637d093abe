"""An OpenAI request becomes one or more of the vendor's."""

from __future__ import annotations

from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.catalogue import Choice, Size
from gateway.domain.errors import InvalidRequest
from gateway.protocol.dashscope import Parameters, Text
from gateway.protocol.openai import ImageRequest
from gateway.translate.request import SEEDS, Plan, SizePolicy, remaining, split, to_dashscope
from tests.running import shipped_catalogue

PRO: Final = "qwen-image-2.0-pro"
PLUS: Final = "qwen-image-plus"


def choice(name: str = PRO) -> Choice:
    found = shipped_catalogue().find(name)
    assert found is not None
    return found


def plan(model: str = PRO, policy: Any = "nearest", **fields: Any) -> Plan:
    return to_dashscope(ImageRequest(**{"prompt": "a fox", **fields}), choice(model), policy)


def counts(of: Plan) -> list[int | None]:
    return [call.parameters.n for call in of.calls]


def param_of(model: str = PRO, policy: Any = "nearest", **fields: Any) -> str | None:
    with pytest.raises(InvalidRequest) as caught:
        plan(model, policy, **fields)
    return caught.value.param


@pytest.mark.parametrize(
    ("model", "n", "expected"),
    [
        (PRO, None, [1]),
        (PRO, 1, [1]),
        (PRO, 6, [6]),
        (PRO, 7, [4, 3]),
        (PRO, 10, [5, 5]),
        (PLUS, 1, [1]),
        (PLUS, 7, [1] * 7),
        ("qwen-image-max", 10, [1] * 10),
        ("qwen-image", 3, [1] * 3),
        ("wan2.6-t2i", 10, [4, 3, 3]),
    ],
)
def test_n_is_split_evenly_over_as_few_calls_as_there_can_be(
    model: str, n: int | None, expected: list[int]
) -> None:
    assert counts(plan(model, n=n)) == expected
    assert plan(model, n=n).images == sum(expected)


requests = st.tuples(st.integers(1, 10), st.integers(1, 10), st.integers(0, SEEDS - 1))


def seeds_used(call: Parameters) -> set[int]:
    """The vendor draws the images of a call from its seed on."""
    assert call.seed is not None
    return {(call.seed + index) % SEEDS for index in range(call.n or 1)}


@given(asked=requests)
def test_no_two_images_of_a_request_share_a_seed(asked: tuple[int, int, int]) -> None:
    images, per_call, seed = asked

    calls = split(Parameters(seed=seed), images, per_call)

    assert all(0 <= (call.seed or 0) < SEEDS for call in calls)
    assert sum(call.n or 0 for call in calls) == images
    assert all(1 <= (call.n or 0) <= per_call for call in calls)
    assert len(set.union(*map(seeds_used, calls))) == images
    assert calls[0].seed == seed
    assert calls == split(Parameters(seed=seed), images, per_call)


@given(asked=requests, received=st.integers(0, 9))
def test_what_is_asked_for_again_has_a_seed_that_none_had(
    asked: tuple[int, int, int], received: int
) -> None:
    """The images that are still owed are those that the first answer would have gone on with."""
    images, _, seed = asked
    received = min(received, images - 1)
    [call] = plan(n=None, seed=seed).calls
    whole = to_dashscope(
        ImageRequest(prompt="a fox", n=min(images, 6), seed=seed), choice(), "nearest"
    ).calls[0]
    received = min(received, (whole.parameters.n or 1) - 1)

    rest = remaining(whole, received)

    assert rest.parameters.n == (whole.parameters.n or 1) - received
    first = {(seed + index) % SEEDS for index in range(received)}
    assert first.isdisjoint(seeds_used(rest.parameters))
    assert (rest.model, rest.input) == (whole.model, whole.input)
    assert remaining(call, 0) == call


def test_without_a_seed_none_is_sent() -> None:
    assert [call.parameters.seed for call in plan(n=7).calls] == [None, None]
    assert remaining(plan(n=3).calls[0], 1).parameters.seed is None


def test_the_last_seed_is_followed_by_the_first() -> None:
    calls = plan(n=7, seed=SEEDS - 1).calls

    assert [call.parameters.seed for call in calls] == [SEEDS - 1, 3]


@pytest.mark.parametrize(
    ("model", "size", "sent"),
    [
        (PRO, None, "2048*2048"),
        (PRO, "auto", "2048*2048"),
        (PRO, "1024x1024", "1024*1024"),
        (PRO, "1033x1032", "1033*1032"),
        (PRO, "512x512", "512*512"),
        (PRO, "256x256", "512*512"),
        (PLUS, None, "1664*928"),
        (PLUS, "1024x1024", "1328*1328"),
        (PLUS, "1328x1328", "1328*1328"),
        (PLUS, "3840x2160", "1664*928"),
        ("qwen-image-3.0", None, None),
        ("qwen-image-3.0", "1024x1024", "1024*1024"),
    ],
)
def test_the_size_that_is_sent(model: str, size: str | None, sent: str | None) -> None:
    """With an asterisk; as asked where that is legal; none where the model chooses."""
    found = plan(model, size=size)

    assert found.calls[0].parameters.size == sent
    assert found.size == (Size.parse(sent.replace("*", "x")) if sent else None)


@pytest.mark.parametrize("policy", ["nearest", "strict"])
@pytest.mark.parametrize("size", ["x", "0x0", "-1x5", "1e3x2", "99999999x1", "1024", "AUTO", ""])
def test_a_size_that_is_none_is_refused(size: str, policy: SizePolicy) -> None:
    assert param_of(policy=policy, size=size) == "size"


def test_a_strict_tenant_gets_no_other_size() -> None:
    """It is told which ones there are."""
    with pytest.raises(InvalidRequest, match=r"plus makes no images of 1024x1024\. .*1328x1328"):
        plan(PLUS, "strict", size="1024x1024")
    assert plan(PLUS, "strict", size="1328x1328").size == Size(1328, 1328)
    assert plan(PLUS, "strict", size="auto").size == Size(1664, 928)
    assert param_of(PRO, "strict", size="256x256") == "size"


@pytest.mark.parametrize(
    ("model", "name", "value"),
    [
        ("z-image-turbo", "negative_prompt", "dogs"),
        ("z-image-turbo", "negative_prompt", ""),
        ("z-image-turbo", "watermark", True),
        ("wan2.7-image", "negative_prompt", "dogs"),
        (PRO, "prompt_extend_mode", "direct"),
        (PRO, "enable_thinking", True),
        ("wan2.7-image", "prompt_extend", True),
    ],
)
def test_a_parameter_that_the_model_has_not_is_refused(
    model: str, name: str, value: object
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        plan(model, **{name: value})

    assert caught.value.param == name
    assert caught.value.code == "unsupported_parameter"


@pytest.mark.parametrize("name", ["watermark", "prompt_extend"])
def test_switching_off_what_the_model_has_not_is_fine(name: str) -> None:
    found = plan("z-image-turbo" if name == "watermark" else "wan2.7-image", **{name: False})

    assert getattr(found.calls[0].parameters, name) is None


def test_parameters_are_explicit_where_documents_disagree_on_the_default() -> None:
    assert plan().calls[0].parameters == Parameters(
        size="2048*2048", n=1, prompt_extend=True, watermark=False
    )
    assert plan("z-image-turbo").calls[0].parameters.prompt_extend is False


@pytest.mark.parametrize("prompt", ["", " ", "\n", "\t \u3000"])
def test_an_empty_prompt_is_refused(prompt: str) -> None:
    assert param_of(prompt=prompt) == "prompt"


@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
def test_a_nul_is_refused(name: str) -> None:
    assert param_of(**{name: "a\0b"}) == name


def test_an_empty_negative_prompt_is_fine() -> None:
    """The vendor's own samples send one."""
    assert plan(negative_prompt="").calls[0].parameters.negative_prompt == ""


@pytest.mark.parametrize(
    ("prompt", "negative", "warned"),
    [(800, 500, []), (801, 500, ["prompt"]), (800, 501, ["negative_prompt"]),
     (801, 501, ["prompt", "negative_prompt"]), (50_000, 0, ["prompt"])],
)  # fmt: skip
def test_a_long_text_is_sent_whole_and_warned_of(
    prompt: int, negative: int, warned: list[str]
) -> None:
    found = plan(prompt="x" * prompt, negative_prompt="y" * negative)

    assert [warning.split(" ")[0] for warning in found.warnings] == warned
    [message] = found.calls[0].input.messages
    assert message.content == (Text("x" * prompt),)


@pytest.mark.parametrize(
    ("name", "asked", "given"),
    [("gpt-image-1", None, "b64_json"), ("dall-e-3", None, "url"), (PRO, None, "url"),
     ("gpt-image-1", "url", "url"), ("dall-e-3", "b64_json", "b64_json"),
     (PRO, "b64_json", "b64_json")],
)  # fmt: skip
def test_the_response_format(name: str, asked: Any, given: str) -> None:
    """As asked, exactly; else as the users of the name expect."""
    assert plan(name, response_format=asked).response_format == given


def test_a_snapshot_is_sent_under_its_own_name() -> None:
    name = f"{PRO}-2026-06-22"

    assert plan(name).model == name
    assert plan(name).calls[0].model == name


def test_ignored_fields_are_named_in_a_fixed_order() -> None:
    assert plan(user="jane", quality="hd", style=None).ignored == ("quality", "user")


def test_translating_twice_gives_the_same() -> None:
    """Retries translate nothing anew, but they could."""
    assert plan(n=7, seed=3, size="512x512") == plan(n=7, seed=3, size="512x512")
