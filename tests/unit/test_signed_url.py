"""When signed URLs die, by the forms that object storage gives them."""

from __future__ import annotations

import pytest

from gateway.results.cache_policy import LONGEST_URL_LIFE_S, URL_LIFE_S, expires_at, expiry

NOON = 1_763_812_800


@pytest.mark.parametrize(
    ("query", "life_s"),
    [
        (f"Expires={NOON + 3600}&OSSAccessKeyId=a&Signature=b%3D", 3600),
        (f"a=1&Expires={NOON + 50}&Expires={NOON + 40}", 40),
        (f"Expires={NOON - 10}", -10),
        ("Expires=0", -NOON),
        (f"Expires={NOON + LONGEST_URL_LIFE_S}", LONGEST_URL_LIFE_S),
        ("", URL_LIFE_S),
        ("Expires=", URL_LIFE_S),
        ("Expires=soon", URL_LIFE_S),
        ("Expires=-5", URL_LIFE_S),
        (f"Expires={NOON * 1000}", URL_LIFE_S),
        (f"Expires={'9' * 5000}", URL_LIFE_S),
        (f"expires={NOON + 3600}", URL_LIFE_S),
        ("Expires=٣", URL_LIFE_S),
        ("x-oss-date=20251122T120000Z&x-oss-expires=3600&x-oss-signature=b", 3600),
        ("x-oss-expires=3600&x-oss-date=20251122T115000Z", 3000),
        ("X-Amz-Date=20251122T120000Z&X-Amz-Expires=900&X-Amz-Signature=b", 900),
        ("X-Goog-Date=20251122T120000Z&X-Goog-Expires=604800", LONGEST_URL_LIFE_S),
        ("x-oss-date=20251121T000000Z&x-oss-expires=60", 60 - 129_600),
        (f"Expires={NOON + 50}&x-oss-date=20251122T120000Z&x-oss-expires=40", 40),
        ("x-oss-date=20251122T120000Z&x-oss-expires=9999999", URL_LIFE_S),
        ("x-oss-date=20251122T120000Z&x-amz-expires=3600", URL_LIFE_S),
        ("x-oss-date=20251122T120000Z", URL_LIFE_S),
        ("x-oss-expires=3600", URL_LIFE_S),
        ("x-oss-date=today&x-oss-expires=3600", URL_LIFE_S),
        ("x-oss-date=20251122T120000Z&x-oss-expires=-1", URL_LIFE_S),
    ],
)
def test_a_url_says_when_it_dies(query: str, life_s: int) -> None:
    assert expiry(f"https://host/1d/a.png?{query}", NOON) == NOON + life_s


def test_a_url_that_cannot_be_read_lives_as_documented() -> None:
    assert expiry("https://[broken?Expires=5", NOON) == NOON + URL_LIFE_S


def test_a_result_lives_as_long_as_its_first_url_to_die() -> None:
    urls = [f"https://host/{life}.png?Expires={NOON + life}" for life in (500, 300, 400)]
    assert expires_at(urls, NOON) == NOON + 300
