"""Addresses of Redis, taken apart and checked; docs/configuration.md has the forms.

User and password of a Sentinel URL are those of the Redis servers; `sentinel_username` and
`sentinel_password` are options. Messages repeat nothing of a URL: a misread part may be a password.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from urllib.parse import SplitResult, parse_qsl, unquote, unquote_plus, urlsplit

from msgspec import Struct

SCHEMES = (
    "redis",
    "rediss",
    "unix",
    "redis+sentinel",
    "rediss+sentinel",
    "redis+cluster",
    "rediss+cluster",
)
PORT, SENTINEL_PORT = 6379, 26379
DB = "db"
CHECK_HOSTNAME, CERT_REQS = "ssl_check_hostname", "ssl_cert_reqs"
TLS_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", CERT_REQS, CHECK_HOSTNAME)
SENTINEL_USERNAME, SENTINEL_PASSWORD = "sentinel_username", "sentinel_password"
SENTINEL_OPTIONS = (SENTINEL_USERNAME, SENTINEL_PASSWORD)
BOOLEANS = {"true": True, "false": False}
ONE_OF = {CERT_REQS: ("none", "optional", "required"), CHECK_HOSTNAME: tuple(BOOLEANS)}
ESCAPES = "in a password, / is %2F, ? is %3F, # is %23, @ is %40 and % is %25"

Host = tuple[str, int]


class RedisUrl(Struct, frozen=True, kw_only=True):
    """A socket, or hosts; one, several Sentinels of a service, or a cluster."""

    socket: str | None
    hosts: tuple[Host, ...]
    service: str | None
    is_cluster: bool
    db: int
    username: str | None
    password: str | None
    sentinel_username: str | None
    sentinel_password: str | None
    tls: bool
    tls_options: dict[str, str | bool]
    """As redis-py names them."""


def parse(url: str) -> RedisUrl:
    """Raises ValueError in words that are safe to show."""
    parts = split(url)
    form = parts.scheme.rpartition("+")[2]
    login, _, place = parts.netloc.rpartition("@")
    username, _, password = login.partition(":")
    names = [] if form == "unix" else [name for name in parts.path.split("/") if name]
    options = to_options(parts)
    return RedisUrl(
        socket=to_socket(place, parts.path) if form == "unix" else None,
        hosts=() if form == "unix" else to_hosts(place, form),
        service=to_service(names) if form == "sentinel" else None,
        is_cluster=form == "cluster",
        db=to_db([*names[form == "sentinel" :], *options.get(DB, "").split()], form),
        username=unquote(username) or None,
        password=unquote(password) or None,
        sentinel_username=options.get(SENTINEL_USERNAME),
        sentinel_password=options.get(SENTINEL_PASSWORD),
        tls=parts.scheme.startswith("rediss"),
        tls_options={
            name: BOOLEANS[value] if name == CHECK_HOSTNAME else value
            for name, value in options.items()
            if name in TLS_OPTIONS
        },
    )


def passwords(url: str) -> Iterator[str]:
    """Every password of an address, as written and as meant."""
    parts = urlsplit(url)
    asked = (pair.partition("=") for pair in parts.query.split("&"))
    own = (value for name, _, value in asked if unquote_plus(name) == SENTINEL_PASSWORD)
    for text in (parts.password, *own):
        if text:
            yield from (text, unquote(text), unquote_plus(text))


def split(url: str) -> SplitResult:
    if not any(url.startswith(f"{scheme}://") for scheme in SCHEMES):
        raise ValueError(f"expected one of {', '.join(f'{scheme}://' for scheme in SCHEMES)}")
    if not url.isprintable() or " " in url:
        raise ValueError("expected no spaces and no line ends")
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError(f"expected hosts that can be read; {ESCAPES}") from None
    if parts.fragment:
        raise ValueError(f"expected no #; {ESCAPES}")
    return parts


def to_options(parts: SplitResult) -> dict[str, str]:
    try:
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise ValueError(f"expected options as name=value; {ESCAPES}") from None
    options = dict(pairs)
    for_sentinels = SENTINEL_OPTIONS if "+sentinel" in parts.scheme else ()
    known_names = (DB, *for_sentinels, *TLS_OPTIONS)
    if not options.keys() <= set(known_names):
        raise ValueError(f"expected no options but {', '.join(known_names)}; {ESCAPES}")
    if options.keys() & set(TLS_OPTIONS) and not parts.scheme.startswith("rediss"):
        raise ValueError("expected a scheme with TLS, rediss, where there are options of TLS")
    for name, value in options.items():
        if not value or value not in ONE_OF.get(name, (value,)):
            known = " or ".join(ONE_OF.get(name, ("a value",)))
            raise ValueError(f"expected {known} for {name}")
    return options


def to_hosts(place: str, form: str) -> tuple[Host, ...]:
    default = SENTINEL_PORT if form == "sentinel" else PORT
    hosts = tuple(to_host(one, default) for one in place.split(","))
    if len(hosts) > 1 and form in {"redis", "rediss"}:
        raise ValueError("expected one host; several are redis+sentinel:// or redis+cluster://")
    return hosts


def to_host(text: str, default: int) -> Host:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError(f"expected a port from 1 to 65535; {ESCAPES}") from None
    if not host:
        raise ValueError(f"expected a host; {ESCAPES}")
    if port == 0:
        raise ValueError("expected a port from 1 to 65535")
    return host, port or default


def to_socket(place: str, path: str) -> str:
    if place or not path.strip("/"):
        raise ValueError("expected a path from the root: unix:///path/to.sock")
    return unquote(path)


def to_service(names: Sequence[str]) -> str:
    if not names:
        raise ValueError("expected the name of the service: redis+sentinel://host/service")
    return unquote(names[0])


def to_db(given: Sequence[str], form: str) -> int:
    if not given:
        return 0
    if len(given) > 1 or not given[0].isascii() or not given[0].isdecimal():
        raise ValueError(f"expected one number for the database; {ESCAPES}")
    db = int(given[0])
    if db and form == "cluster":
        raise ValueError("expected no database but 0, which is all that a cluster has")
    return db
