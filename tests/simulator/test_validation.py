from __future__ import annotations

from typing import Any

import pytest

from gateway.simulator.replies import Refused
from gateway.simulator.validation import Rules, read_generation
from tests.simulator.reading import MODELS, PIXEL, SYNC, TEXT, content_of, read, refusal


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"text"', b"\xff\xfe", b"null"])
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    """Also when it is not even UTF-8."""
    with pytest.raises(Refused, match="InvalidParameter-body"):
        read_generation(body, MODELS, SYNC)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ({"model": None}, (400, "BadRequest.EmptyModel")),
        ({"model": 3}, (400, "BadRequest.EmptyModel")),
        ({"model": ""}, (400, "BadRequest.EmptyModel")),
        ({"given": "a cat"}, (400, "BadRequest.EmptyInput")),
        ({"given": [1]}, (400, "BadRequest.EmptyInput")),
    ],
)
def test_a_missing_part_has_a_code_of_its_own(
    call: dict[str, Any], expected: tuple[int, str]
) -> None:
    """`BadRequest.Empty…`, as in the vendor's table."""
    assert refusal(**call)[:2] == expected


def test_an_unknown_model_is_404_with_the_code_of_a_bad_parameter() -> None:
    """As captured live, though the vendor's table says otherwise."""
    expected = (404, "InvalidParameter", "Model not exist.")
    assert refusal(model="gpt-image-1") == expected


@pytest.mark.parametrize("model", ["wan2.5-t2i-preview", "wan2.5-i2i-preview"])
def test_a_task_only_model_is_denied_on_the_synchronous_path(model: str) -> None:
    """403, with the vendor's message."""
    message = "current user api does not support synchronous calls"
    assert refusal(model=model) == (403, "AccessDenied", message)


def test_a_synchronous_only_model_is_denied_on_a_task_path() -> None:
    """403, with the vendor's message."""
    message = "current user api does not support asynchronous calls"
    rules = Rules("image-generation")
    assert refusal(model="qwen-image-2.0-pro", rules=rules) == (403, "AccessDenied", message)


def test_a_model_on_the_wrong_task_path_is_a_url_error() -> None:
    """The message people meet when they use an old SDK."""
    expected = (400, "InvalidParameter", "url error, check url!")
    assert refusal(model="qwen-image-plus", rules=Rules("image-generation")) == expected


@pytest.mark.parametrize(
    ("model", "given", "message"),
    [
        ("qwen-image-plus", {"prompt": "a cat"}, "No messages found in input"),
        ("qwen-image-plus", {"messages": []}, "No messages found in input"),
        ("qwen-image-plus", {"messages": "x"}, "No messages found in input"),
        ("qwen-image-plus", {"messages": [1, 2]}, "messages length only support 1"),
        (
            "qwen-image-plus",
            {"messages": [1]},
            "Required body invalid, please check the request body format.",
        ),
        (
            "qwen-image-plus",
            {"messages": [{"role": "system", "content": [TEXT]}]},
            "messages role only support user",
        ),
        ("qwen-image-plus", content_of(), "lack of image or text"),
        ("qwen-image-plus", content_of({"text": ""}), "lack of image or text"),
        ("qwen-image-plus", content_of({"video": "x"}), "lack of image or text"),
        ("qwen-image-plus", content_of("a cat"), "lack of image or text"),
        (
            "qwen-image-plus",
            content_of({"text": 7}),
            "Required body invalid, please check the request body format.",
        ),
        (
            "qwen-image-plus",
            {"messages": [{"role": "user", "content": "a cat"}]},
            "lack of image or text",
        ),
        ("qwen-image-plus", content_of(TEXT, TEXT), "content length only support 1"),
        ("qwen-image-plus", content_of(PIXEL, TEXT), "content length only support 1"),
        ("qwen-image-2.0", content_of(TEXT, TEXT), "content only support one text"),
        ("qwen-image-2.0", content_of(*[PIXEL] * 4, TEXT), "content length only support 4"),
        ("qwen-image-2.0", content_of(*[PIXEL] * 4), "lack of image or text"),
        ("qwen-image-edit-plus", content_of(TEXT), "lack of image or text"),
        ("qwen-image-edit-plus", content_of(PIXEL), "lack of image or text"),
    ],
)
def test_the_message_must_hold_one_text_and_the_images_the_model_takes(
    model: str, given: Any, message: str
) -> None:
    """Exactly one user message; the vendor's words for what is wrong with it."""
    assert refusal(model=model, given=given) == (400, "InvalidParameter", message)


def test_text_may_come_before_or_after_the_images() -> None:
    """Samples put images first, one guide does not."""
    assert read(given=content_of(TEXT, PIXEL)).images == (PIXEL["image"],)
    assert read(given=content_of(PIXEL, TEXT)).images == (PIXEL["image"],)


@pytest.mark.parametrize(
    ("model", "n", "message"),
    [
        ("qwen-image-max", 2, "num_images_per_prompt must be 1"),
        ("qwen-image-plus", 0, "num_images_per_prompt must be 1"),
        ("qwen-image-2.0", 7, "num_images_per_prompt must be between 1 and 6"),
        ("qwen-image-3.0-pro", 0, "num_images_per_prompt must be between 1 and 6"),
        ("wan2.6-t2i", 5, "num_images_per_prompt must be between 1 and 4"),
        ("qwen-image-2.0", True, "parameters.n must be an integer"),
        ("qwen-image-2.0", 1.5, "parameters.n must be an integer"),
        ("qwen-image-2.0", "1", "parameters.n must be an integer"),
    ],
)
def test_n_must_be_what_the_model_can_do(model: str, n: Any, message: str) -> None:
    """One for max, plus and image; up to six for the 2.0 and 3.0 series."""
    call = {"model": model, "parameters": {"n": n}}
    assert refusal(**call) == (400, "InvalidParameter", message)


@pytest.mark.parametrize("seed", [-1, 2147483648])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    """0 to 2147483647."""
    message = "seed must be between 0 and 2147483647"
    assert refusal(parameters={"seed": seed}) == (400, "InvalidParameter", message)


@pytest.mark.parametrize("seed", [0, 2147483647])
def test_the_ends_of_the_seed_range_are_accepted(seed: int) -> None:
    """Both inclusive."""
    assert read(parameters={"seed": seed}).seed == seed


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("size", 1024, "a string"),
        ("seed", "7", "an integer"),
        ("seed", None, "an integer"),
        ("negative_prompt", 1, "a string"),
        ("prompt_extend", "true", "a boolean"),
        ("prompt_extend", 1, "a boolean"),
        ("watermark", 0, "a boolean"),
        ("prompt_extend_mode", True, "a string"),
        ("enable_thinking", "no", "a boolean"),
    ],
)
def test_a_parameter_of_the_wrong_type_is_refused(name: str, value: Any, kind: str) -> None:
    """No value is converted in silence."""
    message = f"parameters.{name} must be {kind}"
    assert refusal(parameters={name: value}) == (400, "InvalidParameter", message)


def test_parameters_must_be_an_object() -> None:
    """Though they may be absent or null."""
    assert refusal(parameters=[1])[1] == "InvalidParameter"
    body = b'{"model":"qwen-image","input":{"messages":[{"role":"user","content":[{"text":"x"}]}]}'
    assert read_generation(body + b',"parameters":null}', MODELS, SYNC).n == 1
    assert read_generation(body + b"}", MODELS, SYNC).n == 1


def test_the_agent_mode_takes_no_images() -> None:
    """It is for text to image only; other modes do not exist."""
    call = {"model": "qwen-image-3.0", "given": content_of(PIXEL, TEXT)}
    agent = {"prompt_extend_mode": "agent"}
    assert refusal(**call, parameters=agent)[2] == (
        "prompt_extend_mode agent only supports text to image"
    )
    assert read("qwen-image-3.0", parameters=agent).n == 1
    assert "direct or agent" in refusal(parameters={"prompt_extend_mode": "wild"})[2]


def test_interleaved_output_is_refused_without_streaming() -> None:
    """wan2.6-image needs SSE for it, which is not simulated."""
    call = {
        "model": "wan2.6-image",
        "given": content_of(PIXEL, TEXT),
        "parameters": {"enable_interleave": True},
    }
    assert refusal(**call)[2] == "enable_interleave only supports stream output"


def test_unknown_parameters_pass_unless_the_vendor_is_strict() -> None:
    """The SDK itself sends two that nobody documents."""
    extra = {"result_format": "message", "is_async": True, "quality": "hd"}
    assert read(parameters=extra).n == 1
    strict = Rules("sync", strict_parameters=True)
    message = "parameters.quality is not supported"
    assert refusal(parameters={"quality": "hd"}, rules=strict)[2] == message


def test_a_strict_vendor_knows_what_each_model_documents() -> None:
    """`size` is fine for most, and unknown to qwen-image-edit."""
    strict = Rules("sync", strict_parameters=True)
    size = {"size": "1024*1024"}
    assert read(parameters=size, rules=strict).width == 1024
    call = {"model": "qwen-image-edit", "given": content_of(PIXEL, TEXT)}
    assert refusal(**call, parameters=size, rules=strict)[2] == "parameters.size is not supported"


@pytest.mark.parametrize(
    ("reference", "code"),
    [
        ("ftp://example.com/x.png", "InvalidURL"),
        ("/etc/hostname", "InvalidURL"),
        ("https:example.com", "InvalidURL"),
        ("", "InvalidURL"),
        ("oss://bucket/x.png", "InvalidParameter.DataInspection"),
        ("data:image/png;base64,!!!!", "InvalidParameter"),
        ("data:image/png;base64,aGVsbG8=", "InvalidParameter"),
        ("data:image/png,raw", "InvalidParameter"),
    ],
)
def test_an_image_reference_the_vendor_cannot_use_is_refused(reference: str, code: str) -> None:
    """URLs, data URIs holding a picture, and uploads with the header for them."""
    call = {"model": "qwen-image-edit-plus", "given": content_of({"image": reference}, TEXT)}
    assert refusal(**call)[:2] == (400, code)


def test_an_upload_is_accepted_with_its_header() -> None:
    """`X-DashScope-OssResourceResolve: enable`."""
    rules = Rules("sync", resolves_oss=True)
    given = content_of({"image": "oss://bucket/x.png"}, TEXT)
    assert read("qwen-image-edit-plus", given, rules=rules).n == 1


def test_a_data_uri_over_ten_megabytes_is_refused() -> None:
    """With the vendor's message and number."""
    given = content_of({"image": "data:image/png;base64," + "A" * 10485760}, TEXT)
    message = "Exceeded limit on max bytes per data-uri item : 10485760"
    assert refusal(model="qwen-image-edit", given=given)[2] == message


def test_wan_makes_four_images_unless_told_otherwise() -> None:
    """The trap a gateway must avoid by always sending `n`."""
    assert read("wan2.6-t2i").n == 4
    assert read("qwen-image-2.0").n == 1
    assert read("wan2.7-image", parameters={"enable_sequential": True}).n == 12


def test_an_old_style_call_carries_its_prompt_in_the_input() -> None:
    """As the text2image path has it, negative prompt included."""
    given = {"prompt": "a cat", "negative_prompt": "dogs"}
    generation = read("qwen-image-plus", given, rules=Rules("text2image"))
    assert (generation.prompt, generation.negative_prompt) == ("a cat", "dogs")
    assert refusal(model="qwen-image", given={"x": 1}, rules=Rules("text2image"))[2] == (
        "lack of image or text"
    )


def test_an_old_style_edit_carries_up_to_three_images() -> None:
    """`input.images`, for wan2.5-i2i-preview."""
    rules = Rules("image2image")
    given = {"prompt": "a cat", "images": ["https://example.com/a.png"] * 3}
    assert len(read("wan2.5-i2i-preview", given, rules=rules).images) == 3
    more = {"prompt": "a cat", "images": ["https://example.com/a.png"] * 4}
    assert refusal(model="wan2.5-i2i-preview", given=more, rules=rules)[2] == (
        "content length only support 4"
    )
    wrong = {"prompt": "a cat", "images": "https://example.com/a.png"}
    assert refusal(model="wan2.5-i2i-preview", given=wrong, rules=rules)[1] == "InvalidParameter"


def test_a_negative_prompt_is_cut_at_five_hundred_characters() -> None:
    """The vendor truncates in silence."""
    assert len(read(parameters={"negative_prompt": "x" * 900}).negative_prompt) == 500
