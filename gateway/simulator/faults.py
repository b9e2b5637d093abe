"""Misbehaviour on demand.

A fault waits in a queue until calls it fits have used it up. Its `kind` is the name of a file in
`replies/errors` or `replies/raw` (the call is answered with that), or one of the kinds listed here.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Annotated

from msgspec import Meta, Struct
from msgspec.structs import replace

BEFORE = {
    "reset_before": "the connection is reset before anything is answered; nothing is paid",
    "hang": "no answer, until the client hangs up (or a cut after `after_s`); nothing is paid",
}
"""Kinds that act in place of a generation."""

AFTER = {
    "slow": "the normal answer, `after_s` later (5 s unless given)",
    "reset_after_generation": "images are generated and paid, then the connection is reset",
    "truncated_json": "200 whose JSON stops half way, with a matching Content-Length",
    "empty_choices": "200 without any choice; nothing is paid",
    "fewer_images": "one image fewer than asked, and paid",
    "more_images": "one image more than asked, and paid",
    "text_content": "text and reasoning items beside the images",
    "null_image": "the content items have `image: null`",
    "huge_body": "the normal JSON with `size_bytes` of padding inside (32 MiB unless given)",
    "task_failed": "the asynchronous task ends as FAILED; nothing is paid",
}
"""Kinds that bend an otherwise normal answer."""

IMAGE = {
    "image_404": "404 XML `NoSuchKey`",
    "image_500": "500 XML `InternalError`",
    "image_expired": "403 XML `Request has expired.`",
    "image_truncated": "the connection ends after `at_byte` bytes (half the image unless given)",
    "image_reset": "the connection is reset before anything is answered",
    "image_slow": "the image at `bytes_per_s` (64 KiB/s unless given)",
    "image_hang": "no answer until the client hangs up",
    "image_redirect": "302 to `location` (a closed local port unless given)",
    "image_wrong_type": "the image as text/html",
    "image_not_png": "an HTML page as image/png",
    "image_oversized": "`size_bytes` of noise as image/png (256 MiB unless given)",
}
"""Kinds that act on the download of a result."""


class Fault(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One misbehaviour and how often it happens."""

    kind: str
    count: Annotated[int, Meta(ge=1)] | None = 1
    """Calls it acts on; without end when null."""
    model: str = "*"
    """Model ids it acts on: one, or a glob."""
    share: Annotated[float, Meta(gt=0, le=1)] = 1.0
    """Chance that a fitting call is hit."""
    after_s: Annotated[float, Meta(ge=0)] | None = None
    """Seconds before it shows."""
    message: str | None = None
    """Instead of the error file's message."""
    at_byte: Annotated[int, Meta(ge=0)] | None = None
    bytes_per_s: Annotated[int, Meta(ge=1)] = 64 * 1024
    size_bytes: Annotated[int, Meta(ge=0)] | None = None
    location: str = "http://127.0.0.1:9/elsewhere.png"


class UnknownKind(ValueError):
    """No such fault."""


class FaultQueue:
    """Faults in waiting, oldest first; image downloads and calls do not see each other's."""

    def __init__(self, answers: Iterable[str], chance: random.Random) -> None:
        self.kinds = frozenset({*answers, *BEFORE, *AFTER, *IMAGE})
        self._chance = chance
        self._waiting: list[Fault] = []

    def add(self, fault: Fault) -> None:
        """Queues a fault; `UnknownKind` names the known ones."""
        if fault.kind not in self.kinds:
            known = ", ".join(sorted(self.kinds))
            raise UnknownKind(f"unknown fault kind {fault.kind!r}; known: {known}")
        self._waiting.append(fault)

    def take_for_call(self, model: str) -> Fault | None:
        """The fault a generation call meets, used up once."""
        return self._take(model, image=False)

    def take_for_image(self, model: str) -> Fault | None:
        """The fault the download of an image of `model` meets, used up once."""
        return self._take(model, image=True)

    def from_prompt(self, prompt: str) -> Fault | None:
        """The fault a prompt asks for with `[simulate:KIND]` or `[simulate:KIND SECONDS]`."""
        match = _IN_PROMPT.search(prompt)
        if match is None or match[1] not in self.kinds:
            return None
        return Fault(kind=match[1], after_s=float(match[2]) if match[2] else None)

    def waiting(self) -> list[Fault]:
        """What is still queued, with the counts left."""
        return list(self._waiting)

    def clear(self) -> None:
        """Drops every waiting fault."""
        self._waiting.clear()

    def _take(self, model: str, *, image: bool) -> Fault | None:
        for place, fault in enumerate(self._waiting):
            if (fault.kind in IMAGE) is image and self._hits(fault, model):
                self._use(place, fault)
                return fault
        return None

    def _hits(self, fault: Fault, model: str) -> bool:
        fits = fnmatchcase(model, fault.model)
        return fits and (fault.share == 1.0 or self._chance.random() < fault.share)

    def _use(self, place: int, fault: Fault) -> None:
        if fault.count is None:
            return
        if fault.count == 1:
            del self._waiting[place]
        else:
            self._waiting[place] = replace(fault, count=fault.count - 1)


_IN_PROMPT = re.compile(r"\[simulate:([\w.\-]+)(?: (\d+(?:\.\d+)?))?\]")
