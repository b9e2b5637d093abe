"""What the lines of a request's head say together."""

from __future__ import annotations

import pytest

from gateway.api.image_request import parse_options
from gateway.domain.errors import InvalidRequest
from gateway.requests.pipeline import RequestOptions
from gateway.tenants.keys import Caller
from tests.running import tenants

ONLY_CACHED = (b"cache-control", b"only-if-cached")
OTHERS = (b"cache-control", b"max-age=60, max-stale=1")


def options_of(*lines: tuple[bytes, bytes]) -> RequestOptions:
    acme, *_ = tenants()
    return parse_options(lines, Caller(acme, acme.keys[0]), {"prompt": "a fox"}, 300.0)


@pytest.mark.parametrize("lines", [(ONLY_CACHED, OTHERS), (OTHERS, ONLY_CACHED)])
def test_several_lines_of_cache_control_are_one_list(
    lines: tuple[tuple[bytes, bytes], ...],
) -> None:
    """A proxy may add its own, and must not hide what the client forbids."""
    control = options_of(*lines).control
    assert control.only_if_cached
    assert control.max_age_s == 60


def test_the_lines_together_are_not_longer_than_one_may_be() -> None:
    line = (b"cache-control", b"x" * 600)
    options_of(line)
    with pytest.raises(InvalidRequest) as refused:
        options_of(line, line)
    assert refused.value.code == "invalid_cache_control"


def test_two_different_idempotency_keys_are_refused() -> None:
    """Either might be the one by which its images are found."""
    with pytest.raises(InvalidRequest) as refused:
        options_of((b"idempotency-key", b"one"), (b"idempotency-key", b"two"))
    assert refused.value.code == "invalid_idempotency_key"


def test_the_same_idempotency_key_twice_is_one() -> None:
    one = (b"idempotency-key", b"one")
    assert options_of(one, one).idempotency == options_of(one).idempotency
    assert options_of(one).idempotency is not None
