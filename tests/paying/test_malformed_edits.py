"""Three thousand bodies of edits that are wrong in some way, to a real process."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import pytest

from tests.figures import Figure
from tests.paying.shop import Fleet, Vendor
from tests.pictures import data_url, noise, picture, several
from tests.running import ACME, until

BODIES: Final = 3_000
CLIENTS: Final = 4
GROWTH_MIB: Final = 64
BOUNDARY: Final = b"x-boundary-of-the-form"
PATH: Final = "/openai/deployments/qwen-image-max/images/edits"
"""Of a model that edits nothing: a body that is mended by chance is read whole, and refused."""
FORM: Final = f"multipart/form-data; boundary={BOUNDARY.decode()}"

Body = tuple[str, bytes]
"""Its type and bytes."""


def part(head: bytes, content: bytes) -> bytes:
    return b"--%b\r\n%b\r\n\r\n%b\r\n" % (BOUNDARY, head, content)


def field(name: bytes, content: bytes) -> bytes:
    return part(b'Content-Disposition: form-data; name="%b"' % name, content)


def file(name: bytes, content: bytes) -> bytes:
    head = b'Content-Disposition: form-data; name="%b"; filename="a.png"' % name
    return part(head + b"\r\nContent-Type: image/png", content)


END: Final = b"--%b--\r\n" % BOUNDARY


class Wrong:
    """Makes bodies."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        whole = noise(size=(60, 60))
        self._images = [whole, whole[:3000], picture("JPEG"), several("WEBP"), b"", b"\x89PNG\r\n"]

    def bodies(self, count: int) -> Iterator[Body]:
        kinds = [
            self.cut, self.flipped, self.spliced, self.noise, self.odd_heads, self.odd_boundary,
            self.many_parts, self.odd_fields, self.json, self.json_flipped,
        ]  # fmt: skip
        for index in range(count):
            yield kinds[index % len(kinds)]()

    def _form(self) -> bytes:
        parts = [file(b"image[]", self._random.choice(self._images)) for _ in range(3)]
        parts += [field(b"prompt", b"a hat"), field(b"n", b"2"), field(b"user", b"x")]
        self._random.shuffle(parts)
        return b"".join(parts) + END

    def cut(self) -> Body:
        form = self._form()
        return FORM, form[: self._random.randrange(len(form))]

    def flipped(self) -> Body:
        """Some bytes are others; of the heads more than of the pictures."""
        form = bytearray(self._form())
        heads = [at for at in range(len(form) - 1) if form[at : at + 2] == b"--"]
        for _ in range(self._random.randrange(1, 20)):
            at = self._random.choice(heads) + self._random.randrange(120)
            form[at % len(form)] = self._random.randrange(256)
        return FORM, bytes(form)

    def spliced(self) -> Body:
        """Two halves that do not belong together."""
        one, other = self._form(), self._form()
        head = one[: self._random.randrange(len(one))]
        return FORM, head + other[self._random.randrange(len(other)) :]

    def noise(self) -> Body:
        start = self._random.choice([b"", b"--" + BOUNDARY, b"--" + BOUNDARY + b"\r\n", b"\r\n"])
        return FORM, start + self._random.randbytes(self._random.randrange(5000))

    def odd_heads(self) -> Body:
        head = self._random.choice([
            b"",
            b"Content-Disposition: form-data",
            b"Content-Disposition: attachment; name=image",
            b'Content-Disposition: form-data; name=""',
            b'Content-Disposition: form-data; name="image',
            b'Content-Disposition: form-data; name="image"\nX: y',
            b'Content-Disposition: form-data; name="image"\r\nContent-Length: 99999999999999999999',
            b'Content-Disposition: form-data; name="image"\r\nContent-Length: -1',
            b'Content-Disposition: form-data; name="image"' + b"\r\nContent-Length: 1" * 2,
            b'Content-Disposition: form-data; name="image"; filename="' + b"a" * 20_000 + b'"',
            b'Content-Disposition: form-data; name="image[99999999999]"',
            b'Content-Disposition: form-data; name="image[-1]"',
            b'Content-Disposition: form-data; name="im\x00age"',
            b'Content-Disposition: form-data; name="' + b"\xff\xfe" * 50 + b'"',
            b"X: " * 5000,
            b"\r\n".join(b"X-%d: y" % at for at in range(50)),
            b'Content-Disposition: form-data; name="prompt"\r\nContent-Type: a/b; charset=\xff',
        ])  # fmt: skip
        return FORM, part(head, picture()) + END

    def odd_boundary(self) -> Body:
        boundary = self._random.choice(
            ["", "x", '"', "a" * 3000, "é", '"with space"', BOUNDARY.decode() + "1", "-", "\t"]
        )
        return f"multipart/form-data; boundary={boundary}", self._form()

    def many_parts(self) -> Body:
        count = self._random.choice([17, 101, 2000])
        kind = self._random.choice([b"image", b"image[]", b"prompt", b"user", b"x"])
        one = field(kind, self._random.choice([b"", b"x", picture()]))
        return FORM, one * count + END

    def odd_fields(self) -> Body:
        name = self._random.choice([b"prompt", b"n", b"seed", b"size", b"stream", b"svg", b"model"])
        value = self._random.choice(
            [b"", b"\xff", b"\x00", b"-1", b"9" * 400, b"NaN", b"[]", b"{}", b"x" * 200_000]
        )
        return FORM, file(b"image", picture()) + field(name, value) + END

    def json(self) -> Body:
        reference = self._random.choice([
            "data:image/png;base64," + "A" * self._random.randrange(9),
            "data:image/png;base64,é",
            data_url(self._random.choice(self._images)),
            data_url(picture())[:-7],
            "data:;base64,",
            "data:" + "x" * 300 + ";base64,AAAA",
            "\0" + str(self._random.randrange(20)),
            "http://[::1",
            "http://" + "a" * 5000,
        ])  # fmt: skip
        images = [{"image_url": reference}] * self._random.choice([0, 1, 3, 17])
        return "application/json", json.dumps(
            {"images": images, "prompt": "a hat", "n": 1}
        ).encode()

    def json_flipped(self) -> Body:
        body = bytearray(self.json()[1])
        for _ in range(self._random.randrange(1, 8)):
            body[self._random.randrange(len(body))] = self._random.choice(b'"\\{}[]:,u0\x00\xff')
        return "application/json", bytes(body)


def statuses(url: str, bodies: list[Body]) -> Counter[int]:
    """What each is answered, over a connection that is kept where the gateway keeps it."""
    found: Counter[int] = Counter()
    address = urlsplit(url)
    connection = HTTPConnection(str(address.hostname), address.port, timeout=30)
    for kind, body in bodies:
        headers = {"Authorization": f"Bearer {ACME}", "Content-Type": kind.encode("latin-1")}
        try:
            connection.request("POST", PATH, body, headers)  # type: ignore[arg-type]
            answer = connection.getresponse()
            answer.read()
        except (HTTPException, OSError):  # it answered and closed while the body was on its way
            found[0] += 1
            connection.close()
            continue
        found[answer.status] += 1
    connection.close()
    return found


@pytest.mark.slow
def test_malformed_bodies_are_refused_and_cost_nothing(vendor: Vendor, figure: Figure) -> None:
    """No 5xx, no paid call, no file left open, no memory lost."""
    bodies = list(Wrong(1).bodies(BODIES))
    with Fleet(vendor, None, gateways=1, workers=1) as fleet:
        worker = Path(f"/proc/{fleet.gateways[0].pid}")
        statuses(fleet.urls[0], bodies[:200])
        files, before = len(list((worker / "fd").iterdir())), rss_mib(worker)
        with ThreadPoolExecutor(CLIENTS) as threads:
            shares = [bodies[index::CLIENTS] for index in range(CLIENTS)]
            found = sum(
                threads.map(lambda share: statuses(fleet.urls[0], share), shares), Counter()
            )
        growth = rss_mib(worker) - before
        until(lambda: len(list((worker / "fd").iterdir())) <= files + 2)

    figure(f"{BODIES} bodies: {dict(sorted(found.items()))}, memory {growth:+.1f} MiB")
    assert sum(found.values()) == BODIES
    assert set(found) <= {0, 400, 404, 413, 415}
    assert found[0] < BODIES / 10
    assert vendor.calls == 0
    assert growth <= GROWTH_MIB


def rss_mib(process: Path) -> float:
    status = (process / "status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024
