"""Which DashScope account takes the next call: the first that is not known to be unfit."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from gateway.catalogue import matches
from gateway.config import Account
from gateway.errors import GatewayError, ServiceUnavailable, UpstreamRefused
from gateway.translate.failure import Remedy, UpstreamFailure
from gateway.upstream.breaker import Breaker

UNFIT_S = 60.0
"""How long an account that lacks credit or rights is used only if no other is left."""
THROTTLED_S = 5.0
"""The same for an account over its rate."""


class Route:
    """One account for one model, and what its last answers say of it."""

    def __init__(self, account: Account, clock: Callable[[], float]) -> None:
        self.account = account
        self.breaker = Breaker(clock)
        self.last_choice_until = 0.0


class Accounts:
    """All accounts. `clock` gives seconds and only moves forward."""

    def __init__(self, accounts: Iterable[Account], clock: Callable[[], float]) -> None:
        self._accounts = tuple(accounts)
        self._clock = clock
        self._routes: dict[str, tuple[Route, ...]] = {}

    def routes(self, model: str) -> tuple[Route, ...]:
        """The routes for a model, in the order of the file."""
        if model not in self._routes:
            served = (a for a in self._accounts if matches(a.models, model))
            self._routes[model] = tuple(Route(account, self._clock) for account in served)
        return self._routes[model]

    def pick(self, model: str, tried: Collection[str], probe_s: float) -> Route:
        """The route for the next call; accounts in `tried`, or known to be unfit, come last.

        Raises:
            GatewayError: no account serves the model, or every breaker is open.
        """
        now, routes = self._clock(), self.routes(model)
        by_fitness = sorted(
            routes, key=lambda route: (route.account.name in tried, route.last_choice_until > now)
        )
        for route in by_fitness:
            if route.breaker.admit(probe_s):
                return route
        raise none_left(routes)

    def has_other(self, model: str, tried: Collection[str]) -> bool:
        """Whether an account that was not tried yet could take the call at once."""
        now = self._clock()
        return any(
            route.account.name not in tried
            and route.last_choice_until <= now
            and not route.breaker.rest_s()
            for route in self.routes(model)
        )

    def record(self, route: Route, failure: UpstreamFailure | None) -> None:
        """Learn from an answer; None is a success."""
        if failure is None:
            route.last_choice_until = 0.0
            route.breaker.succeeded()
            return
        match failure.remedy:
            case Remedy.OTHER_ACCOUNT:
                self._rest(route, UNFIT_S)
            case Remedy.THROTTLED:
                self._rest(route, failure.error.retry_after_s or THROTTLED_S)
            case Remedy.NONE if failure.error.status < 500:
                route.breaker.succeeded()
            case _:
                route.breaker.failed()

    def _rest(self, route: Route, seconds: float) -> None:
        route.last_choice_until = self._clock() + seconds
        route.breaker.abandoned()


def none_left(routes: tuple[Route, ...]) -> GatewayError:
    """Why no account could be picked, and when one may be."""
    if not routes:
        return UpstreamRefused("No account of this gateway serves this model.", param="model")
    rest_s = min(route.breaker.rest_s() for route in routes)
    message = "The image service failed too often just now; try again later."
    return ServiceUnavailable(message, retry_after_s=rest_s)
