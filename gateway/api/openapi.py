"""The document of the API, from the handlers' types and the tables of fields and errors."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import Any

import msgspec
from litestar import Litestar, Response, get
from litestar.enums import HttpMethod
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import OpenAPIConfig, ResponseSpec
from litestar.openapi.spec import Components, Example, Reference, SecurityScheme
from litestar.types import Method
from msgspec import Struct

from gateway.api.paths import NATIVE_GENERATION
from gateway.domain import errors
from gateway.domain.errors import GatewayError
from gateway.protocol.native import (
    NativeError,
    NativeInput,
    NativeItem,
    NativeMessage,
    NativeParameters,
    NativeRequest,
)
from gateway.protocol.openai import (
    ErrorDetail,
    ErrorEvent,
    ErrorResponse,
    ImageCompleted,
    ImageEditRequest,
    ImageRequest,
)
from gateway.translate.fields import Field, fields_of
from gateway.translate.native import code_of

SECURITY: list[dict[str, list[str]]] = [{"bearer": []}, {"api-key": []}]
"""Either header will do."""
SCHEMES: dict[str, SecurityScheme | Reference] = {
    "bearer": SecurityScheme(type="http", scheme="bearer"),
    "api-key": SecurityScheme(type="apiKey", name="api-key", security_scheme_in="header"),
}
JSON = "application/json"
REFERENCE = "#/components/schemas/{name}"
EXAMPLE = {"model": "qwen-image-2.0-pro", "prompt": "a fox in the snow", "size": "1024x1024"}
EVENTS = (ImageCompleted, ErrorEvent)
"""What `data` of a streamed answer's events holds."""
BEYOND_TYPES: dict[str, dict[str, object]] = {
    "prompt": {
        "minLength": 1,
        "pattern": "^[^\\x00]*[^\\s\\x00][^\\x00]*$",
        "examples": ["a fox in the snow"],
    },
    "negative_prompt": {"pattern": "^[^\\x00]*$"},
    "model": {"examples": ["qwen-image-2.0-pro", "gpt-image-1"]},
    "size": {
        "pattern": "^(auto|[1-9][0-9]{0,3}x[1-9][0-9]{0,3})$",
        "examples": ["1024x1024", "auto"],
    },
    # Litestar leaves a minimum of 0 out.
    "output_compression": {"minimum": 0},
    "partial_images": {"minimum": 0},
    "seed": {"minimum": 0},
}
"""Checks of request fields beyond their types."""
OF_3: dict[str, object] = {
    "required": ["model"],
    "properties": {"model": {"type": "string", "pattern": "^qwen-image-3\\.0"}},
}
"""Parameters of this series alone, in the shipped catalogue."""
EXCLUDED: tuple[dict[str, object], ...] = (
    {
        "required": ["stream", "response_format"],
        "properties": {"stream": {"const": True}, "response_format": {"const": "url"}},
    },
    {
        "required": ["output_format", "response_format"],
        "properties": {
            "output_format": {"enum": ["jpeg", "webp"]},
            "response_format": {"const": "url"},
        },
    },
    {
        "required": ["output_compression"],
        "properties": {
            "output_compression": {"type": "integer", "maximum": 99},
            "output_format": {"enum": ["png", None]},
        },
    },
    {
        "required": ["prompt_extend_mode"],
        "properties": {"prompt_extend_mode": {"type": "string"}},
        "not": OF_3,
    },
    {
        "required": ["enable_thinking"],
        "properties": {"enable_thinking": {"const": True}},
        "not": OF_3,
    },
)
"""Fields that are refused together."""
OF_ALL = {
    "x-request-id": "The gateway's own id of this request, for its operator.",
    "openai-processing-ms": "Milliseconds until the answer began.",
    "x-ratelimit-limit-requests": "The tenant's requests a minute; absent without a limit.",
    "x-ratelimit-remaining-requests": "How many of them are left.",
    "x-ratelimit-reset-requests": "In how long all of them are there again, as in `59.5s`.",
    "x-ratelimit-limit-images": "The tenant's images a minute; absent without a limit.",
    "x-ratelimit-remaining-images": "How many of them are left.",
    "x-ratelimit-reset-images": "In how many seconds all of them are there again.",
}
OF_FAILURES = {
    "x-should-retry": "Whether an SDK should send the request again.",
    "retry-after": "Whole seconds to wait before a retry.",
    "retry-after-ms": "The same in milliseconds.",
    "x-gateway-repeated-error": "How old it is, where an earlier attempt's error is told again.",
}
OF_SUCCESSES = {
    "age": "Seconds since the images were made, where they were there already.",
    "x-cache": "`hit`, `joined`, `replayed`, `miss` or `bypass`.",
    "x-image-expires-in": "Seconds for which the URLs still work.",
    "x-gateway-model": "The vendor's model that made the images.",
    "x-gateway-size": "The size that was asked of it.",
    "x-gateway-ignored": "Fields of the request that had no effect.",
    "x-gateway-warning": "Sentences on what the model may not have read.",
}
NATIVE_TYPES = (NativeRequest, NativeInput, NativeMessage, NativeItem, NativeParameters)
BEYOND_NATIVE_TYPES: dict[tuple[str, str], dict[str, object]] = {
    ("NativeInput", "messages"): {"minItems": 1, "maxItems": 1},
    ("NativeMessage", "content"): {"minItems": 1},
    ("NativeItem", "text"): BEYOND_TYPES["prompt"],
    ("NativeParameters", "negative_prompt"): BEYOND_TYPES["negative_prompt"],
    ("NativeParameters", "size"): {
        "pattern": "^[1-9][0-9]{0,4}\\*[1-9][0-9]{0,4}$",
        "examples": ["1024*1024"],
        "description": "One that the model makes: which, depends on the model.",
    },
    ("NativeParameters", "seed"): {"minimum": 0},
}
"""The same for the vendor's own form."""


def subclasses(kind: type[GatewayError]) -> Iterator[type[GatewayError]]:
    """A part of the tree of errors, its root included."""
    yield kind
    for child in kind.__subclasses__():
        yield from subclasses(child)


def seen(elsewhere: Container[type[GatewayError]]) -> tuple[type[GatewayError], ...]:
    """What a client can see on an image path: all others."""
    return tuple(
        kind
        for kind in subclasses(GatewayError)
        if kind not in elsewhere and kind.__module__ == errors.__name__
    )


UNSEEN = {GatewayError, errors.ClientGone, errors.Unsupported, errors.EndpointRetired}
"""Clients do not wait for them, or they are not of a path of images."""
ELSEWHERE = {*UNSEEN, errors.CallModeForbidden}
"""Nor these on OpenAI's."""
IMAGE_ERRORS = seen(ELSEWHERE)
NATIVE_ERRORS = seen(UNSEEN)
MODEL_ERRORS = (errors.InvalidKey, errors.ModelForbidden, errors.ModelNotFound)


class ErrorForm(Struct, frozen=True):
    """How the errors of a path are written."""

    container: type[Struct]
    example: Callable[[type[GatewayError]], Struct]


OPENAI = ErrorForm(
    ErrorResponse,
    lambda kind: ErrorResponse(ErrorDetail(sentence(kind), kind.type, None, kind.code)),
)
DASHSCOPE = ErrorForm(
    NativeError, lambda kind: NativeError(code_of(kind), sentence(kind), "req_0123456789abcdef")
)


def error_responses(
    kinds: Iterable[type[GatewayError]], form: ErrorForm = OPENAI
) -> dict[int, ResponseSpec]:
    """By status, for a handler's `responses`; each kind of error is an example."""
    by_status: dict[int, list[type[GatewayError]]] = defaultdict(list)
    all_kinds: list[type[GatewayError]] = [*kinds, errors.InternalFault]
    for kind in all_kinds:
        if kind not in by_status[kind.status]:
            by_status[kind.status].append(kind)
    return {
        status: ResponseSpec(
            form.container,
            generate_examples=False,
            description=" ".join(sentence(kind) for kind in found),
            examples=[example(kind, form) for kind in found],
        )
        for status, found in sorted(by_status.items())
    }


def sentence(kind: type[GatewayError]) -> str:
    return (inspect.getdoc(kind) or "").splitlines()[0]


def example(kind: type[GatewayError], form: ErrorForm) -> Example:
    value = msgspec.to_builtins(form.example(kind))
    return Example(id=kind.label(), summary=kind.code, value=value)


def operation_id(_: HTTPRouteHandler, method: HttpMethod | Method, path: Sequence[object]) -> str:
    """Method and path, for one handler may have several of both."""
    parts = [part if isinstance(part, str) else "id" for part in path]
    return "_".join([HttpMethod(method).value.lower(), *parts])


class ApiDocument:
    """GET /openapi.json. `handlers` are those that it describes."""

    def __init__(
        self, handlers: Sequence[HTTPRouteHandler], version: str, key_header: str | None = None
    ) -> None:
        self._handlers = handlers
        self._version = version
        self._schemes = SCHEMES if key_header is None else scheme_of(key_header)
        self._document = b""

    def route(self) -> HTTPRouteHandler:
        @get("/openapi.json", include_in_schema=False, sync_to_thread=True)
        def openapi() -> Response[bytes]:
            # Made when it is first asked for: nobody's start waits for it.
            self._document = self._document or msgspec.json.encode(self.build())
            return Response(self._document, media_type=JSON)

        return openapi

    def build(self) -> dict[str, Any]:
        """Built by a Litestar application that serves nothing."""
        config = OpenAPIConfig(
            title="Image gateway",
            version=self._version,
            description="OpenAI's image API in front of Alibaba DashScope.",
            components=Components(security_schemes=dict(self._schemes)),
            use_handler_docstrings=True,
        )
        app = Litestar(list(self._handlers), openapi_config=config, logging_config=None)
        document = app.openapi_schema.to_schema()
        schemas = document["components"]["schemas"]
        finish_request(schemas["ImageRequest"], ImageRequest)
        add_native(schemas)
        add_edits(schemas)
        _, of_events = msgspec.json.schema_components(EVENTS, ref_template=REFERENCE)
        document["components"]["schemas"] = of_events | schemas
        for path, item in document["paths"].items():
            if path.endswith("/edits"):
                item["post"]["requestBody"] = EDIT_BODY
            if path == NATIVE_GENERATION:
                item["post"]["requestBody"] = NATIVE_BODY
            item.pop("head", None)  # the same as GET, without a body
            for operation in item.values():
                describe_headers(operation["responses"])
                describe_stream(operation["responses"]["200"]["content"])
                set_example(operation)
                if "security" in operation:
                    operation["security"] = [{name: []} for name in self._schemes]
                for parameter in operation.get("parameters", ()):
                    parameter["schema"].pop("format", None)  # a path's is "uri", which it is not
        return document


def scheme_of(header: str) -> dict[str, SecurityScheme | Reference]:
    """A header of the operator's choice."""
    return {"key": SecurityScheme(type="apiKey", name=header, security_scheme_in="header")}


EDIT_BODY = {
    "required": True,
    "content": {
        media: {"schema": {"$ref": REFERENCE.format(name=name)}}
        for media, name in (("multipart/form-data", "ImageEditForm"), (JSON, "ImageEditRequest"))
    },
}
"""The gateway itself reads this body, so Litestar cannot tell."""
NATIVE_BODY = {
    "required": True,
    "content": {JSON: {"schema": {"$ref": REFERENCE.format(name=NativeRequest.__name__)}}},
}


def add_edits(schemas: dict[str, Any]) -> None:
    _, components = msgspec.json.schema_components([ImageEditRequest], ref_template=REFERENCE)
    schemas |= {name: part for name, part in components.items() if name not in schemas}
    schema = schemas["ImageEditRequest"]
    finish_request(schema, ImageEditRequest)
    file = {"type": "string", "contentMediaType": "image/*", "description": "PNG, JPEG or WebP."}
    form = {name: part for name, part in schema["properties"].items() if name != "images"}
    form["image"] = {"anyOf": [file, {"type": "array", "items": file, "maxItems": 16}]}
    schemas["ImageEditForm"] = {
        "type": "object",
        "title": "ImageEditForm",
        "required": ["prompt", "image"],
        "properties": form,
    }


def finish_request(schema: dict[str, Any], kind: type[ImageRequest]) -> None:
    """Add the fate of each field, and that there are no others."""
    schema["additionalProperties"] = False
    schema["not"] = {"anyOf": [*EXCLUDED]}
    for row in fields_of(kind):
        field = schema["properties"][row.name]
        field["description"] = f"{row.fate}: {row.what}"
        if row.refusal:
            schema["properties"][row.name] = narrowed(row, field["description"])
        field.update(BEYOND_TYPES.get(row.name, {}))


def add_native(schemas: dict[str, Any]) -> None:
    _, components = msgspec.json.schema_components([NativeRequest], ref_template=REFERENCE)
    schemas |= components
    for type_ in NATIVE_TYPES:
        schemas[type_.__name__]["additionalProperties"] = False
    for (name, field), more in BEYOND_NATIVE_TYPES.items():
        schemas[name]["properties"][field].update(more)


def narrowed(row: Field, description: str) -> dict[str, Any]:
    """A field that is refused but for a few values."""
    return {"enum": [*row.taken, None], "description": description}


def set_example(operation: dict[str, Any]) -> None:
    """A body that works as it is, to try it out."""
    content = operation.get("requestBody", {}).get("content", {}).get(JSON, {})
    if content.get("schema", {}).get("$ref", "").endswith("/ImageRequest"):
        content["example"] = EXAMPLE


def describe_stream(content: dict[str, Any]) -> None:
    """Add the streamed form of an answer with images: each event in the words of OpenAPI 3.2."""
    schema = content.get(JSON, {}).get("schema", {})
    if schema.get("$ref", "").endswith("/ImagesResponse"):
        events = []
        for kind in EVENTS:
            holds = {"$ref": REFERENCE.format(name=kind.__name__)}
            data = {"type": "string", "contentMediaType": JSON, "contentSchema": holds}
            properties = {"event": {"type": "string"}, "data": data}
            events.append({"type": "object", "required": [*properties], "properties": properties})
        content["text/event-stream"] = {"schema": {"anyOf": events}}


def describe_headers(responses: dict[str, Any]) -> None:
    for status, response in responses.items():
        headers = OF_ALL | (OF_SUCCESSES if status == "200" else OF_FAILURES)
        response["headers"] = {
            name: {"schema": {"type": "string"}, "description": says}
            for name, says in headers.items()
        }
