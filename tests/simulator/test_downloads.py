from __future__ import annotations

import asyncio
import hashlib
import http.client
import socket
from io import BytesIO
from urllib.parse import urlsplit

import httpx
import pytest
from msgspec.structs import replace
from PIL import Image

from gateway.simulator.gallery import Gallery, Issued
from gateway.simulator.images import Picture
from gateway.simulator.settings import Settings
from tests.simulated import SimulatedDashScope
from tests.simulator.calls import KEY, Ask, Clock, urls_in


def fetch(url: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body, the URL sent exactly as it is."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=5)
    try:
        connection.request(method, f"{parts.path}?{parts.query}", headers=headers)
        response = connection.getresponse()
        shown = {name.lower(): value for name, value in response.getheaders()}
        return response.status, shown, response.read()
    finally:
        connection.close()


@pytest.fixture
def url(ask: Ask) -> str:
    return urls_in(ask(size="640*512", seed=7))[0]


def test_an_image_is_a_png_of_the_size_asked(url: str) -> None:
    """With the headers object storage sends."""
    status, headers, body = fetch(url)
    assert status == 200
    assert Image.open(BytesIO(body)).size == (640, 512)
    assert headers["content-type"] == "image/png"
    assert headers["content-length"] == str(len(body))
    assert headers["accept-ranges"] == "bytes"
    digest = hashlib.md5(body, usedforsecurity=False).hexdigest().upper()
    assert headers["etag"] == f'"{digest}"'
    assert headers["server"] == "AliyunOSS"


def test_the_prompt_is_painted_when_rendering_text(sim: SimulatedDashScope, ask: Ask) -> None:
    """In a thread, on the first download."""
    sim.configure(render="text")
    image = Image.open(BytesIO(fetch(urls_in(ask("two dogs", size="640*512"))[0])[2]))
    image.load()
    assert image.size == (640, 512)
    assert image.info["prompt"] == "two dogs"


def test_head_tells_the_length_without_the_body(url: str) -> None:
    """And the same ETag."""
    _, whole, body = fetch(url)
    status, headers, nothing = fetch(url, "HEAD")
    assert (status, nothing) == (200, b"")
    assert headers["content-length"] == str(len(body))
    assert headers["etag"] == whole["etag"]


@pytest.mark.parametrize(
    ("wanted", "first", "last"),
    [
        ("bytes=0-99", 0, 99),
        ("bytes=100-", 100, None),
        ("bytes=-50", -50, None),
        ("bytes=10-10", 10, 10),
        ("bytes=0-99999999", 0, None),
        ("bytes=-99999999", 0, None),
    ],
)
def test_a_range_is_answered_with_that_part(
    url: str, wanted: str, first: int, last: int | None
) -> None:
    """206, and where the part belongs."""
    whole = fetch(url)[2]
    status, headers, part = fetch(url, Range=wanted)
    expected = whole[first:] if last is None else whole[first : last + 1]
    start = first % len(whole)
    assert status == 206
    assert part == expected
    end = start + len(part) - 1
    assert headers["content-range"] == f"bytes {start}-{end}/{len(whole)}"
    assert headers["content-length"] == str(len(part))


@pytest.mark.parametrize("wanted", ["bytes=99999999-", "bytes=5-4", "bytes=-0"])
def test_a_range_outside_the_image_is_416(url: str, wanted: str) -> None:
    """As XML."""
    status, _, body = fetch(url, Range=wanted)
    assert status == 416
    assert b"<Code>InvalidRange</Code>" in body


@pytest.mark.parametrize("wanted", ["bytes=-", "bytes=1-2,4-5", "lines=1-2", "bytes=x-y"])
def test_a_range_not_understood_is_ignored(url: str, wanted: str) -> None:
    """The whole image, as HTTP allows."""
    assert fetch(url, Range=wanted)[0] == 200


@pytest.mark.parametrize(("escaped", "plain"), [("%2B", "+"), ("%2F", "/"), ("%3D", "=")])
def test_a_query_with_an_escape_undone_is_refused(ask: Ask, escaped: str, plain: str) -> None:
    """403, as object storage words it."""
    url = next(url for _ in range(20) for url in urls_in(ask()) if escaped in url)
    for spoilt in (url.replace(escaped, plain), url.replace(escaped, escaped.lower())):
        status, headers, body = fetch(spoilt)
        assert status == 403
        assert headers["content-type"] == "application/xml"
        assert b"<Code>SignatureDoesNotMatch</Code>" in body


def test_a_url_that_expired_is_refused(url: str, clock: Clock) -> None:
    """403, in the words clients look for; a moment earlier it works."""
    clock.advance(86_399)
    assert fetch(url)[0] == 200
    clock.advance(1)
    status, _, body = fetch(url)
    assert status == 403
    assert b"<Code>AccessDenied</Code>" in body
    assert b"<Message>Request has expired.</Message>" in body


def test_a_url_without_its_query_is_refused(url: str) -> None:
    """The bucket is private."""
    status, _, body = fetch(url.partition("?")[0])
    assert status == 403
    assert b"<Code>AccessDenied</Code>" in body


def test_a_key_sent_along_is_refused_and_counted(sim: SimulatedDashScope, url: str) -> None:
    """A gateway that does this leaks its DashScope key."""
    status, _, body = fetch(url, **KEY)
    assert status == 400
    assert b"<Code>InvalidArgument</Code>" in body
    assert sim.state()["authorised_downloads"] == 1


def test_other_methods_are_not_allowed(url: str) -> None:
    """Nobody writes here."""
    assert fetch(url, "PUT")[0] == 405


def test_old_images_are_forgotten(sim: SimulatedDashScope, ask: Ask) -> None:
    """404 beyond the number remembered, though the URL is still signed."""
    sim.configure(issued_images_max=2)
    urls = [urls_in(ask())[0] for _ in range(3)]
    assert [fetch(url)[0] for url in urls] == [404, 200, 200]


def test_a_reset_forgets_the_images(sim: SimulatedDashScope, url: str) -> None:
    """And everything else."""
    sim.reset()
    status, _, body = fetch(url)
    assert status == 404
    assert b"<Code>NoSuchKey</Code>" in body


def test_downloads_are_counted_by_answer(sim: SimulatedDashScope, url: str) -> None:
    """Refused ones too."""
    fetch(url)
    fetch(url, Range="bytes=0-1")
    fetch(url.partition("?")[0])
    assert sim.state()["downloads"] == {"200": 1, "206": 1, "403": 1}


def test_images_can_be_heavy(sim: SimulatedDashScope, url: str) -> None:
    """Eight megabytes that do not compress, still a PNG."""
    sim.configure(image_bytes=8_000_000)
    body = fetch(url)[2]
    assert len(body) == 8_000_000
    assert Image.open(BytesIO(body)).size == (640, 512)


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        ("image_404", 404, b"NoSuchKey"),
        ("image_500", 500, b"InternalError"),
        ("image_expired", 403, b"Request has expired."),
    ],
)
def test_a_download_can_be_refused(
    sim: SimulatedDashScope, url: str, kind: str, status: int, code: bytes
) -> None:
    """Once, in XML; then it works again."""
    sim.fault(kind)
    refused = fetch(url)
    assert refused[0] == status
    assert code in refused[2]
    assert fetch(url)[0] == 200
    assert sim.state()["faults"] == {kind: 1}


def test_a_download_can_be_cut_short(sim: SimulatedDashScope, url: str) -> None:
    """After so many bytes of the length announced, or half of them."""
    whole = len(fetch(url)[2])
    for details, got in (({"at_byte": 100}, 100), ({}, whole // 2), ({"at_byte": 0}, 0)):
        sim.fault("image_truncated", **details)
        with pytest.raises(http.client.IncompleteRead) as cut:
            fetch(url)
        assert len(cut.value.partial) == got
    assert sim.state()["downloads"] == {"200": 1, "cut": 3}


def test_a_download_can_be_reset(sim: SimulatedDashScope, url: str) -> None:
    """Before anything is answered."""
    sim.fault("image_reset")
    with pytest.raises(ConnectionResetError):
        fetch(url)


def test_a_download_can_drip(sim: SimulatedDashScope, url: str, clock: Clock) -> None:
    """At a given rate, complete in the end."""
    whole = fetch(url)[2]
    sim.fault("image_slow", bytes_per_s=1000)
    assert fetch(url)[2] == whole
    assert sum(clock.naps) == pytest.approx(len(whole) / 1000, abs=0.1)


def test_a_download_can_come_late(sim: SimulatedDashScope, url: str, clock: Clock) -> None:
    """`after_s` works with image faults too."""
    sim.fault("image_404", after_s=3)
    assert fetch(url)[0] == 404
    assert clock.naps == [3]


def test_a_download_can_hang(sim: SimulatedDashScope, url: str) -> None:
    """Until the client leaves."""
    sim.fault("image_hang")
    with httpx.Client(trust_env=False, timeout=0.2) as client, pytest.raises(httpx.ReadTimeout):
        client.get(url)


def test_a_download_can_redirect(sim: SimulatedDashScope, url: str) -> None:
    """To anywhere: a client should not follow blindly."""
    sim.fault("image_redirect", location="http://169.254.169.254/latest/meta-data/")
    status, headers, body = fetch(url)
    assert (status, body) == (302, b"")
    assert headers["location"] == "http://169.254.169.254/latest/meta-data/"


def test_a_download_can_have_the_wrong_type_or_content(sim: SimulatedDashScope, url: str) -> None:
    """The image as HTML, and HTML as an image."""
    whole = fetch(url)[2]
    sim.fault("image_wrong_type")
    wrong_type = fetch(url)
    sim.fault("image_not_png")
    not_png = fetch(url)
    assert (wrong_type[1]["content-type"], wrong_type[2]) == ("text/html", whole)
    assert not_png[1]["content-type"] == "image/png"
    assert not_png[2].startswith(b"<!doctype html>")


def test_a_download_can_be_oversized(sim: SimulatedDashScope, url: str) -> None:
    """As large as wanted, with its length announced."""
    sim.fault("image_oversized", size_bytes=3_000_000)
    status, headers, body = fetch(url)
    assert (status, headers["content-length"], len(body)) == (200, "3000000", 3_000_000)


def test_an_image_fault_may_wait_for_a_model(sim: SimulatedDashScope, ask: Ask) -> None:
    """That of the image, not of the next call."""
    sim.fault("image_404", model="qwen-image-max")
    assert fetch(urls_in(ask())[0])[0] == 200
    assert fetch(urls_in(ask(model="qwen-image-max"))[0])[0] == 404


def test_a_raw_path_is_matched_byte_for_byte(sim: SimulatedDashScope, url: str) -> None:
    """An escape that means the same is another path to a signature."""
    parts = urlsplit(url)
    path = parts.path.replace("-1.png", "%2D1.png")
    with socket.create_connection(("127.0.0.1", sim.port), timeout=5) as raw:
        raw.sendall(f"GET {path}?{parts.query} HTTP/1.0\r\nHost: x\r\n\r\n".encode())
        assert raw.recv(100).startswith(b"HTTP/1.1 403")


PICTURE = Picture(model="m", prompt="p", negative_prompt="", seed=1, index=0, width=64, height=64)


async def test_an_image_wanted_by_many_is_painted_once() -> None:
    """While it is being painted, and after."""
    gallery = Gallery()
    settings = Settings(render="text")
    together = await asyncio.gather(*(gallery.png(PICTURE, settings) for _ in range(5)))
    assert {id(rendered) for rendered in together} == {id(await gallery.png(PICTURE, settings))}


async def test_a_client_that_gives_up_does_not_spoil_it_for_others() -> None:
    """The painting goes on."""
    gallery = Gallery()
    settings = Settings(render="text")
    impatient = asyncio.ensure_future(gallery.png(PICTURE, settings))
    patient = asyncio.ensure_future(gallery.png(PICTURE, settings))
    await asyncio.sleep(0)
    impatient.cancel()
    assert (await patient).png.startswith(b"\x89PNG")


async def test_rendered_bytes_are_bounded() -> None:
    """The least recently fetched goes first; what is too large is not kept at all."""
    gallery = Gallery()
    size = len((await gallery.png(PICTURE, Settings(render="plain"))).png)
    settings = Settings(render="plain", rendered_max_bytes=size * 2)
    pictures = [replace(PICTURE, seed=seed) for seed in range(3)]
    kept = [await gallery.png(picture, settings) for picture in pictures]
    assert await gallery.png(pictures[2], settings) is kept[2]
    assert await gallery.png(pictures[0], settings) is not kept[0]
    none = Settings(render="plain", rendered_max_bytes=0)
    assert await gallery.png(PICTURE, none) is not await gallery.png(PICTURE, none)


def test_a_gallery_forgets_the_oldest() -> None:
    """Bounded by number."""
    gallery = Gallery()
    for number in range(3):
        gallery.issue(str(number), Issued(PICTURE), 2)
    assert [gallery.find(str(number)) is not None for number in range(3)] == [False, True, True]
