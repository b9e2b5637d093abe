"""Which accounts take the next call, and what an answer teaches."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.config import Account
from gateway.config.decode import Secret
from gateway.domain.catalogue import Catalogue, Rate
from gateway.domain.errors import (
    GatewayError,
    InvalidRequest,
    ModelNotFound,
    ModerationBlocked,
    ServiceUnavailable,
    UpstreamAmbiguous,
    UpstreamBilling,
    UpstreamFailed,
    UpstreamOverloaded,
    UpstreamRefused,
    UpstreamThrottled,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from gateway.translate.failure import Remedy, UpstreamFailure
from gateway.upstream.accounts import SLOW, THROTTLED_S, UNFIT_S, Accounts
from gateway.upstream.breaker import FAILURES_TO_OPEN
from tests.running import shipped_catalogue

MODEL = "qwen-image-2.0"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def account(
    name: str, models: tuple[str, ...] = ("*",), rates: dict[str, Rate] | None = None
) -> Account:
    return Account(
        name=name, base_url="https://x.test", api_key=Secret("k"), models=models, rates=rates or {}
    )


@pytest.fixture
def three(clock: Clock) -> Accounts:
    return Accounts(map(account, ("a", "b", "c")), shipped_catalogue(), clock)


def learn(
    accounts: Accounts,
    name: str,
    remedy: Remedy | None,
    error: GatewayError | None = None,
    **more: Any,
) -> None:
    failure = remedy and UpstreamFailure(error or UpstreamFailed("no"), remedy, **more)
    accounts.record(accounts.routes(MODEL)[name], failure)


def test_all_well_accounts_stand_ready_in_the_order_of_the_file(three: Accounts) -> None:
    assert three.fit(MODEL, three.untried(MODEL, ())) == ["a", "b", "c"]


def test_one_that_was_tried_comes_last(three: Accounts) -> None:
    assert three.fit(MODEL, three.untried(MODEL, {"a"})) == ["b", "c"]
    assert three.fit(MODEL, three.untried(MODEL, {"a", "b"})) == ["c"]
    assert three.fit(MODEL, three.untried(MODEL, {"a", "b", "c"})) == ["a", "b", "c"]


def test_only_accounts_for_the_model_are_asked(clock: Clock) -> None:
    accounts = Accounts(
        [account("plus", ("qwen-image-plus*",)), account("all")], shipped_catalogue(), clock
    )

    assert accounts.fit(MODEL, accounts.untried(MODEL, ())) == ["all"]
    assert accounts.fit(
        "qwen-image-plus-2026-01-09", accounts.untried("qwen-image-plus-2026-01-09", ())
    ) == ["plus", "all"]


def made_up(number: int) -> str:
    """A snapshot that may not exist; the catalogue takes any date for one."""
    return f"qwen-image-plus-20{number:02}-01-01"


def test_snapshots_share_what_is_known_of_their_model(clock: Clock) -> None:
    """Anybody may name eighty thousand of them."""
    accounts = Accounts([account("one")], shipped_catalogue(), clock)
    for number in range(50):
        assert accounts.untried(made_up(number), ()) == ("one",)
        assert accounts.rate(made_up(number), "one") == 2.0
        assert accounts.routes(made_up(number)) is accounts.routes("qwen-image-plus")

    assert [family for family, _ in accounts.known()] == ["qwen-image-plus"]


def test_an_account_for_one_snapshot_serves_that_alone(clock: Clock) -> None:
    only = account("only", (made_up(26),))
    accounts = Accounts([only, account("all")], shipped_catalogue(), clock)

    assert accounts.untried(made_up(26), ()) == ("only", "all")
    assert accounts.untried(made_up(25), ()) == ("all",)
    assert accounts.untried("qwen-image-plus", ()) == ("all",)
    assert accounts.admit("qwen-image-plus", "only", 1.0) is None
    assert accounts.admit(made_up(26), "only", 1.0) is not None
    assert not accounts.has_other("qwen-image-plus", {"all"})
    assert accounts.has_other(made_up(26), {"all"})


def test_a_snapshot_that_is_refused_says_nothing_of_its_model(three: Accounts) -> None:
    """One tenant's made-up name would move everybody's calls to the next account."""
    route = three.routes(MODEL)["a"]
    refused = UpstreamFailure(ModelNotFound("no"), Remedy.OTHER_ACCOUNT)
    three.record(route, refused, of_snapshot=True)
    assert three.fit(MODEL, ["a", "b"]) == ["a", "b"]

    unpaid = UpstreamFailure(UpstreamBilling("no"), Remedy.OTHER_ACCOUNT)
    three.record(route, unpaid, of_snapshot=True)
    assert three.fit(MODEL, ["a", "b"]) == ["b"]


def test_a_model_that_no_account_serves_is_the_operator_s_fault(clock: Clock) -> None:
    accounts = Accounts([account("plus", ("qwen-image-plus",))], shipped_catalogue(), clock)

    with pytest.raises(UpstreamRefused):
        accounts.fit(MODEL, accounts.untried(MODEL, ()))


def test_one_without_credit_is_left_alone_for_a_minute(three: Accounts, clock: Clock) -> None:
    learn(three, "a", Remedy.OTHER_ACCOUNT)
    assert three.fit(MODEL, three.untried(MODEL, ())) == ["b", "c"]
    clock.now += UNFIT_S - 0.1
    assert three.fit(MODEL, three.untried(MODEL, ())) == ["b", "c"]
    clock.now += 0.1

    assert three.fit(MODEL, three.untried(MODEL, ())) == ["a", "b", "c"]


@pytest.mark.parametrize(("told", "rest_s"), [(None, THROTTLED_S), (30.0, 30.0)])
def test_one_over_its_rate_is_left_alone_as_long_as_it_says(
    told: float | None, rest_s: float, three: Accounts, clock: Clock
) -> None:
    learn(three, "b", Remedy.THROTTLED, UpstreamThrottled("wait", retry_after_s=told))
    clock.now += rest_s - 0.1
    assert three.fit(MODEL, three.untried(MODEL, ())) == ["a", "c"]
    clock.now += 0.1

    assert three.fit(MODEL, three.untried(MODEL, ())) == ["a", "b", "c"]


def test_if_all_are_unfit_all_are_asked(three: Accounts) -> None:
    """An account that was without credit a minute ago may have some by now."""
    for name in "abc":
        learn(three, name, Remedy.OTHER_ACCOUNT)

    assert three.fit(MODEL, three.untried(MODEL, ())) == ["a", "b", "c"]
    assert not three.has_other(MODEL, ())


def test_an_untried_unfit_one_comes_before_a_tried_one(three: Accounts) -> None:
    learn(three, "c", Remedy.OTHER_ACCOUNT)

    assert three.fit(MODEL, three.untried(MODEL, {"a", "b"})) == ["c"]


def test_a_success_makes_it_fit_again(three: Accounts) -> None:
    learn(three, "a", Remedy.OTHER_ACCOUNT)
    learn(three, "a", None)

    assert three.fit(MODEL, three.untried(MODEL, ())) == ["a", "b", "c"]


def test_another_is_there_while_one_is_untried_and_well(three: Accounts) -> None:
    assert three.has_other(MODEL, {"a"})
    learn(three, "b", Remedy.OTHER_ACCOUNT)
    assert three.has_other(MODEL, {"a"})
    for _ in range(FAILURES_TO_OPEN):
        learn(three, "c", Remedy.UNKNOWN, UpstreamAmbiguous("lost"))

    assert not three.has_other(MODEL, {"a"})
    assert not three.has_other(MODEL, {"a", "b", "c"})


def test_what_is_learnt_of_one_model_is_not_of_another(three: Accounts) -> None:
    """Limits and rights are per account and model."""
    learn(three, "a", Remedy.OTHER_ACCOUNT)

    assert three.fit("qwen-image-plus", three.untried("qwen-image-plus", ())) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("remedy", "error", "usable"),
    [
        (Remedy.NONE, UpstreamFailed("500"), False),
        (Remedy.UNKNOWN, UpstreamAmbiguous("lost"), False),
        (Remedy.RESEND, UpstreamOverloaded("busy"), False),
        (Remedy.RESEND, UpstreamUnreachable("away"), False),
        (Remedy.NONE, ModerationBlocked("no"), True),
        (Remedy.NONE, InvalidRequest("bad"), True),
        (Remedy.THROTTLED, UpstreamThrottled("wait"), True),
        (Remedy.OTHER_ACCOUNT, UpstreamRefused("no"), True),
    ],
)
def test_what_opens_the_breaker(
    remedy: Remedy, error: GatewayError, usable: bool, three: Accounts
) -> None:
    """Failures of the service; not a caller's mistakes, nor a full or empty account."""
    for _ in range(FAILURES_TO_OPEN):
        learn(three, "a", remedy, error)

    assert (not three.routes(MODEL)["a"].breaker.rest_s()) is usable


def test_a_request_s_own_deadline_says_nothing_of_the_account(three: Accounts) -> None:
    """Nor does it make up for what went before."""
    for _ in range(FAILURES_TO_OPEN - 1):
        learn(three, "a", Remedy.NONE, UpstreamFailed("500"))
    for _ in range(FAILURES_TO_OPEN):
        learn(three, "a", Remedy.UNKNOWN, UpstreamTimeout("late"), is_outage=False)

    assert not three.routes(MODEL)["a"].breaker.rest_s()
    learn(three, "a", Remedy.NONE, UpstreamFailed("500"))
    assert three.routes(MODEL)["a"].breaker.rest_s()


def test_one_that_is_down_is_not_admitted_until_its_rest_ends(
    three: Accounts, clock: Clock
) -> None:
    for _ in range(FAILURES_TO_OPEN):
        learn(three, "a", Remedy.NONE)
    with pytest.raises(ServiceUnavailable) as caught:
        three.admit(MODEL, "a", 300)
    assert caught.value.retry_after_s == 1.0
    assert three.fit(MODEL, three.untried(MODEL, ())) == ["b", "c"]
    clock.now += 1

    route = three.admit(MODEL, "a", 300)
    assert route is not None
    assert route.account.name == "a"
    with pytest.raises(ServiceUnavailable):
        three.admit(MODEL, "a", 300)


def test_the_rate_is_the_account_s_own_or_the_published_one(clock: Clock) -> None:
    own = account("own", rates={"qwen-image-2.0-pro": Rate(1.0), "qwen-*": Rate(None)})
    accounts = Accounts([own, account("published")], shipped_catalogue(), clock)

    assert accounts.rate("qwen-image-2.0-pro", "own") == 1.0
    assert accounts.rate("qwen-image-plus", "own") is None
    assert accounts.rate("z-image-turbo", "own") == 2.0
    assert accounts.rate("qwen-image-2.0-pro", "published") == 2 / 60
    assert accounts.rate("qwen-image-2.0-pro-2026-06-22", "published") == 2 / 60


def test_a_model_taken_out_of_the_catalogue_keeps_its_rate_for_those_who_wait(
    clock: Clock,
) -> None:
    """Else they would all go at once, and the account would be full for a minute."""
    one, nothing = account("published"), Catalogue("", {})
    accounts = Accounts([one], shipped_catalogue(), clock)
    assert accounts.rate("z-image-turbo", "published") == 2.0
    for _ in range(3):
        accounts.use([one], nothing)
    assert accounts.rate("z-image-turbo", "published") == 2.0
    assert accounts.rate("z-image-turbo", "nobody asked for this one") == SLOW
    accounts.use([account("published", rates={"*": Rate(1.0)})], nothing)
    assert accounts.rate("z-image-turbo", "published") == 1.0
