"""Structured logs: JSON lines, or readable ones on a terminal, the libraries' own included.

Of a prompt, only length and hash appear, unless its tenant wants it whole. Whatever looks like a
key, and every secret of the configuration, is masked in the finished line.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import sys
from collections.abc import Iterable
from datetime import UTC, datetime

import msgspec
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from gateway.domain import foreign
from gateway.observability.log_writer import STDERR, log_writer

NOISY = ("httpx", "httpcore", "aiohttp", "uvicorn.access")
MASK = "*****"
NAME_AND_MASK = rf"\g<name>{MASK}"
SHORTEST_SECRET = 6
"""Masking shorter ones would maim the log, and hide nothing."""
PLAIN_QUERY = (
    r"(?:Expires|x-oss-(?:date|expires|signature-version)|(?:(?i:X-Amz)-(?:Date|Expires|Algorithm))"
    r"|api-version)="
)
"""Harmless parts of a signed URL's query. Any other may be a secret, as vendors name it as they
like (Signature, OSSAccessKeyId, x-oss-credential, security-token, X-Amz-Signature …)."""
IN_QUERY = r"(?:(?<=[?&;])|(?<=\\u0026)|(?<=%3[Ff])|(?<=%26))"
"""A separator of a query, also as in JSON or inside another URL."""
PATTERNS = (
    r"\bsk-[\w-]{8,}",  # keys of the vendor, of OpenAI and of this gateway
    r"(?<=[Bb]earer )[^\s\"'\\]{6,}",
    r"(?<=://)[^\s/@:\"'\\]*+:[^\s/@\"'\\]++(?=@)",  # user:password of a URL
    rf"(?P<name>{IN_QUERY}(?!{PLAIN_QUERY})[\w.~%+-]{{1,64}}?(?:=|%3[Dd]))[^\s&;\"'\\<>]+",
    r"(?<=ignature=)[^\s&;\"'\\<>]+",  # of a part of a signed URL
)
SIGNS = ("sk-", "earer ", "://", "?", "&", "0026", "%", "ignature=")
"""A line without any of these, and without a known secret, matches none of the above."""

UNSEEN = r"\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069"
"""Terminals obey these, end a line or change direction at them; in a class."""
UNSEEN_IN_JSON = re.compile(f"[{UNSEEN}]")
UNSEEN_IN_TEXT = re.compile(rf"[\x00-\x1f{UNSEEN}]")
UNSEEN_IN_TRACE = re.compile(rf"[\x00-\x08\x0b-\x1f{UNSEEN}]")
"""A stack trace has lines of its own."""
TRACES = ("exception", "stack")
LONGEST_TRACE = 32_768
PLAIN = frozenset({int, float, bool, type(None)})
LONGEST_LIST = 100
"""Elements of a value with parts."""


class Masker:
    """Replaces secrets in finished lines. One per process, as logging is."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Back to the patterns."""
        self._known: set[str] = set()
        self._compile()

    def hide(self, secrets: Iterable[str]) -> None:
        """Mask these from now on, wherever they appear, also as JSON spells them."""
        for secret in secrets:
            if len(secret) >= SHORTEST_SECRET:
                spelt = {json.dumps(secret)[1:-1], to_json(secret)[1:-1], repr(secret)[1:-1]}
                shown = escaped(secret)  # which a terminal's line may quote
                self._known |= {secret, shown, repr(shown)[1:-1], *spelt}
        self._compile()

    def _compile(self) -> None:
        known = sorted(map(re.escape, self._known), key=len, reverse=True)
        self._pattern = re.compile("|".join([*known, *PATTERNS]))
        self._signs = (*self._known, *SIGNS)

    def __call__(self, _: WrappedLogger, __: str, line: EventDict | str) -> str:
        """The last processor: from the rendered line to the one that is written."""
        text = str(line)
        if any(map(text.__contains__, self._signs)):
            return self._pattern.sub(NAME_AND_MASK, text)
        return text


masker = Masker()


def configure_logs(*, json_lines: bool, level: str = "info", secrets: Iterable[str] = ()) -> None:
    """Set up the process' logging, on standard error; called once, at start.

    httpx writes a line per request at INFO, which costs more than the request.
    """
    masker.hide(secrets)
    # Without a standard error, its number may be any file that was opened since.
    log_writer.open(STDERR if sys.stderr is not None else None)
    renderers: list[Processor] = (
        [with_values_cut, with_time, structlog.processors.JSONRenderer(serializer=to_json)]
        if json_lines
        else [with_values_cut, without_escapes, structlog.dev.ConsoleRenderer()]
    )
    facts: list[Processor] = [
        structlog.processors.add_log_level,
        *([] if json_lines else [structlog.processors.TimeStamper(fmt="iso", utc=True)]),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*facts, *renderers, masker],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: log_writer,
        cache_logger_on_first_use=True,
    )
    route_libraries([structlog.stdlib.add_logger_name, *facts], renderers)


def silence_logs() -> None:
    """For a command that prints its own findings."""
    logging.getLogger().addHandler(logging.NullHandler())
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


class LineHandler(logging.Handler):
    """Gives Python's own logging the same way out."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            log_writer.write(self.format(record))
        except Exception:  # noqa: BLE001 - whatever a library's arguments raise when printed
            self.handleError(record)


def route_libraries(facts: list[Processor], renderers: list[Processor]) -> None:
    """Write records of Python's own logging, and its warnings, in the same form."""
    handler = LineHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=facts,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *renderers,
                masker,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)


def with_time(_: WrappedLogger, __: str, line: EventDict) -> EventDict:
    """As structlog's own, but written by the encoder, which takes a tenth of the time."""
    line["timestamp"] = datetime.now(UTC)
    return line


def with_values_cut(_: WrappedLogger, __: str, line: EventDict) -> EventDict:
    """Bound others' texts in a line, before patterns read each character."""
    for name, value in line.items():
        kind = type(value)
        if kind is str:
            if len(value) > foreign.LOGGED:
                most = LONGEST_TRACE if name in TRACES else foreign.LOGGED
                line[name] = foreign.cut(value, most)
        elif kind not in PLAIN:
            line[name] = with_parts_cut(value)
    return line


def with_parts_cut(value: object) -> object:
    """A value whose texts, inside it too, are at most as long as a line takes."""
    match value:
        case str():
            return foreign.cut(value, foreign.LOGGED)
        case list() | tuple():
            return [with_parts_cut(part) for part in value[:LONGEST_LIST]]
        case dict():
            parts = list(value.items())[:LONGEST_LIST]
            return {foreign.cut(str(name), foreign.CODE): with_parts_cut(p) for name, p in parts}
        case int() | float() | None:
            return value
        case _:
            return foreign.cut(repr(value), foreign.LOGGED)


def to_json(line: object, **_: object) -> str:
    """Values without a JSON form as they print. Always one line."""
    text = msgspec.json.encode(line, enc_hook=repr).decode()
    if text.isascii() and "\x7f" not in text:
        return text
    return escaped(text, UNSEEN_IN_JSON)


def escaped(text: str, unseen: re.Pattern[str] = UNSEEN_IN_TEXT) -> str:
    return unseen.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def without_escapes(_: WrappedLogger, __: str, line: EventDict) -> EventDict:
    """For a terminal, which would obey what a client has put into its text."""
    for name, value in line.items():
        text = value if isinstance(value, str) else repr(value)
        unseen = UNSEEN_IN_TRACE if name in TRACES else UNSEEN_IN_TEXT
        if unseen.search(text):
            line[name] = escaped(text, unseen)
    return line


def prompt_facts(prompt: str, *, whole: bool = False) -> dict[str, object]:
    """Enough of a prompt to recognise a repeat, and nothing of its text unless `whole`."""
    digest = hashlib.sha256(prompt.encode(errors="surrogatepass")).hexdigest()
    facts: dict[str, object] = {"prompt_length": len(prompt), "prompt_sha256": digest[:16]}
    return facts | {"prompt": prompt} if whole else facts
