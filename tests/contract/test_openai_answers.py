"""Every answer against OpenAI's specification and the SDK's own types.

`Client` checks each answer against the schemas; here every status that the gateway can give occurs.
"""

from __future__ import annotations

import itertools
import json
from typing import Any, Final

import httpx
import pytest
from jsonschema import ValidationError

from gateway.config import Upstream
from gateway.domain import errors
from gateway.domain.errors import GatewayError
from tests.openai_shapes import by_sdk, by_specification, check_error
from tests.running import (
    ACME,
    EXPIRED,
    LIMITED,
    REQUEST_ID,
    Client,
    account,
    closed_port,
    config_for,
)
from tests.running_fixtures import Start
from tests.simulated import SimulatedDashScope

pytestmark = pytest.mark.usefixtures("quick_retries")

PATH: Final = "/v1/images/generations"
MODEL: Final = "qwen-image-2.0"


@pytest.mark.parametrize("model", ["qwen-image-2.0", "qwen-image-plus", "gpt-image-1", "dall-e-3"])
def test_a_success_has_the_published_form(model: str, gateway: Client) -> None:
    """`size` is among the published ones or absent; absent keys are never null."""
    sizes = (None, "auto", "1024x1024", "1024x1536", "512x512", "1664x928")
    for size, form in itertools.product(sizes, ("url", "b64_json", None)):
        answer = gateway.generate(model=model, size=size, response_format=form)

        body = answer.json()
        assert answer.status_code == 200
        assert None not in body.values()
        assert body.get("size") in {None, "1024x1024", "1024x1536", "1536x1024"}
        assert "usage" not in body


def test_models_have_the_published_form(gateway: Client) -> None:
    listed = gateway.ask("GET", "/v1/models").json()

    by_specification("ListModelsResponse").validate(listed)
    by_sdk("ModelsPage").validate(listed)
    for model in listed["data"]:
        one = gateway.ask("GET", f"/v1/models/{model['id']}").json()
        assert one == model
        by_specification("Model").validate(one)
        by_sdk("Model").validate(one)


def test_what_is_asked_here_is_what_the_specification_allows() -> None:
    """So that the answers are to questions that real clients ask."""
    bodies: list[dict[str, Any]] = [
        {"prompt": "a fox", "model": "gpt-image-1", "size": "1024x1024", "n": None},
        {"prompt": "a fox", "quality": None, "response_format": "b64_json"},
    ]
    for body in bodies:
        by_specification("CreateImageRequest").validate(body)


def test_the_check_can_fail() -> None:
    """A null, a fraction and a missing key are what the schemas are there for."""
    validate = by_specification("ImagesResponse").validate
    bodies: list[Any] = [{"data": []}, {"created": 1.5}, {"created": 1, "data": [{"url": None}]}]
    for body in bodies:
        with pytest.raises(ValidationError):
            validate(body)
    flawed = httpx.Response(400, json={"error": {"message": "m", "type": "t", "code": "c"}})
    with pytest.raises(ValidationError):
        check_error(flawed)


# How to get each failure: a request, or what the vendor does. Statuses and codes are in README.md.
REQUESTS: Final[dict[tuple[int, str], dict[str, Any]]] = {
    (400, "invalid_value"): {"json": {"prompt": "a fox", "n": 0}},
    (400, "invalid_type"): {"json": {"prompt": 7}},
    (400, "invalid_json"): {"content": b"{", "headers": {"content-type": "application/json"}},
    (400, "missing_required_parameter"): {"json": {}},
    (400, "unknown_parameter"): {"json": {"prompt": "a fox", "steps": 3}},
    (400, "unsupported_value"): {"json": {"prompt": "a fox", "background": "transparent"}},
    (400, "unsupported_parameter"): {
        "json": {"prompt": "a fox", "model": "z-image-turbo", "negative_prompt": "dogs"}
    },
    (401, "invalid_api_key"): {"json": {"prompt": "a fox"}, "key": EXPIRED},
    (403, "model_not_allowed"): {"json": {"prompt": "a fox", "model": MODEL}, "key": LIMITED},
    (404, "model_not_found"): {"json": {"prompt": "a fox", "model": "none"}},
    (400, "unsupported"): {"json": {"model": "gpt-image-1"}, "path": "/v1/chat/completions"},
    (410, "endpoint_retired"): {"json": {"prompt": "a fox"}, "path": "/v1/images/variations"},
    (404, "not_found"): {"path": "/v1/images/nowhere"},
    (405, "method_not_allowed"): {"method": "GET"},
    (413, "request_too_large"): {"json": {"prompt": "x" * 2**20}},
    (504, "not_cached"): {
        "json": {"prompt": "a fox", "seed": 1},
        "headers": {"cache-control": "only-if-cached"},
    },
    (415, "unsupported_media_type"): {"content": b"a=b", "headers": {"content-type": "text/html"}},
}
FAULTS: Final[dict[tuple[int, str], str]] = {
    (400, "moderation_blocked"): "DataInspectionFailed",
    (413, "request_too_large"): "413",
    (429, "insufficient_quota"): "PostpaidBillOverdue",
    (429, "rate_limit_exceeded"): "Throttling",
    (502, "incomplete_result"): "empty_choices",
    (502, "upstream_account_error"): "InvalidApiKey",
    (502, "upstream_error"): "InternalError",
    (502, "upstream_outcome_unknown"): "reset_after_generation",
    (503, "server_is_overloaded"): "ModelUnavailable",
    (504, "upstream_timeout"): "empty_504",
}


@pytest.mark.parametrize("expected", REQUESTS, ids=str)
def test_a_refused_request_has_the_published_form(
    expected: tuple[int, str], gateway: Client
) -> None:
    asked = {"method": "POST", "path": PATH, **REQUESTS[expected]}

    answer = gateway.ask(asked.pop("method"), asked.pop("path"), **asked)

    assert (answer.status_code, answer.json()["error"]["code"]) == expected


@pytest.mark.parametrize("expected", FAULTS, ids=str)
def test_a_failed_generation_has_the_published_form(
    expected: tuple[int, str], gateway: Client, simulator: SimulatedDashScope
) -> None:
    simulator.fault(FAULTS[expected], count=None)

    answer = gateway.generate(model=MODEL)

    assert (answer.status_code, answer.json()["error"]["code"]) == expected


def test_an_unavailable_image_has_the_published_form(
    gateway: Client, simulator: SimulatedDashScope
) -> None:
    simulator.fault("image_404", count=None)

    answer = gateway.generate(model=MODEL, response_format="b64_json")

    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "image_unavailable")


def test_an_unreachable_vendor_has_the_published_form(start: Start) -> None:
    with closed_port() as port:
        gateway = start(config_for(account(f"http://127.0.0.1:{port}/api/v1")))
        answer = gateway.generate(model=MODEL)

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "upstream_unreachable")


def test_a_missed_deadline_has_the_published_form(
    start: Start, simulator: SimulatedDashScope
) -> None:
    simulator.fault("hang")
    config = config_for(account(simulator.base_url), upstream=Upstream(deadline_s=0.1))

    answer = start(config).generate(model=MODEL)

    assert answer.json()["error"]["code"] == "upstream_timeout"


def test_a_reused_idempotency_key_has_the_published_form(gateway: Client) -> None:
    headers = {"idempotency-key": "one"}
    assert gateway.generate("a fox", headers=headers).status_code == 200

    answer = gateway.generate("a hen", headers=headers)

    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "idempotency_key_reused")


def test_a_defect_has_the_published_form_and_tells_nothing(
    gateway: Client, logs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug in the gateway: the client gets an id, and the log gets the traceback under it."""
    secret = "the inside of the gateway"

    def broken(*_: object) -> None:
        raise RuntimeError(secret)

    monkeypatch.setattr("gateway.requests.pipeline.to_dashscope", broken)

    answer = gateway.generate(model=MODEL)

    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert secret not in answer.text
    [line] = logs.named("defect")
    assert line["request_id"] == answer.headers["x-request-id"]
    assert secret in repr(line["exc_info"])


def classes(of: type[GatewayError] = GatewayError) -> list[type[GatewayError]]:
    return [of, *(found for sub in of.__subclasses__() for found in classes(sub))]


def test_every_class_of_error_occurs_above() -> None:
    """A new class needs a case here, or a reason why no client can get it."""
    above = {*REQUESTS, *FAULTS, (502, "image_unavailable"), (503, "upstream_unreachable")}
    above |= {(500, "internal_error"), (422, "idempotency_key_reused")}
    elsewhere = {
        errors.GatewayError,  # the root, never raised
        errors.BodyTimeout,  # tests/unit/test_body.py
        errors.CallModeForbidden,  # tests/journeys/test_native.py
        errors.ClientGone,  # nobody is there to get it
        errors.ImageHostsUnreachable,  # tests/journeys/test_private_image_hosts.py
        errors.ServiceUnavailable,  # tests/journeys/test_paying_once.py: an open breaker
    }
    occurring = {kind for kind in classes() if kind not in elsewhere}
    assert {(kind.status, kind.code) for kind in occurring} <= above


def test_every_answer_has_a_request_id(gateway: Client) -> None:
    """Whatever the path and the method; and none of them is a 5xx."""
    paths = ("/", PATH, "/images/generations", "/v1/models", "/nowhere", "/healthz", "/metrics")
    methods = ("HEAD", "OPTIONS", "GET", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND")
    for method, path in itertools.product(methods, paths):
        answer = gateway.http.request(method, gateway.url + path)
        assert REQUEST_ID.fullmatch(answer.headers["x-request-id"])
        assert answer.status_code < 500
        if answer.status_code >= 400 and method != "HEAD":
            check_error(answer)


def test_an_answer_s_length_is_declared(gateway: Client) -> None:
    answer = gateway.generate(model=MODEL)

    assert int(answer.headers["content-length"]) == len(answer.content)
    assert json.loads(answer.content)["data"]


def test_a_client_s_own_request_id_is_not_taken_over(gateway: Client) -> None:
    """It could be another tenant's, or carry what does not belong in a log."""
    answer = gateway.generate(model=MODEL, key=ACME, headers={"x-request-id": "mine"})

    assert answer.headers["x-request-id"] != "mine"
