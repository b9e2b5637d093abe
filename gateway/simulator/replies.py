"""The vendor's answers, as files; what the simulator serves and what tests assert on.

    replies/errors/<name>.json   {"status", "body": {"code", "message"}, "source", "template"?}
    replies/success/<name>.json  {"status", "body"}
    replies/raw/<name>.json      {"status", "content_type", "text", "headers"?, "gzip"?, "source"?}

An error's `source` says where its status and code come from: the vendor's table (`documented`), a
capture, the SDK's enumeration, or `inferred`, when a rule is documented and the wording of its
refusal is not. The vendor notes that messages vary. `template` is the message with the places where
a value goes.
"""

from __future__ import annotations

import copy
import gzip
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

REPLIES = Path(__file__).with_name("replies")

Json = dict[str, Any]
T = TypeVar("T")


class ErrorReply(Struct, frozen=True, forbid_unknown_fields=True):
    """An error the vendor answers with."""

    status: int
    body: dict[str, str]
    source: str
    template: str | None = None


class SuccessReply(Struct, frozen=True, forbid_unknown_fields=True):
    """A 200 answer, with the vendor's example values in it."""

    status: int
    body: Json


class RawReply(Struct, frozen=True, forbid_unknown_fields=True):
    """An answer that is not the vendor's JSON: from a proxy on the way, or broken."""

    status: int
    content_type: str
    text: str
    headers: dict[str, str] = {}
    """Besides the type and the length; without a `server` it is nginx."""
    gzip: bool = False
    """Whether the text goes out packed, though nobody asked for that."""
    source: str = "recorded"
    """`recorded`: as public reports show it; `inferred`: a member of a family that was."""

    @property
    def content(self) -> bytes:
        """The body's bytes."""
        return gzip.compress(self.text.encode(), mtime=0) if self.gzip else self.text.encode()


class Refused(Exception):
    """A call refused with the error file `name`, its template filled with `values`."""

    def __init__(self, name: str, /, **values: object) -> None:
        super().__init__(name)
        self.name = name
        self.values = values


class Replies:
    """Every reply file, decoded."""

    def __init__(self, folder: Path = REPLIES) -> None:
        self.errors = _load(folder / "errors", ErrorReply)
        self.raw = _load(folder / "raw", RawReply)
        self._success = _load(folder / "success", SuccessReply)

    def success(self, name: str, facts: Json) -> Json:
        """A copy of a success body in which the keys named in `facts` have the values given."""
        body: Json = _filled(copy.deepcopy(self._success[name].body), facts)
        return body

    def generated(self, name: str, urls: list[str | None], facts: Json, *, apart: bool) -> Json:
        """A success body with one content item per URL; each in a choice of its own if `apart`."""
        body = self.success(name, facts)
        choice = body["output"]["choices"][0]
        item = choice["message"]["content"][0]
        items = [item | {"image": url} for url in urls]
        groups = [[one] for one in items] if apart else [items]
        body["output"]["choices"] = [_choice_with(choice, group) for group in groups]
        return body

    def error(self, refusal: Refused, request_id: str) -> tuple[int, Json]:
        """Status and body of a refusal."""
        reply = self.errors[refusal.name]
        message = refusal.values.get("message")
        if message is None and reply.template and refusal.values:
            message = reply.template.format_map(refusal.values)
        changed = {"message": message} if message is not None else {}
        return reply.status, reply.body | changed | {"request_id": request_id}


def _choice_with(choice: Json, content: list[Json]) -> Json:
    return choice | {"message": choice["message"] | {"content": content}}


def _filled(node: Any, facts: Json) -> Any:  # noqa: ANN401
    if isinstance(node, dict):
        return {k: facts[k] if k in facts else _filled(v, facts) for k, v in node.items()}
    if isinstance(node, list):
        return [_filled(item, facts) for item in node]
    return node


def _load(folder: Path, kind: type[T]) -> dict[str, T]:
    return {
        path.stem: msgspec.json.decode(path.read_bytes(), type=kind)
        for path in sorted(folder.glob("*.json"))
    }
