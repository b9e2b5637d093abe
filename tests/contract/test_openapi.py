"""The document of the API at /openapi.json, and the service against it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import jsonschema
import pytest

from gateway.api.openapi import ELSEWHERE, UNSEEN
from gateway.domain import errors
from gateway.domain.errors import GatewayError
from gateway.tenants.keys import hash_key
from gateway.translate.fields import FIELDS
from gateway.translate.native import code_of
from tests.openai_shapes import specification
from tests.running import ACME, Client, GatewayProcess
from tests.simulated import SimulatedDashScope

IMAGES: Final = "/v1/images/generations"
EDITS: Final = "/v1/images/edits"
NATIVE: Final = "/api/v1/services/aigc/multimodal-generation/generation"
SCHEMATHESIS: Final = Path(sys.executable).with_name("schemathesis")


@pytest.fixture
def document(gateway: Client) -> dict[str, Any]:
    answer = gateway.ask("GET", "/openapi.json", key=None)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    found: dict[str, Any] = answer.json()
    return found


def error_classes(kind: type[GatewayError] = GatewayError) -> list[type[GatewayError]]:
    return [kind, *(found for child in kind.__subclasses__() for found in error_classes(child))]


def test_it_needs_no_key_and_names_both_ways_to_send_one(document: dict[str, Any]) -> None:
    schemes = document["components"]["securitySchemes"]
    wanted = document["paths"][IMAGES]["post"]["security"]

    assert document["openapi"].startswith("3.1")
    assert {name for each in wanted for name in each} == set(schemes) == {"bearer", "api-key"}


def test_it_has_each_field_with_its_fate(document: dict[str, Any]) -> None:
    schema = document["components"]["schemas"]["ImageRequest"]

    assert schema["required"] == ["prompt"]
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == {row.name for row in FIELDS}
    for row in FIELDS:
        assert schema["properties"][row.name]["description"].startswith(row.fate)


def test_it_has_the_events_of_a_stream(document: dict[str, Any]) -> None:
    content = document["paths"][IMAGES]["post"]["responses"]["200"]["content"]
    schemas = document["components"]["schemas"]

    assert set(content) == {"application/json", "text/event-stream"}
    events = content["text/event-stream"]["schema"]["anyOf"]
    holds = [event["properties"]["data"]["contentSchema"]["$ref"] for event in events]
    names = [each.rpartition("/")[2] for each in holds]
    assert names == ["ImageCompleted", "ErrorEvent"]
    assert set(
        specification()["components"]["schemas"]["ImageGenCompletedEvent"]["required"]
    ) <= set(schemas["ImageCompleted"]["properties"])


def test_it_has_every_error_that_a_client_can_see(document: dict[str, Any]) -> None:
    responses = document["paths"][IMAGES]["post"]["responses"]
    seen = {
        (int(status), example["value"]["error"]["code"])
        for status, response in responses.items()
        for example in response["content"]["application/json"].get("examples", {}).values()
    }

    assert seen == {
        (kind.status, kind.code)
        for kind in error_classes()
        if kind not in ELSEWHERE and kind.__module__ == errors.__name__
    }


def test_it_has_every_error_of_the_native_path_in_the_vendor_s_form(
    document: dict[str, Any],
) -> None:
    responses = document["paths"][NATIVE]["post"]["responses"]
    examples = {
        (int(status), example["value"]["code"])
        for status, response in responses.items()
        for example in response["content"]["application/json"].get("examples", {}).values()
    }

    assert examples == {
        (kind.status, code_of(kind))
        for kind in error_classes()
        if kind not in UNSEEN and kind.__module__ == errors.__name__
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("n", [1, 10, None], [0, 11, "1"]),
        ("seed", [0, 2147483647], [-1, 2147483648]),
        ("output_compression", [100, None], [-1, 0, 99, 101]),
        ("output_format", ["jpeg", "webp", "png", None], ["gif", "svg", "bmp"]),
        ("size", ["auto", "1024x768", None], ["1024*768", "0x1", "big"]),
        ("prompt", ["a fox", "x\ny"], ["", " ", "a\0b"]),
        ("stream", [False, True, None], ["yes"]),
        ("partial_images", [0, 3], [-1, 4]),
        ("background", ["opaque", "auto"], ["transparent"]),
        ("response_format", ["url", "b64_json"], ["png"]),
    ],
)
def test_its_ranges_are_those_of_the_gateway(
    field: str, good: list[Any], bad: list[Any], document: dict[str, Any], gateway: Client
) -> None:
    """What the document lets through is answered, and what it does not is a 400."""
    schema = document["components"]["schemas"]["ImageRequest"]
    validator = jsonschema.Draft202012Validator(schema)
    for value in (*good, *bad):
        body = {"prompt": "a fox", "model": "qwen-image-2.0", field: value}
        is_valid = validator.is_valid(body)
        answer = gateway.post(body)

        assert is_valid is (value in good), value
        assert answer.status_code == (200 if is_valid else 400), answer.text


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_schemathesis_finds_nothing(simulator: SimulatedDashScope, tmp_path: Path) -> None:
    """Against the running service: thousands of requests made from the document, good and bad."""
    simulator.configure(latency_s=0, render="plain")
    config = tmp_path / "gateway.yaml"
    config.write_text(
        "listen: {host: 127.0.0.1, port: 0}\n"
        f"accounts: [{{name: one, base_url: '{simulator.base_url}', api_key: key-of-nobody,"
        " rates: {'*': unlimited}}]\n"
        "images: {allowed_hosts: ['127.0.0.1'], allow_http: true}\n"
        f"tenants: [{{name: acme, keys: [{{hash: '{hash_key(ACME)}'}}]}}]\n"
    )
    # Which sizes are made depends on the model, and text is hardly ever a picture: no schema says.
    (tmp_path / "schemathesis.toml").write_text(
        "".join(
            f'[[operations]]\ninclude-path = "{path}"\n'
            "[operations.checks]\npositive_data_acceptance.enabled = false\n"
            for path in (NATIVE, EDITS)
        )
    )
    with GatewayProcess.serving(config) as gateway:
        ran = subprocess.run(
            [
                *(SCHEMATHESIS, "run", f"{gateway.url}/openapi.json"),
                *("--header", f"Authorization: Bearer {ACME}"),
                *("--include-path-regex", "^/(v1|api/v1|healthz|readyz)"),
                *("--max-examples", "10", "--seed", "1", "--workers", "4", "--no-color"),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-1000:]
