"""Sizes, rates, money; which size is nearest; where a name leads."""

from __future__ import annotations

from datetime import date
from math import log
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.domain.catalogue import (
    Alias,
    AreaSizes,
    Catalogue,
    FixedSizes,
    InputSizes,
    Model,
    Rate,
    Size,
    matches,
    nearest,
)
from gateway.domain.prices import Money, Price, dearest, region_of
from tests.running import shipped_catalogue

CATALOGUE: Final = shipped_catalogue()
FIVE: Final = FixedSizes(("1664x928", "1472x1104", "1328x1328", "1104x1472", "928x1664"))
AREA: Final = AreaSizes(min=262144, max=4194304, max_ratio=8)
EVERY_MODEL: Final = pytest.mark.parametrize("model", CATALOGUE.models)
EVERY_SIZED_MODEL: Final = pytest.mark.parametrize(
    "model", [name for name, one in CATALOGUE.models.items() if one.sizes != InputSizes()]
)

sides = st.integers(1, 16384)
any_size = st.builds(Size, sides, sides)


@pytest.mark.parametrize("text", ["1x1", "1024x1024", "16384x1", "928x1664"])
def test_a_size_is_width_x_height(text: str) -> None:
    width, height = map(int, text.split("x"))

    assert Size.parse(text) == Size(width, height)
    assert str(Size.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "x", "1024", "1024x", "x1024", "0x0", "0x512", "512x0", "-1x5", "1e3x2", "99999999x1",
     "16385x1", "1x16385", "01x1", "1 x 1", " 1x1", "1x1\n", "1X1", "1*1", "1×1", "１x１", "1x1x1",
     "1.0x1", "+1x1", "0x1F", "autox1", None, 1024, 10.5, True, ["1x1"], b"1x1"],
)  # fmt: skip
def test_a_size_is_nothing_else(text: object) -> None:
    with pytest.raises(ValueError, match=r"expected WIDTHxHEIGHT|at most 16384"):
        Size.parse(text)


@given(size=any_size)
def test_every_size_reads_as_it_is_written(size: Size) -> None:
    assert Size.parse(str(size)) == size


@pytest.mark.parametrize(
    ("text", "per_second"), [("2/s", 2.0), ("30/min", 0.5), ("1/min", 1 / 60), ("unlimited", None)]
)
def test_a_rate(text: str, per_second: float | None) -> None:
    assert Rate.parse(text) == Rate(per_second)


@pytest.mark.parametrize(
    "text",
    ["", "2", "2/", "/s", "0/s", "-1/s", "1.5/s", "2/h", "2/m", "2 /s", "2/s ", "2/s/s", "²/s",
     "٢/s", "Unlimited", None, 2, True],
)  # fmt: skip
def test_no_rate(text: object) -> None:
    with pytest.raises(ValueError, match="expected a rate"):
        Rate.parse(text)


@pytest.mark.parametrize(
    ("value", "micros"),
    [(0, 0), (0.25, 250_000), ("0.000001", 1), (200.00, 200_000_000), (0.1, 100_000), (1e6, 10**12),
     ("0.550443", 550_443)],
)  # fmt: skip
def test_money_is_counted_in_millionths(value: object, micros: int) -> None:
    """So that ten times a tenth is one."""
    assert Money.parse(value) == Money(micros)


@pytest.mark.parametrize(
    "value",
    [-1, "-0.1", "0.0000001", 1e-7, "NaN", "Infinity", float("inf"), float("nan"), "", "5 CNY",
     True, False, None, [1]],
)  # fmt: skip
def test_no_money(value: object) -> None:
    with pytest.raises(ValueError, match="expected an amount"):
        Money.parse(value)


@pytest.mark.parametrize(("micros", "text"), [(0, "0"), (250_000, "0.25"), (200_000_000, "200")])
def test_money_is_written_as_a_plain_number(micros: int, text: str) -> None:
    assert str(Money(micros)) == text


@given(micros=st.integers(0, 10**15))
def test_money_reads_as_it_is_written(micros: int) -> None:
    assert Money.parse(str(Money(micros))) == Money(micros)


@pytest.mark.parametrize(
    ("wanted", "sent"),
    [
        ("1024x1024", "1328x1328"),
        ("512x512", "1328x1328"),
        ("256x256", "1328x1328"),
        ("1792x1024", "1664x928"),
        ("1024x1792", "928x1664"),
        ("1536x1024", "1472x1104"),
        ("1024x1536", "1104x1472"),
        ("3840x2160", "1664x928"),
        ("16384x1", "1664x928"),
        ("1x16384", "928x1664"),
    ],
)
def test_the_nearest_of_a_list(wanted: str, sent: str) -> None:
    """By aspect ratio: a square stays a square."""
    assert str(nearest(FIVE, Size.parse(wanted))) == sent


@pytest.mark.parametrize(
    ("wanted", "sent"),
    [
        ("256x256", "512x512"),
        ("3840x2160", "2720x1536"),
        ("2160x3840", "1536x2720"),
        ("4096x4096", "2048x2048"),
        ("100x100", "512x512"),
        ("16384x16384", "2048x2048"),
    ],
)
def test_the_nearest_by_area(wanted: str, sent: str) -> None:
    """The ratio first, then as near in area as the model allows."""
    found = nearest(AREA, Size.parse(wanted))

    assert AREA.allows(found)
    ratio = Size.parse(wanted).ratio
    assert abs(log(found.ratio / ratio)) <= abs(log(Size.parse(sent).ratio / ratio)) + 1e-6
    assert str(found) == sent or found.ratio == pytest.approx(ratio)


@pytest.mark.slow
@EVERY_SIZED_MODEL
@given(wanted=any_size)
def test_every_wish_has_a_legal_answer(model: str, wanted: Size) -> None:
    """Whatever is asked of whatever model, what is sent cannot be refused for its size."""
    sizes = CATALOGUE.models[model].sizes

    assert sizes.allows(nearest(sizes, wanted))


@pytest.mark.slow
@EVERY_SIZED_MODEL
@given(wanted=any_size)
def test_the_nearest_is_as_near_as_its_mirror_image(model: str, wanted: Size) -> None:
    """Wide wishes are served as well as tall ones."""
    sizes = CATALOGUE.models[model].sizes

    def distance(size: Size) -> float:
        return abs(log(nearest(sizes, size).ratio / size.ratio))

    assert distance(wanted) == pytest.approx(distance(Size(wanted.height, wanted.width)), abs=0.02)


@EVERY_SIZED_MODEL
def test_a_legal_size_is_its_own_nearest(model: str) -> None:
    sizes = CATALOGUE.models[model].sizes
    legal = sizes.candidates(Size(1024, 1024))
    assert legal
    for size in (*legal, CATALOGUE.models[model].default_size or legal[0]):
        assert sizes.allows(size)
        assert nearest(sizes, size) == size


def test_a_model_without_sizes_takes_none() -> None:
    assert not InputSizes().allows(Size(1024, 1024))
    assert InputSizes().candidates(Size(1024, 1024)) == []


@pytest.mark.parametrize(
    ("size", "legal"),
    [("512x512", True), ("511x512", False), ("2048x2048", True), ("2048x2049", False),
     ("256x2048", True), ("2048x256", True), ("256x2049", False), ("5792x724", True),
     ("1000x1000", True)],
)  # fmt: skip
def test_the_bounds_of_an_area(size: str, legal: bool) -> None:
    """512² to 2048² pixels, 1:8 to 8:1, both ends included."""
    assert AREA.allows(Size.parse(size)) is legal


def test_a_price_may_depend_on_the_size() -> None:
    lists = CATALOGUE.models["qwen-image-3.0"].price_lists("cn-beijing")

    assert dearest(lists, Size(1500, 1500)) == Money(250_000)
    assert dearest(lists, Size(1501, 1500)) == Money(500_000)
    assert dearest(lists, None) == Money(500_000)


@pytest.mark.parametrize(
    ("region", "micros"),
    [
        ("cn-beijing", 200_000),
        ("ap-southeast-1", 256_873),
        ("eu-central-1", 256_873),
        (None, 256_873),
    ],
)  # fmt: skip
def test_a_price_depends_on_the_region(region: str | None, micros: int) -> None:
    """Where nobody knows it, the dearest of those known is reckoned with."""
    model = CATALOGUE.models["qwen-image-2.0"]

    assert dearest(model.price_lists(region), None) == Money(micros)
    assert model.cost(None) == Money(256_873)


@pytest.mark.parametrize(
    ("host", "region"),
    [
        ("dashscope.aliyuncs.com", "cn-beijing"),
        ("dashscope-intl.aliyuncs.com", "ap-southeast-1"),
        ("dashscope-us.aliyuncs.com", "us-east-1"),
        ("cn-hongkong.dashscope.aliyuncs.com", "cn-hongkong"),
        ("vpc-cn-beijing.dashscope.aliyuncs.com", "cn-beijing"),
        ("ws-1a2b.eu-central-1.maas.aliyuncs.com", "eu-central-1"),
        ("maas.qwencloudapi.com", None),
        ("dashscope.aliyuncs.com.evil.test", None),
        ("127.0.0.1", "cn-beijing"),
        ("", None),
    ],
)
def test_a_host_tells_its_region(host: str, region: str | None) -> None:
    assert region_of(host) == region


def test_one_price_may_hold_everywhere() -> None:
    everywhere = replace(CATALOGUE.models["qwen-image"], price=(Price(Money(7)),))

    assert everywhere.price_lists("cn-beijing") == everywhere.price_lists(None)
    assert everywhere.cost(None) == Money(7)


def test_a_model_has_the_age_of_its_release() -> None:
    assert CATALOGUE.models["qwen-image"].created == 1_754_265_600


def model(**changes: Any) -> Model:
    facts = {
        "sizes": FIVE,
        "images_per_call": 1,
        "max_prompt": 800,
        "rate": Rate(None),
        "price": (Price(Money(1)),),
        "released": date(2026, 1, 1),
        **changes,
    }
    return Model(**facts)


NAMES: Final = Catalogue(
    "CNY",
    {"base": model(snapshots=("-20??-??-??",)), "base-pro": model(snapshots=("-2026-*",))},
    {"dall-e-3": Alias("base-pro", "b64_json"), "dated": Alias("base-2026-01-01")},
)


@pytest.mark.parametrize(
    ("name", "upstream", "form"),
    [
        ("base", "base", None),
        ("base-pro", "base-pro", None),
        ("base-2025-12-30", "base-2025-12-30", None),
        ("base-pro-2026-x", "base-pro-2026-x", None),
        ("dall-e-3", "base-pro", "b64_json"),
        ("dated", "base-2026-01-01", None),
    ],
)
def test_a_name_leads_to_a_model(name: str, upstream: str, form: str | None) -> None:
    choice = NAMES.find(name)

    assert choice is not None
    assert (choice.requested, choice.upstream_name) == (name, upstream)
    assert choice.response_format == form


@pytest.mark.parametrize(
    ("name", "default"),
    [("qwen-image-2.0", "2048x2048"), ("dall-e-2", "1024x1024"), ("dall-e-3", "1024x1024"),
     ("gpt-image-1", "2048x2048"), ("qwen-image-3.0", None)],
)  # fmt: skip
def test_the_size_of_a_request_without_one(name: str, default: str | None) -> None:
    """What dall-e clients are used to; GPT-image's and the models' own names leave it to these."""
    choice = CATALOGUE.find(name)

    assert choice is not None
    assert choice.default_size == (Size.parse(default) if default else None)


def test_an_alias_size_that_its_model_has_not_becomes_the_nearest() -> None:
    """The shipped aliases may lie over a catalogue of the operator's own."""
    catalogue = Catalogue("CNY", {"m": model()}, {"dall-e-3": Alias("m", size=Size(1024, 1024))})
    choice = catalogue.find("dall-e-3")

    assert choice is not None
    assert choice.default_size == Size(1328, 1328)


@pytest.mark.parametrize(
    "name",
    ["", "bas", "base-", "base-2025", "base-2025-12-300", "base-pro-2025-01-01", "Base", "base ",
     "base\n", "*", "base*", "base-pro-2026", "x-base", "dall-e-3-2026-01-01"],
)  # fmt: skip
def test_no_other_name_leads_anywhere(name: str) -> None:
    assert NAMES.find(name) is None


def test_a_snapshot_of_the_longer_name_is_not_one_of_the_shorter() -> None:
    found = NAMES.find("base-pro-2026-01-01")

    assert found is not None
    assert found.model is NAMES.models["base-pro"]


@pytest.mark.parametrize(
    ("globs", "name", "covered"),
    [
        (("*",), "anything", True),
        ((), "anything", False),
        (("qwen-*",), "qwen-image", True),
        (("qwen-*",), "my-qwen-image", False),
        (("qwen-image",), "qwen-image-max", False),
        (("QWEN-*",), "qwen-image", False),
        (("a", "b"), "b", True),
        (("a?c",), "abc", True),
        (("[ab]",), "b", True),
        (("a.c",), "abc", False),
        (("*",), "two\nlines", True),
        (("a",), "a\n", False),
        (("dall-e-*",), "dall-e-3", True),
    ],
)
def test_a_glob_covers_the_whole_name(globs: tuple[str, ...], name: str, covered: bool) -> None:
    assert matches(globs, name) is covered


def test_openai_s_own_names_lead_somewhere() -> None:
    """Retired ones too: tools go on sending them."""
    for name in (
        "dall-e-2", "dall-e-3", "gpt-image-1", "gpt-image-1-mini", "gpt-image-1.5", "gpt-image-2",
        "gpt-image-2-2026-04-21", "gpt-image-2.5-sunburst", "gpt-image-2.5-flare",
        "gpt-image-2.5-sunburst-2026-09-08", "gpt-image-2.5-flare-2026-09-08",
        "gpt-image-2.6-sunburst", "gpt-image-2.6-flare", "chatgpt-image-latest",
    ):  # fmt: skip
        choice = CATALOGUE.find(name)
        assert choice is not None, name
        assert choice.response_format == ("url" if name.startswith("dall-e") else "b64_json")
