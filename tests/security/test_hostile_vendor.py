"""What the vendor, or a host of images, would try once it has been taken over."""

from __future__ import annotations

import json
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from msgspec.structs import replace

from gateway.config import Images, Limits
from tests.running import (
    UPSTREAM_KEY,
    Client,
    Logs,
    account,
    config_for,
    tenants,
)
from tests.running_fixtures import Start
from tests.security.calls import MODEL
from tests.security.hostile import HostileVendor, Listener, response, result

pytestmark = pytest.mark.slow


def test_a_vendor_s_count_is_not_believed(
    start: Start, vendor: HostileVendor, logs: Logs, tmp_path: Path
) -> None:
    """One answer with 20,000 addresses used up a tenant's budgets of a day and a month."""
    urls = [f"http://127.0.0.1:{vendor.port}/{number}.png" for number in range(20_000)]
    vendor.answers(result(*urls, urls[0]))
    limited = replace(tenants()[0], limits=Limits(images_per_day=10))
    config = config_for(
        account(vendor.base_url), tenants=(limited,), usage_log=str(tmp_path / "usage.jsonl")
    )
    gateway = start(config)

    answer = gateway.generate(model=MODEL, n=2)

    assert [image["url"] for image in answer.json()["data"]] == urls[:2]
    record = json.loads((tmp_path / "usage.jsonl").read_text())
    assert record["images"] == 2
    [told] = logs.named("surplus_images")
    assert told["surplus"] == 20_001 - 2
    assert gateway.generate(model=MODEL, n=8).status_code == 200


def hostile_gateway(start: Start, vendor: HostileVendor) -> Client:
    images = Images(
        allowed_hosts=(f"127.0.0.1:{vendor.port}", ".aliyuncs.com"),
        allow_http=True,
        timeout_s=3.0,
        max_bytes=1_000_000,
    )
    return start(config_for(account(vendor.base_url), images=images))


@pytest.mark.usefixtures("quick_retries")
@pytest.mark.parametrize("response_format", ["url", "b64_json"])
@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{inside}/",
        "http://localhost:{inside}/",
        "http://[::1]:{inside}/",
        "http://[::ffff:127.0.0.1]:{inside}/",
        "http://2130706433:{inside}/",
        "http://0x7f000001:{inside}/",
        "http://127.1:{inside}/",
        "http://0:{inside}/",
        "http://127.0.0.1:{vendor}@127.0.0.1:{inside}/",
        "http://x.aliyuncs.com@127.0.0.1:{inside}/",
        "http://127.0.0.1:{inside}/#.aliyuncs.com",
        "http://127.0.0.1:{inside}\\@x.aliyuncs.com/",
        "http://127.0.0.1.nip.io:{inside}/x.aliyuncs.com",
        "https://x.aliyuncs.com.evil.example/",
        "https://aliyuncs.com.:{inside}/",
        "http://169.254.169.254/latest/meta-data/",
        "http://metadata.google.internal/",
        "file:///etc/passwd",
        "gopher://127.0.0.1:{inside}/_GET",
        "javascript:alert(1)",
        "data:text/html,<script>alert(1)</script>",
        "//127.0.0.1:{inside}/",
        "http://127.0.0.1:{vendor}/a\r\nX-Evil: 1",
        "http://127.0.0.1:{vendor}/ GET /",
        "",
        "a" * 100_000,
    ],
)
def test_no_result_leads_anywhere_else(
    start: Start, vendor: HostileVendor, inside: Listener, url: str, response_format: str
) -> None:
    """Neither fetched, nor handed to a client who would fetch it."""
    filled = url.replace("{inside}", str(inside.port)).replace("{vendor}", str(vendor.port))
    vendor.answers(result(filled))
    answer = hostile_gateway(start, vendor).generate(model=MODEL, response_format=response_format)

    assert answer.status_code == 502
    assert inside.reached == 0
    assert "127.0.0.1" not in answer.text


@pytest.mark.usefixtures("quick_retries")
@pytest.mark.parametrize(
    "image",
    [
        pytest.param(
            b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:INSIDE/\r\n", id="redirect"
        ),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n", id="compressed"),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n", id="huge"),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n", id="below zero"),
        pytest.param(b"HTTP/1.1 200 OK\r\nx: " + b"a" * 100_000 + b"\r\n", id="a long header"),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n", id="no image"),
    ],
)
def test_an_image_host_cannot_lead_on_or_fill_the_memory(
    start: Start, vendor: HostileVendor, inside: Listener, image: bytes
) -> None:
    vendor.answers(result(f"http://127.0.0.1:{vendor.port}/a.png"))
    vendor.image = image.replace(b"INSIDE", b"%d" % inside.port) + b"\r\n<script>"
    answer = hostile_gateway(start, vendor).generate(model=MODEL, response_format="b64_json")

    assert answer.status_code == 502
    assert inside.reached == 0
    assert not any(UPSTREAM_KEY.encode() in asked for asked in vendor.asked if b"GET" in asked)


DEEP: Final = b'{"output":' * 100_000
MIB: Final = 1024 * 1024


def gzip_bomb(mib: int) -> bytes:
    """So much of one letter in a JSON string, which is never held whole here either."""
    packer = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    start, letters = packer.compress(b'{"output": "'), b"a" * MIB
    middle = b"".join(packer.compress(letters) for _ in range(mib))
    return start + middle + packer.compress(b'"}') + packer.flush()


@contextmanager
def little_memory(mib: int) -> Iterator[None]:
    """At no time more than so much above what there was before, in the gateway's thread and all."""
    tracemalloc.start()
    try:
        yield
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < mib * MIB


@pytest.mark.usefixtures("quick_retries")
@pytest.mark.parametrize(
    "says",
    [
        pytest.param(response(DEEP), id="deep"),
        pytest.param(response(b'{"output": {"choices": "a string"}}'), id="another type"),
        pytest.param(response(b'{"output": [1, 2, 3]}'), id="a list"),
        pytest.param(
            response(b'{"output": {"choices": [{"message": {"content": [{"image": 7}]}}]}}'),
            id="a number",
        ),
        pytest.param(response(b"[]"), id="no object"),
        pytest.param(response(b"\xff\xfe\x00"), id="no text"),
        pytest.param(response(b""), id="nothing"),
        pytest.param(response(b"<html>" + UPSTREAM_KEY.encode()), id="HTML with the key"),
        pytest.param(b"HTTP/1.1 200 OK\r\nx: " + b"a" * 200_000, id="a head without end"),
        pytest.param(b"SSH-2.0-OpenSSH\r\n", id="another protocol"),
        pytest.param(
            b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n",
            id="redirect",
        ),
        pytest.param(
            response(b"{}", head="retry-after: 99999999999999\r\n", status=429), id="wait for ever"
        ),
        pytest.param(response(b"{}", head="retry-after: nan\r\n", status=429), id="wait for NaN"),
        pytest.param(
            response(
                b'{"code": "X\\r\\nset-cookie: a=b", "message": "\\u001b[2J<script>"}', status=400
            ),
            id="an error with line ends",
        ),
    ],
)
def test_a_vendor_s_answer_that_is_none_is_an_error_of_the_gateway(
    start: Start, vendor: HostileVendor, says: bytes
) -> None:
    """In the published form, and without its words."""
    vendor.says = says
    answer = hostile_gateway(start, vendor).generate(model=MODEL)

    assert answer.status_code in {400, 429, 502, 503, 504}
    assert "set-cookie" not in answer.headers
    assert "<script>" not in answer.text
    assert "\\u001b" not in answer.text


@pytest.mark.parametrize("body", ["huge", "gzip bomb"])
def test_an_answer_is_neither_read_nor_unpacked_beyond_its_bound(
    body: str, start: Start, vendor: HostileVendor
) -> None:
    if body == "huge":
        vendor.says = response(b"x" * (64 * MIB))
    else:
        vendor.says = response(gzip_bomb(200), head="content-encoding: gzip\r\n")
    gateway = hostile_gateway(start, vendor)
    with little_memory(16):
        assert gateway.generate(model=MODEL).status_code == 502
