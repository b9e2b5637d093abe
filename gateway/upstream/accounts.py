"""Which DashScope account takes the next call: the first that is not known to be unfit.

Rates and breakers belong to a catalogue entry: callers may name snapshots that do not exist.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from gateway.config import Account, serves
from gateway.domain.catalogue import Catalogue, Rate, matches
from gateway.domain.errors import ServiceUnavailable, UpstreamBilling, UpstreamRefused
from gateway.translate.failure import Remedy, Source, UpstreamFailure
from gateway.upstream.breaker import Breaker

SLOW = 1 / 60
"""Calls a second after the rate became unknown: slower than any model."""
UNFIT_S = 60.0
"""How long an account without credit or rights is used only if no other is left."""
THROTTLED_S = 5.0
"""The same for an account over its rate."""


class Route:
    """One account for one model, and what its last answers say of it."""

    def __init__(self, account: Account, clock: Callable[[], float]) -> None:
        self.account = account
        self.breaker = Breaker(clock)
        self.last_choice_until = 0.0


class Accounts:
    """`clock` gives seconds and only moves forward."""

    def __init__(
        self, accounts: Iterable[Account], catalogue: Catalogue, clock: Callable[[], float]
    ) -> None:
        self._clock = clock
        self._routes: dict[str, dict[str, Route]] = {}
        self._rates: dict[tuple[str, str], float | None] = {}
        self._former_rates: dict[tuple[str, str], float | None] = {}
        self.use(accounts, catalogue)

    def use(self, accounts: Iterable[Account], catalogue: Catalogue) -> None:
        """Follow a changed configuration; what is known of an unchanged account is kept."""
        self._accounts = tuple(accounts)
        self._catalogue = catalogue
        self._former_rates = {**self._former_rates, **self._rates}
        self._rates = {}
        self._before, self._routes = self._routes, {}

    def routes(self, model: str) -> dict[str, Route]:
        """By account name, in the file's order, for a model and its snapshots."""
        family = self._family(model)
        if family not in self._routes:
            covers = self._catalogue.covers
            served = (a for a in self._accounts if covers(a.models, family))
            self._routes[family] = {a.name: self._route(family, a) for a in served}
        return self._routes[family]

    def _family(self, model: str) -> str:
        """The catalogue's entry; for a removed one whose calls still wait, the name."""
        return self._catalogue.family_of(model) or model

    def _route(self, family: str, account: Account) -> Route:
        known = self._before.get(family, {}).get(account.name)
        return known if known and known.account == account else Route(account, self._clock)

    def known(self) -> Iterable[tuple[str, dict[str, Route]]]:
        """Entries that were asked for so far."""
        return self._routes.items()

    def rate(self, model: str, account: str) -> float | None:
        """Calls a second of a model and its snapshots together; None is no limit."""
        key = (self._family(model), account)
        if key not in self._rates:
            self._rates[key] = self._own_or_published(*key).per_second
        return self._rates[key]

    def _own_or_published(self, family: str, account: str) -> Rate:
        route = self.routes(family).get(account)
        for glob, rate in route.account.rates.items() if route else ():
            if matches((glob,), family):
                return rate
        if family not in self._catalogue.models:  # taken out of it while its calls wait
            return Rate(self._former_rates.get((family, account), SLOW))
        return self._catalogue.models[family].rate

    def untried(self, model: str, tried: Collection[str]) -> tuple[str, ...]:
        """Those for the next call; tried ones only if all were. Raises UpstreamRefused for none."""
        names = [n for n, route in self.routes(model).items() if serves(route.account, model)]
        if not names:
            message = "No account of this gateway serves this model."
            raise UpstreamRefused(message, param="model")
        return tuple([name for name in names if name not in tried] or names)

    def fit(self, model: str, names: Sequence[str]) -> list[str]:
        """The fittest of these accounts now: not failing, and not resting."""
        now, routes = self._clock(), self.routes(model)
        fitness = {
            name: (route.breaker.rest_s() > 0, route.last_choice_until > now)
            for name in names
            if (route := routes.get(name)) is not None
        }
        best = min(fitness.values(), default=None)
        return [name for name, its in fitness.items() if its == best]

    def names(self, model: str) -> list[str]:
        return list(self.routes(model))

    def admit(self, model: str, account: str, probe_s: float) -> Route | None:
        """None where the account no longer serves it. Raises ServiceUnavailable if it is broken."""
        route = self.routes(model).get(account)
        if route is None or not serves(route.account, model):
            return None
        if not route.breaker.admit(probe_s):
            message = "The image service failed too often just now; try again later."
            raise ServiceUnavailable(message, retry_after_s=route.breaker.rest_s())
        return route

    def has_other(self, model: str, tried: Collection[str]) -> bool:
        """Whether an account that was not tried yet could take the call at once."""
        now = self._clock()
        return any(
            name not in tried
            and serves(route.account, model)
            and route.last_choice_until <= now
            and not route.breaker.rest_s()
            for name, route in self.routes(model).items()
        )

    def record(
        self, route: Route, failure: UpstreamFailure | None, *, of_snapshot: bool = False
    ) -> None:
        """None is a success. A refused snapshot says nothing of the model: it may not exist."""
        if failure is None:
            route.last_choice_until = 0.0
            route.breaker.succeeded()
            return
        match failure.remedy:
            case Remedy.OTHER_ACCOUNT if of_snapshot and not is_unpaid(failure):
                route.breaker.abandoned()
            case Remedy.OTHER_ACCOUNT:
                self._rest(route, UNFIT_S)
            case Remedy.THROTTLED:
                self._rest(route, failure.error.retry_after_s or THROTTLED_S)
            case _ if failure.is_outage:
                route.breaker.failed()
            case _ if failure.source is Source.UPSTREAM:
                route.breaker.succeeded()
            case _:
                route.breaker.abandoned()

    def _rest(self, route: Route, seconds: float) -> None:
        route.last_choice_until = self._clock() + seconds
        route.breaker.abandoned()


def is_unpaid(failure: UpstreamFailure) -> bool:
    return isinstance(failure.error, UpstreamBilling)
