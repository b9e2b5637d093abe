"""Every log event has its line in the documents, and none has one that nothing logs."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
LEVELS = {"debug", "info", "warning", "error", "critical", "exception"}
PROBED = ("answered", "info")
"""Logged at a level of its own: at debug for probes that succeed."""


def logged(path: Path) -> Iterator[tuple[str, str]]:
    """Event and level of each call of a logger in a module."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Call(
                func=ast.Attribute(attr=level), args=[ast.Constant(value=str(event)), *_]
            ) if level in LEVELS:
                yield event, "error" if level == "exception" else level
            case ast.Call(
                func=ast.Attribute(attr="_tell"), args=[ast.Constant(value=str(event)), *_]
            ) if path.name == "reload.py":  # logs each once, as an error
                yield event, "error"


def test_the_table_of_events_is_the_code_s() -> None:
    code = {
        found
        for path in (ROOT / "gateway").rglob("*.py")
        if "simulator" not in path.parts
        for found in logged(path)
    }
    table = {
        (event, level)
        for events, level in re.findall(
            r"^\| ((?:`\w+`(?:, )?)+) \| (\w+) \|",
            (ROOT / "docs/log-events.md").read_text(),
            re.MULTILINE,
        )
        for event in re.findall(r"`(\w+)`", events)
    }
    assert table == code | {PROBED}


def test_only_events_are_logged() -> None:
    """No module but the logger's own speaks in sentences by the standard library."""
    speakers = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "gateway").rglob("*.py")
        if "logging.getLogger(__name__)" in path.read_text()
    ]
    assert speakers == []
