"""Pictures that a client sends in, as far as planning and sending need them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

from msgspec import Struct

MAX_DATA_URI_BYTES = 10 * 1024 * 1024
"""The vendor's limit for one picture, counted in its base64."""
MAX_INPUT_BYTES = 60 * 1024 * 1024
"""For all of a call; the vendor takes bodies of 64 MiB."""


class Stored(Protocol):
    def blocks(self, size: int) -> AsyncIterator[bytes]:
        """All in blocks of `size` bytes; the last may be shorter."""


class Picture(Struct, frozen=True):
    """An examined picture. Its bytes are read when it is sent, never held."""

    reference: str
    """Stands for it in a call: the hash of what the client sent."""
    mime: str
    size: int
    """Bytes."""
    stored: Stored

    @property
    def data_uri_start(self) -> bytes:
        return f"data:{self.mime};base64,".encode()

    @property
    def data_uri_bytes(self) -> int:
        return len(self.data_uri_start) + base64_bytes(self.size)


def base64_bytes(size: int) -> int:
    return (size + 2) // 3 * 4


def nothing() -> None:
    """Do nothing."""


class Inputs:
    """The pictures of one edit, in their order."""

    __slots__ = ("_close", "references", "stored")

    def __init__(
        self,
        given: Sequence[Picture | str] = (),
        close: Callable[[], None] = nothing,
    ) -> None:
        self.references = tuple(each if isinstance(each, str) else each.reference for each in given)
        """As in a call; pictures elsewhere by their URL."""
        self.stored = {each.reference: each for each in given if isinstance(each, Picture)}
        self._close = close

    @property
    def sent_bytes(self) -> int:
        """Their bytes in a call, each as often as it appears there."""
        found = (self.stored.get(reference) for reference in self.references)
        return sum(picture.data_uri_bytes for picture in found if picture is not None)

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Give back what holds them; they cannot be sent any more."""
        close, self._close = self._close, nothing
        close()


NO_INPUTS = Inputs()
