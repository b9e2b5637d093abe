"""Signed result URLs, in the form object storage gives them.

    /1d/3f/20261122/9b1c22aa/<name>.png?Expires=1795400000&OSSAccessKeyId=LTAI...&Signature=k%2Bw%2F...%3D

The signature is a percent-encoded base64 HMAC-SHA1, as in OSS signature version 1, so it is full of
`%2B`, `%2F` and `%3D`: a client that decodes or re-encodes the query breaks it.
"""

from __future__ import annotations

import hmac
import re
from base64 import b64encode
from typing import Literal
from urllib.parse import quote

ACCESS_KEY_ID = "LTAI5tSimulatorOnlyKey00"

Verdict = Literal["valid", "unsigned", "mismatch", "expired"]

_QUERY = re.compile(rb"Expires=(\d{1,12})&OSSAccessKeyId=[^&]*&Signature=[^&]+")


class Signer:
    """Signs paths and checks signed ones; the secret never leaves the process."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def query(self, path: str, expires: int) -> str:
        """The query string that opens `path` until `expires`, in Unix seconds."""
        signature = quote(self.signature(path, expires), safe="")
        return f"Expires={expires}&OSSAccessKeyId={ACCESS_KEY_ID}&Signature={signature}"

    def signature(self, path: str, expires: int) -> str:
        """Base64 of the HMAC over path and expiry."""
        text = f"GET\n\n\n{expires}\n{path}".encode()
        return b64encode(hmac.digest(self._secret, text, "sha1")).decode()

    def check(self, raw_path: bytes, raw_query: bytes, now: float) -> Verdict:
        """Whether this very query, byte for byte, opens the path at `now` (Unix seconds)."""
        match = _QUERY.fullmatch(raw_query)
        if match is None:
            return "mismatch" if b"Signature=" in raw_query else "unsigned"
        expires = int(match[1])
        expected = self.query(raw_path.decode("latin-1"), expires).encode()
        if not hmac.compare_digest(expected, raw_query):
            return "mismatch"
        return "valid" if now < expires else "expired"
