"""What the log says, and what it never does."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator

import pytest
import structlog

from gateway.observability.log_writer import log_writer
from gateway.observability.logs import NOISY, configure_logs, masker, prompt_facts

Written = Callable[[], str]


@pytest.fixture
def written(capfd: pytest.CaptureFixture[str]) -> Iterator[Written]:
    """What came out on standard error; the logging is put back afterwards."""
    levels = {name: logging.getLogger(name).level for name in ("", *NOISY)}
    handlers = logging.getLogger().handlers[:]

    def read() -> str:
        log_writer.flush()
        return capfd.readouterr().err

    yield read
    logging.captureWarnings(capture=False)
    logging.getLogger().handlers[:] = handlers
    structlog.reset_defaults()
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def test_a_prompt_is_its_length_and_hash() -> None:
    facts = prompt_facts("a secret fox")

    digest = hashlib.sha256(b"a secret fox").hexdigest()
    assert facts == {"prompt_length": 12, "prompt_sha256": digest[:16]}
    assert "fox" not in json.dumps(facts)
    assert facts == prompt_facts("a secret fox")
    assert facts != prompt_facts("a secret hen")


def test_a_line_is_json(written: Written) -> None:
    configure_logs(json_lines=True)

    structlog.get_logger().bind(request_id="req_1").warning("it_happened", odd='quo"te\n')

    [line] = written().splitlines()
    told = json.loads(line)
    assert (told["event"], told["level"], told["request_id"]) == ("it_happened", "warning", "req_1")
    assert told["odd"] == 'quo"te\n'
    assert told["timestamp"].endswith("Z")


def test_a_line_for_people_is_readable(written: Written) -> None:
    configure_logs(json_lines=False)

    structlog.get_logger().info("it_happened", answer=42)

    line = written()
    assert "it_happened" in line
    assert not line.startswith("{")


def test_a_level_hides_what_is_below(written: Written) -> None:
    configure_logs(json_lines=True, level="warning")

    structlog.get_logger().info("unimportant")
    structlog.get_logger().error("important")

    [line] = written().splitlines()
    assert json.loads(line)["event"] == "important"


def test_a_traceback_goes_to_the_log(written: Written) -> None:
    configure_logs(json_lines=True)
    try:
        raise ValueError("inside")  # noqa: TRY301 - it is the traceback that is wanted
    except ValueError as fault:
        structlog.get_logger().error("defect", exc_info=fault)

    assert "ValueError: inside" in json.loads(written())["exception"]


def test_libraries_do_not_log_each_request(written: Written) -> None:
    """One of them has a line per request at INFO, with the whole URL."""
    configure_logs(json_lines=True)

    for name in NOISY:
        assert not logging.getLogger(name).isEnabledFor(logging.INFO)


@pytest.mark.parametrize("json_lines", [True, False])
def test_a_secret_is_masked_however_it_is_spelt(json_lines: bool, written: Written) -> None:
    """Where the log spells a character of it out, too."""
    secret = "key-é-\u2028-\x85-\x1b"
    configure_logs(json_lines=json_lines, secrets=[secret])

    structlog.get_logger().info("leak", text=secret, quoted=f"a {secret}", deep=[secret])

    masker.forget()
    assert written().count("*****") == 3


SIGNED = (
    "https://h.aliyuncs.com/1d/x.png?Expires=1763886400&OSSAccessKeyId=SECRETid&Signature=SECRET%3D",
    "https://h/x.png?x-oss-signature-version=OSS4&x-oss-credential=SECRET%2F20251122&x-oss-expires=3600",
    "https://h/x.png?x-oss-date=20251122T120000Z&x-oss-expires=3600&x-oss-signature=SECRET",
    "https://h/x.png?security-token=SECRET%2Bx&Expires=1763886400",
    "https://h/x.png?X-Amz-Credential=SECRET&X-Amz-Date=20251122T120000Z&X-Amz-Signature=SECRET",
    "https://h/x.png?sig=SECRET&se=2025-11-22",
    "/1d/x.png?Signature=SECRET",
    "Signature=SECRET",
    r"https://h/x.png?Expires=1\u0026OSSAccessKeyId=SECRET\u0026Signature=SECRET",
    "https://h/x.png?Expires=1&amp;OSSAccessKeyId=SECRET&amp;Signature=SECRET",
    "https://proxy/?url=https%3A%2F%2Fh%2Fx.png%3FExpires%3D1%26OSSAccessKeyId%3DSECRET",
    "cannot read https%3A%2F%2Fh%2Fx.png%3FOSSAccessKeyId%3DSECRET%26Signature%3DSECRET",
)


@pytest.mark.parametrize("json_lines", [True, False])
@pytest.mark.parametrize("url", SIGNED)
def test_what_opens_a_signed_url_is_masked(url: str, json_lines: bool, written: Written) -> None:
    """Whatever the vendor calls it; when it dies stays, for those who read the log."""
    configure_logs(json_lines=json_lines)

    structlog.get_logger().info("leak", url=url, deep=[{"url": url}], text=f"cannot get '{url}'.")

    output = written()
    assert "SECRET" not in output
    for plain in ("Expires=1763886400", "x-oss-expires=3600", "X-Amz-Date=20251122T120000Z"):
        assert (plain in output) is (plain in url)


@pytest.mark.slow
@pytest.mark.timeout(10)
@pytest.mark.parametrize("piece", ["?", "?a", "&a=", "%26", "://", "://:", ":", "a" * 63 + "&"])
def test_no_text_takes_long_to_mask(piece: str) -> None:
    """Foreign text of a megabyte is read once, not once for each of its characters."""
    masker(None, "", "://" + piece * (2**20 // len(piece)))
