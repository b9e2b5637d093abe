from __future__ import annotations

from urllib.parse import quote, unquote

import pytest

from gateway.simulator.signing import Signer

SIGNER = Signer(b"secret")
PATH = "/1d/3f/20261122/9b1c22aa/x-1.png"


def test_a_signed_path_opens_until_it_expires() -> None:
    """The second it expires is too late."""
    query = SIGNER.query(PATH, 1000).encode()
    assert SIGNER.check(PATH.encode(), query, 999.9) == "valid"
    assert SIGNER.check(PATH.encode(), query, 1000) == "expired"


def test_another_path_or_expiry_does_not_open() -> None:
    """Both are signed."""
    query = SIGNER.query(PATH, 1000)
    later = query.replace("Expires=1000", "Expires=2000").encode()
    assert SIGNER.check(PATH.encode(), later, 0) == "mismatch"
    assert SIGNER.check(b"/1d/other.png", query.encode(), 0) == "mismatch"


def test_another_secret_does_not_open() -> None:
    """A restart makes old URLs worthless."""
    query = Signer(b"other").query(PATH, 1000).encode()
    assert SIGNER.check(PATH.encode(), query, 0) == "mismatch"


def _signature_with_plus_and_slash() -> str:
    queries = (SIGNER.query(PATH, expires) for expires in range(1000, 3000))
    return next(query for query in queries if "%2B" in query and "%2F" in query)


@pytest.mark.parametrize(
    "damage",
    [
        unquote,
        lambda query: query.replace("%2B", "+"),
        lambda query: query.replace("%2F", "/"),
        lambda query: query.replace("%2B", "%2b"),
        lambda query: query.replace("%3D", "="),
        lambda query: quote(query, safe="=&"),
        lambda query: query + "&x-oss-process=image",
        lambda query: "&".join(reversed(query.split("&"))),
    ],
)
def test_a_query_decoded_or_encoded_again_does_not_open(damage: object) -> None:
    """Byte for byte, or not at all."""
    query = _signature_with_plus_and_slash()
    assert callable(damage)
    spoilt = damage(query)
    assert spoilt != query
    assert SIGNER.check(PATH.encode(), spoilt.encode(), 0) == "mismatch"


@pytest.mark.parametrize("query", [b"", b"Expires=1000", b"x=1"])
def test_a_query_without_a_signature_is_unsigned(query: bytes) -> None:
    """Object storage words that differently."""
    assert SIGNER.check(PATH.encode(), query, 0) == "unsigned"
