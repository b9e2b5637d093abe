"""The sections of the configuration file, typed and frozen; every key with its default.

A type has the name of its section: what works by it elsewhere is called otherwise, or says how it
differs, as `store.limits.Limits` does.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from gateway.config.decode import Secret
from gateway.config.egress import Proxies
from gateway.config.redis_url import passwords
from gateway.domain.catalogue import Alias, Catalogue, Rate, matches
from gateway.domain.prices import Money, Tiers
from gateway.protocol.openai import ResponseFormat

Port = Annotated[int, Meta(ge=0, le=65535)]
Positive = Annotated[float, Meta(gt=0, le=31_536_000)]
Count = Annotated[int, Meta(ge=1)]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]
KeyPrefix = Annotated[str, Meta(pattern=r"^[!-z|~]{0,64}\Z")]
KeyHash = Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}\Z")]
HeaderName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9-]{0,63}\Z")]
Globs = tuple[str, ...]
DRAIN_S = 330
LOOPBACK = ("127.0.0.0/8", "::1/128")


class Listen(Struct, frozen=True):
    """Where the gateway listens."""

    host: str = "127.0.0.1"
    """An address; `0.0.0.0` is all of IPv4, `::` all of IPv6 and IPv4."""
    port: Port = 8080
    keep_alive_s: Positive = 75.0
    """How long an idle connection is kept: longer than the balancer in front keeps its own."""
    max_connections: Count = 20_000
    """In one worker; what comes beyond is refused (503)."""


class Auth(Struct, frozen=True):
    """Where callers put their key."""

    header: HeaderName | None = None
    """The only header read for a key, as `KEY` or `Bearer KEY`, where a proxy has `Authorization`
    to itself. Absent: `Authorization: Bearer KEY` and `api-key: KEY`."""


class Cors(Struct, frozen=True):
    """Which web pages may call the gateway from a browser."""

    allow_origins: tuple[str, ...] = ()
    """Origins as browsers send them, such as `https://app.example.com`; `*` is every page."""


class OnLoss(Struct, frozen=True):
    """What happens while Redis is away: see docs/reliability.md for the bound of each."""

    rates: Literal["local", "allow", "refuse"] = "local"
    """Requests and images a minute, concurrent requests; `local` is this worker's share."""
    budgets: Literal["local", "allow", "refuse"] = "refuse"
    """Images a day, spend a month."""


class Redis(Struct, frozen=True, kw_only=True):
    """The store that workers and replicas share."""

    url: Secret
    """Where Redis is, see [below](#addresses-of-redis)."""
    prefix: KeyPrefix = "gateway:"
    """What every key begins with; no braces, by which a cluster tells where keys belong."""
    connect_timeout_ms: Count = 100
    command_timeout_ms: Count = 50
    replicas: Count = 1
    """Gateways that share it; used for the local share until Redis knows the number."""
    on_loss: OnLoss = OnLoss()


class MetricsListen(Struct, frozen=True, kw_only=True):
    """A separate address for metrics and health."""

    port: Port
    host: str = "127.0.0.1"


class Metrics(Struct, frozen=True):
    """Where /metrics is, and who may read it."""

    listen: MetricsListen | None = None
    """`{host, port}` that serve only /metrics, /healthz and /readyz, to the end of a drain. Absent:
    the main address. /healthz and /readyz are there in any case."""
    allow: tuple[str, ...] | None = None
    """Networks of direct peers. A proxy in them must deny the path: we cannot detect every proxy.
    Absent: this machine; with `listen`, all that reach that address."""

    def networks(self) -> tuple[str, ...] | None:
        """None for everybody."""
        return LOOPBACK if self.allow is None and self.listen is None else self.allow


class Reading(Struct, frozen=True, kw_only=True):
    """What requests may take of one worker before they are admitted; beyond it: 429, or 503."""

    head_timeout_s: Positive = 20.0
    body_timeout_s: Positive = 30.0
    unread_bytes: Count = 16 * 1024 * 1024
    """Bytes of unfinished heads and of requests sent ahead, before their tenant is known."""
    worker_bytes: Count = 64 * 1024 * 1024
    """Bytes of the bodies of all tenants."""
    tenant_bytes: Count = 16 * 1024 * 1024
    """Bytes of one tenant's bodies."""
    tenant_requests: Count = 1_000
    """Requests of one tenant whose bodies are incomplete."""


class Sending(Struct, frozen=True, kw_only=True):
    """How fast the images of a `b64_json` answer must be taken; a slower client is cut off.

    The images are kept for a retry.
    """

    least_bytes_per_s: Annotated[int, Meta(ge=4_096)] = 16 * 1024
    """On average over a window; a client that was faster before may pause."""
    window_s: Annotated[float, Meta(gt=0, le=60)] = 60.0
    """The longest pause."""
    grace_s: Annotated[float, Meta(gt=0, le=60)] = 30.0
    """The longest pause at the beginning."""


class Uploads(Struct, frozen=True, kw_only=True):
    """What pictures of edits may take of one worker until they are sent; beyond it: 429, or 503.

    They wait in files, so that memory does not grow with them.
    """

    directory: str | None = None
    """Where those files are: on a disk, not in memory. Absent: TMPDIR, or /tmp."""
    max_image_bytes: Annotated[int, Meta(ge=1, le=64 * 1024 * 1024)] = 10 * 1024 * 1024
    """The largest picture; those over 7.5 MiB are written smaller for the vendor."""
    max_pixels: Count = 16_777_216
    """Width times height of a PNG or a progressive JPEG; half as much for a WebP, four times as
    much for another JPEG, so that decoding takes much the same memory."""
    max_body_bytes: Count = 64 * 1024 * 1024
    """The largest body of an edit."""
    body_timeout_s: Positive = 120.0
    worker_bytes: Count = 1024 * 1024 * 1024
    """Bytes of all tenants' edits that are read, wait, or are being sent."""
    tenant_bytes: Count = 512 * 1024 * 1024
    """Bytes of one tenant's edits."""
    tenant_requests: Count = 100
    """Edits of one tenant whose pictures have not all come and been examined."""

    @property
    def reading(self) -> Reading:
        return Reading(
            body_timeout_s=self.body_timeout_s,
            worker_bytes=self.worker_bytes,
            tenant_bytes=self.tenant_bytes,
            tenant_requests=self.tenant_requests,
        )


class Pacing(Struct, frozen=True):
    """How many upstream calls may wait for their slot in one worker."""

    waiting_per_model: Count = 10_000
    waiting_per_tenant: Count = 5_000
    """Calls of one tenant for one model."""


class Account(Struct, frozen=True, kw_only=True):
    """A DashScope account. Accounts are tried in the order of the file."""

    name: Name
    base_url: str
    api_key: Secret
    models: Globs = ("*",)
    """Models this account is used for."""
    rates: dict[str, Rate] = field(default_factory=dict)
    """By model or glob, over the catalogue's published rate; the first match holds."""
    price_region: str | None = None
    """Where its images are made, which decides their price; absent: as its host says."""
    prices: dict[str, Tiers] = field(default_factory=dict)
    """By model or glob, over the catalogue's price; the first match holds."""


def serves(account: Account, model: str) -> bool:
    """Whether an account is used for this very model or snapshot."""
    return matches(account.models, model)


class Images(Struct, frozen=True):
    """Where result URLs may point, and how much is read from them."""

    allowed_hosts: tuple[str, ...] = (".aliyuncs.com",)
    """Exact hosts (`host`, `host:port`) or `.suffixes`; a private address only for an exact one."""
    trusted_networks: tuple[str, ...] = ()
    """Private networks in which allowed hosts may be: a VPC, PrivateLink, a fake-IP resolver."""
    allow_http: bool = False
    """Fetch `http://` addresses as they are; otherwise `https://` takes their place."""
    max_bytes: Count = 72 * 1024 * 1024
    """The largest image, in bytes. A PNG of noise of 4096x4096 has 65 MiB."""
    timeout_s: Positive = 60.0
    """Abort a download after this long without data."""
    budget_bytes: Annotated[int, Meta(ge=1024 * 1024)] = 64 * 1024 * 1024
    """Bytes of images in a worker's memory at once: half for answers (256 KiB each), a quarter for
    connections to image hosts, a quarter for images that are read ahead, held without a length,
    copied or cached."""
    conversion_bytes: Annotated[int, Meta(ge=32 * 1024 * 1024)] = 256 * 1024 * 1024
    """Bytes a worker may take to convert images: 20 a pixel, beside the PNG. An image that needs
    more is refused before it is paid for."""
    conversion_threads: Annotated[int, Meta(ge=1, le=64)] = 2
    """How many images a worker makes jpeg or webp at once."""


class Egress(Struct, frozen=True, kw_only=True):
    """How the vendor and the image hosts are reached. Redis is never reached through a proxy."""

    proxy: Secret | None = None
    """`http://[user:password@]host:port`; absent: as HTTPS_PROXY, HTTP_PROXY and ALL_PROXY say."""
    no_proxy: tuple[str, ...] | None = None
    """Hosts, .suffixes, addresses and networks to reach directly; absent: as NO_PROXY says."""
    environment: bool = True
    """Whether those variables count."""


class Upstream(Struct, frozen=True):
    """How the vendor is called."""

    deadline_s: Positive = 300.0
    """For a whole image request; the vendor's own limit is 300 s."""
    connect_timeout_s: Positive = 5.0
    keepalive_s: Positive = 15.0
    """How long an idle connection is kept."""
    max_connections: Count = 10_000


class Key(Struct, frozen=True, kw_only=True):
    """One key of a tenant; `hash` is `sha256:` and the hex SHA-256 of the whole key."""

    hash: KeyHash
    label: str = ""
    expires_at: datetime | None = None


class Limits(Struct, frozen=True, kw_only=True):
    """What a tenant may use; an absent one is no limit."""

    requests_per_minute: Count | None = None
    images_per_minute: Count | None = None
    concurrent_requests: Count | None = None
    """Running, waiting, or still sending their answer."""
    images_per_day: Count | None = None
    spend_per_month: Money | None = None
    """In the catalogue's currency."""


class Cache(Struct, frozen=True, kw_only=True):
    """Which of a tenant's answers are kept, and for how long."""

    mode: Literal["off", "seeded", "always"] = "seeded"
    ttl_s: Positive = 86_400.0
    """A result never outlives its signed URLs, unless the images' bytes are held."""
    client_directives: Literal["obey", "ignore"] = "obey"
    """Whether a request's Cache-Control counts. `ignore` is for programs that send `no-cache`
    without meaning it: each of those requests is paid for."""
    group: Name | None = None
    """Tenants of one group share their results; absent: a tenant's results are its own."""


class Budgets(Struct, frozen=True, kw_only=True):
    """When the tenants' days and months begin."""

    time_zone: str = "UTC"
    """A name of the IANA database, as `Asia/Shanghai`; for limits, headers and `gateway usage`."""


class UnknownOutcome(Struct, frozen=True, kw_only=True):
    """What becomes of calls that may have been billed."""

    book: Literal["reserve", "nothing"] = "reserve"
    """`reserve`: their images count against the tenant's budgets, as if they had been made."""


class ImageCache(Struct, frozen=True, kw_only=True):
    """Image bytes kept beside cached results, so that a hit works after its URLs have died."""

    url: Secret | None = None
    """A Redis of their own, which may evict; absent: this worker's memory, for one worker only."""
    prefix: KeyPrefix = "gateway:"
    max_image_bytes: Count = 8 * 1024 * 1024
    """Larger images are not kept."""
    budget_bytes: Count = 256 * 1024 * 1024
    """For each tenant or cache group; images that expire first make room."""


class Tenant(Struct, frozen=True, kw_only=True):
    """A team or an application, with its keys and rights."""

    name: Name
    keys: tuple[Key, ...]
    models: Globs = ("*",)
    """Names or globs of the models and aliases it may use."""
    default_model: str | None = None
    """For requests that name none; absent: the top-level `default_model`."""
    size_policy: Literal["nearest", "strict"] = "nearest"
    response_format: ResponseFormat | None = None
    """`url` or `b64_json`, where a request and its alias do not say; absent: `url`."""
    unknown_parameters: Literal["refuse", "ignore"] = "refuse"
    """`ignore` names them in `x-gateway-ignored`, and reads other vendors' names (`image_size`,
    `batch_size`) and numbers sent as text."""
    deadline_s: Positive | None = None
    limits: Limits = Limits()
    cache: Cache = Cache()
    log_prompts: bool = False
    """Log its prompts, up to 8,192 characters each; otherwise only their length and hash."""


class Config(Struct, frozen=True, kw_only=True):
    """The whole file."""

    accounts: tuple[Account, ...]
    tenants: tuple[Tenant, ...]
    listen: Listen = Listen()
    auth: Auth = Auth()
    cors: Cors = Cors()
    redis: Redis | None = None
    images: Images = Images()
    egress: Egress = Egress()
    upstream: Upstream = Upstream()
    reading: Reading = Reading()
    sending: Sending = Sending()
    uploads: Uploads = Uploads()
    pacing: Pacing = Pacing()
    budgets: Budgets = Budgets()
    unknown_outcome: UnknownOutcome = UnknownOutcome()
    image_cache: ImageCache | None = None
    """Absent: no image is kept, and a cached result lives as long as its URLs."""
    metrics: Metrics = Metrics()
    docs: bool = False
    """Serve a page at `/docs` that shows the API and tries it out with a key; it needs none."""
    usage_log: str | None = None
    """A file to which one JSON line is appended for each upstream call that is paid."""
    otlp_endpoint: str | None = None
    """Where spans are sent (OTLP over HTTP); needs the extra `otel`. Absent: none are made."""
    default_model: str = "qwen-image-2.0-pro"
    models: str | None = None
    """A catalogue to use instead of the shipped one; relative to this file."""
    aliases: dict[str, Alias] = field(default_factory=dict)
    """OpenAI's names, or your own, for models: `{model, response_format, size}`; other models by
    quality (`quality: {low: MODEL, high: MODEL}`) and for edits (`edits: MODEL`)."""
    max_body_bytes: Count = 128 * 1024
    """The largest JSON body, beside an edit's pictures; a prompt has at most 32,000 characters."""
    lame_duck_s: Annotated[float, Meta(ge=0)] = 1.0
    """After SIGTERM: how long new requests are still taken, while /readyz says 503."""
    drain_s: Positive = DRAIN_S
    """After SIGTERM: how long until requests under way are given up; more than any deadline."""
    catalogue: Catalogue = Catalogue("", {})
    """Filled by `load_config` from `models` and the shipped tables; not a key of the file."""
    proxies: Proxies = Proxies()
    """Filled by `load_config` from `egress` and the environment; not a key of the file."""

    def secrets(self) -> Iterator[str]:
        """All that must never be printed, as it would appear."""
        yield from (account.api_key.reveal() for account in self.accounts)
        urls = [part.url for part in (self.redis, self.image_cache) if part is not None]
        for url in filter(None, urls):
            yield from passwords(url.reveal())
        for proxy in self.proxies.each():
            yield from proxy.secrets()
