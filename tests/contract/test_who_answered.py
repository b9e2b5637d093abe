"""What the gateway does about each answer that is not, or may not be, the vendor's own.

One row an answer: what the client is told, and how often the vendor was called for one request.
The answers are files of the simulator, recorded from public reports or inferred from such.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import httpx
import pytest

from gateway.config import Account
from gateway.simulator.replies import REPLIES
from gateway.upstream import breaker, retry
from gateway.upstream.retry import ATTEMPTS
from tests.peers.run import PEERS, run_peer
from tests.running import ACME, Client, HeldClock, RunningGateway, account, config_for
from tests.simulated import SimulatedDashScope

pytestmark = pytest.mark.slow

SDK_ATTEMPTS: Final = 3
"""One, and the two retries that the SDKs make by default."""
MODEL: Final = "qwen-image-2.0"


class Told(NamedTuple):
    """What a client is told, and how often the gateway called the vendor for it."""

    status: int
    code: str
    should_retry: str | None
    calls: int = 1


UNKNOWN: Final = Told(502, "upstream_outcome_unknown", "false")
TIMEOUT: Final = Told(504, "upstream_timeout", "false")
REFUSED: Final = Told(502, "upstream_account_error", "false")
TOO_LARGE: Final = Told(413, "request_too_large", "false")
NOT_SENT: Final = Told(503, "upstream_unreachable", None, ATTEMPTS)
THROTTLED: Final = Told(429, "rate_limit_exceeded", None, ATTEMPTS)
MODERATED: Final = Told(400, "moderation_blocked", "false")
NO_CREDIT: Final = Told(429, "insufficient_quota", "false")

EXPECTED: Final[dict[str, Told]] = {
    # Envoy, which is what answers in front of DashScope.
    "envoy-503-connection-failure": NOT_SENT,
    "envoy-503-local-connection-failure": NOT_SENT,
    "envoy-503-remote-connection-failure": NOT_SENT,
    "envoy-503-connection-timeout": NOT_SENT,
    "envoy-503-tls-failure": NOT_SENT,
    "envoy-503-overflow": NOT_SENT,
    "envoy-503-no-healthy-upstream": NOT_SENT,
    "envoy-503-overloaded": NOT_SENT,
    "gzip-envoy-503-connection-failure": NOT_SENT,
    "envoy-429-local-rate-limit": THROTTLED,
    "envoy-503-connection-termination": UNKNOWN,
    "envoy-503-remote-reset": UNKNOWN,
    "envoy-503-local-reset": UNKNOWN,
    "envoy-503-remote-refused-stream": UNKNOWN,
    "envoy-503-overload-manager": UNKNOWN,
    "envoy-502-protocol-error": UNKNOWN,
    "envoy-503-retried": UNKNOWN,
    "envoy-503-without-reason": UNKNOWN,
    "envoy-503-json": UNKNOWN,
    "envoy-503-quoted": UNKNOWN,
    "envoy-429-rate-limit-service": UNKNOWN,
    "envoy-500-empty": UNKNOWN,
    "envoy-502-empty": UNKNOWN,
    "envoy-503-empty": UNKNOWN,
    "envoy-504-request-timeout": TIMEOUT,
    "envoy-504-stream-timeout": TIMEOUT,
    "envoy-408-request-timeout": TIMEOUT,
    "envoy-413": TOO_LARGE,
    "envoy-401-jwt": REFUSED,
    "envoy-403-rbac": REFUSED,
    "envoy-404-no-route": REFUSED,
    "envoy-431": REFUSED,
    # nginx, and Alibaba's Tengine. Which of their 502 are failed connections, a page does not say.
    **dict.fromkeys(("nginx-500", "html_502", "nginx-503", "nginx-429", "nginx-499"), UNKNOWN),
    **dict.fromkeys(("nginx-302-login", "nginx-303"), UNKNOWN),
    **dict.fromkeys(("nginx-408", "nginx-504", "tengine-504", "empty_504"), TIMEOUT),
    **dict.fromkeys(("nginx-400", "nginx-403", "nginx-404", "nginx-405"), REFUSED),
    **dict.fromkeys(("nginx-301", "nginx-307", "nginx-308"), REFUSED),
    **dict.fromkeys(("nginx-413", "413"), TOO_LARGE),
    **dict.fromkeys(("tengine-400", "tengine-403", "tengine-404"), REFUSED),
    **dict.fromkeys(("tengine-500", "tengine-502", "tengine-503"), UNKNOWN),
    **dict.fromkeys(("aliyun-waf-403", "aliyun-waf-405"), REFUSED),
    **dict.fromkeys(("aliyun-api-gateway-429", "aliyun-api-gateway-503"), UNKNOWN),
    # Others that may stand on the way.
    **dict.fromkeys(("aws-alb-400", "aws-alb-403"), REFUSED),
    **dict.fromkeys(("aws-alb-460", "aws-alb-502", "aws-alb-503", "aws-alb-561"), UNKNOWN),
    "aws-alb-413": TOO_LARGE,
    "aws-alb-504": TIMEOUT,
    "cloudflare-403": REFUSED,
    "cloudflare-413": TOO_LARGE,
    "cloudflare-504": TIMEOUT,
    **{f"cloudflare-{status}": UNKNOWN for status in (429, 500, 502, 520, 521, 522, 524, 525)},
    **dict.fromkeys(("squid-403", "squid-407"), REFUSED),
    **dict.fromkeys(("squid-502", "squid-503"), UNKNOWN),
    "squid-504": TIMEOUT,
    # JSON without the vendor's code, or with one that anybody may have.
    **dict.fromkeys(("json-502-kong", "json-503-kong", "json-500-no-code"), UNKNOWN),
    **{f"json-503-{kind}": UNKNOWN for kind in (
        "message", "spring", "number", "empty-code", "null-code", "others-code", "nested", "list",
        "undocumented-code", "cut-short",
    )},
    **{f"json-{status}-no-code": UNKNOWN for status in (409, 422, 429)},
    **{f"json-{status}-no-code": REFUSED for status in (400, 401, 403, 404)},
    "json-408-no-code": TIMEOUT,
    "json-504-aws": TIMEOUT,
    # Nothing, packed, wrongly declared.
    **{f"empty-{status}": UNKNOWN for status in (429, 500, 502, 503)},
    "empty-403": REFUSED,
    "empty-408": TIMEOUT,
    "gzip-nginx-502": UNKNOWN,
    "unknown-coding-503": UNKNOWN,
    "html-as-json-503": UNKNOWN,
    # Successes that are none.
    **dict.fromkeys(("200-empty", "200-envoy-words", "200-no-output", "200-login"), UNKNOWN),
    **dict.fromkeys(("204-empty", "not_json_200"), UNKNOWN),
    # The vendor's own words, wherever and however they come.
    **dict.fromkeys(("gzip-throttled", "text-throttled", "marked-throttled"), THROTTLED),
    "200-throttled": THROTTLED,
    "200_with_code": Told(502, "upstream_error", None),
    **dict.fromkeys(("200-moderated", "moderated-algo", "moderated-in-message"), MODERATED),
    **dict.fromkeys(("moderated-500", "moderated-without-code"), MODERATED),
    **dict.fromkeys(("free-quota-403", "free-quota-429", "billing-429"), NO_CREDIT),
}  # fmt: skip


class Served:
    """A gateway whose breaker never opens and whose waits are short, and the vendor behind it."""

    def __init__(self, gateway: RunningGateway, simulator: SimulatedDashScope) -> None:
        self.url = gateway.url
        self.simulator = simulator
        self._gateway = gateway

    def restart(self, *more: Account) -> None:
        self.simulator.reset()
        config = config_for(account(self.simulator.base_url), *more)
        self._gateway.use(config, HeldClock().clock())

    def calls(self) -> dict[str, int]:
        """How often the vendor was called, by the fault that the prompt asked for."""
        found: dict[str, int] = {}
        for call in self.simulator.state()["log"]:
            [message] = call["body"]["input"]["messages"]
            prompt = message["content"][0]["text"]
            found[prompt] = found.get(prompt, 0) + 1
        return found


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    gateway = RunningGateway()
    with SimulatedDashScope(render="plain") as simulator, pytest.MonkeyPatch.context() as patch:
        patch.setattr(retry, "FIRST_WAIT_S", 0.005)
        patch.setattr(breaker, "FAILURES_TO_OPEN", 10**6)
        patch.setattr("gateway.requests.calls.THROTTLED_S", 0.05)
        yield Served(gateway, simulator)
        gateway.close()


def prompt_for(kind: str) -> str:
    return f"[simulate:{kind}]"


def test_every_recorded_answer_has_a_row() -> None:
    assert set(EXPECTED) == {path.stem for path in (REPLIES / "raw").glob("*.json")}


def test_each_answer_is_told_and_sent_as_its_row_says(served: Served) -> None:
    served.restart()
    found: dict[str, Told] = {}
    with httpx.Client(trust_env=False, timeout=20) as http:
        client = Client(http, served.url)
        for kind in EXPECTED:
            answer = client.generate(prompt_for(kind), model=MODEL)
            code = answer.json()["error"]["code"]
            found[kind] = Told(answer.status_code, code, answer.headers.get("x-should-retry"))

    calls = served.calls()
    counted = {kind: told._replace(calls=calls[prompt_for(kind)]) for kind, told in found.items()}
    assert counted == EXPECTED


@pytest.mark.parametrize("peer", [pytest.param(p, marks=pytest.mark.xdist_group(p)) for p in PEERS])
def test_an_sdk_repeats_only_what_was_never_generated(peer: str, served: Served) -> None:
    """With the retries that it makes by itself: one call for whatever may have been paid."""
    served.restart()
    scenario = {
        "base_url": f"{served.url}/v1",
        "api_key": ACME,
        "max_retries": SDK_ATTEMPTS - 1,
        "concurrency": 24,
        "calls": [
            {"method": "images.generate", "args": {"model": MODEL, "prompt": prompt_for(kind)}}
            for kind in EXPECTED
        ],
    }

    replies = run_peer(peer, scenario)

    attempts = {kind: reply["attempts"] for kind, reply in zip(EXPECTED, replies, strict=True)}
    assert attempts == {
        kind: 1 if told.should_retry == "false" else SDK_ATTEMPTS for kind, told in EXPECTED.items()
    }
    calls = served.calls()
    assert {kind: calls[prompt_for(kind)] for kind in EXPECTED} == {
        kind: told.calls * attempts[kind] for kind, told in EXPECTED.items()
    }


def test_a_second_account_gets_no_call_whose_outcome_is_unknown(served: Served) -> None:
    """It would be a second bill."""
    unknown = [kind for kind, told in EXPECTED.items() if told in {UNKNOWN, TIMEOUT}]
    with SimulatedDashScope(render="plain") as other:
        served.restart(account(other.base_url, "second"))
        with httpx.Client(trust_env=False, timeout=20) as http:
            for kind in unknown:
                served.simulator.fault(kind)
                Client(http, served.url).generate(f"a fox before {kind}", model=MODEL)

        assert sum(served.simulator.state(log=0)["calls"].values()) == len(unknown)
        assert other.state()["log"] == []
