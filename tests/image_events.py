"""Reading a streamed answer: whole, or event by event as it comes."""

from __future__ import annotations

from typing import Any

import httpx

from tests.openai_shapes import check_event

COMMENT = ":"


def events_of(answer: httpx.Response) -> list[dict[str, Any]]:
    """Of a whole answer, comments aside."""
    assert answer.status_code == 200, answer.text
    *texts, rest = answer.text.split("\n\n")
    assert rest == ""
    return [check_event(text) for text in texts if text != COMMENT]


class EventReader:
    """Takes no more from the wire than it is asked for."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self._chunks = answer.iter_text()
        self._text = ""

    def block(self) -> str | None:
        """The next event or comment; None at the end."""
        while "\n\n" not in self._text:
            more = next(self._chunks, None)
            if more is None:
                assert self._text == ""
                return None
            self._text += more
        block, _, self._text = self._text.partition("\n\n")
        return block

    def event(self) -> dict[str, Any]:
        """The next event, comments aside."""
        while (block := self.block()) == COMMENT:
            pass
        assert block is not None
        return check_event(block)

    def rest(self) -> list[str]:
        """What comes until the end."""
        return list(iter(self.block, None))
