"""A failure as it travels to followers in other workers."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from msgspec import Struct

from gateway.domain.errors import GatewayError, InternalFault


class SharedError(Struct, frozen=True):
    """All that a client sees of a GatewayError."""

    kind: str
    """The name of its class."""
    message: str
    param: str | None = None
    code: str | None = None
    retry_after_s: float | None = None
    should_retry: bool | None = None


DECODER = msgspec.msgpack.Decoder(SharedError)


def encode_error(error: GatewayError) -> bytes:
    shared = SharedError(
        type(error).__name__,
        error.message,
        error.param,
        error.code,
        error.retry_after_s,
        error.should_retry,
    )
    return msgspec.msgpack.encode(shared)


def decode_error(shared: bytes) -> GatewayError:
    """The same error; an InternalFault for one that this version does not know."""
    try:
        told = DECODER.decode(shared)
    except msgspec.MsgspecError:
        return InternalFault("The generation failed.")
    kinds = {kind.__name__: kind for kind in subclasses(GatewayError)}
    kind = kinds.get(told.kind, InternalFault)
    error = kind.__new__(kind)
    GatewayError.__init__(
        error, told.message, param=told.param, code=told.code, retry_after_s=told.retry_after_s
    )
    error.should_retry = told.should_retry
    return error


def subclasses(kind: type[GatewayError]) -> Iterator[type[GatewayError]]:
    for each in kind.__subclasses__():
        yield each
        yield from subclasses(each)
