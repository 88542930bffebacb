"""Rate limits: `[gateway.limits] rate`, and the option `limit` of routes, methods and tasks.

Owns: two concerns of the edge, one before and one after authentication, and refusing requests.
Leaves to others: which limits apply and their header fields (rate_plans), counting (rate_counters), the number of
concurrent requests (concurrency).

Limits by address come first, so that guessing passwords is limited, too. All others count callers that authentication
has established; a caller without a name counts by its address. A request that a limit refuses is not counted by that
limit. Neither concern is in the chain while no setting and no route has a limit for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterator
from functools import partial
from math import ceil
from typing import Any, Final
from weakref import WeakKeyDictionary

from mesh.config.edge_rates import By, read_rate
from mesh.discovery.record import EdgePolicy
from mesh.errors import RateLimited
from mesh.gateway.catalog import Catalog
from mesh.gateway.edge.contract import Concern, Proceed
from mesh.gateway.edge.rate_counters import Counter, LocalCounter
from mesh.gateway.edge.rate_mesh import MeshCounter
from mesh.gateway.edge.rate_plans import EARLY, LATE, Plans, Step, read_declared
from mesh.gateway.front import Front
from mesh.gateway.mounts.contract import Answer
from mesh.gateway.mounts.health import PROBED
from mesh.gateway.request import Request
from mesh.policy.rate_table import Decision, RateTable

#: The counter of each gateway: both concerns use the same.
_COUNTERS: Final[WeakKeyDictionary[Front, Counter]] = WeakKeyDictionary()


def by_address(front: Front) -> Concern:
    """The limits by address, to be applied before authentication."""
    rates = Rates(front, EARLY)
    return Concern(
        name="rates by address",
        hook=rates.hook,
        wanted=rates.wanted,
        # One of the two concerns starts and stops the counter that both use.
        lifespan=rates.counter.lifespan,
        facts=rates.facts,
    )


def by_caller(front: Front) -> Concern:
    """All other limits, to be applied after authentication."""
    rates = Rates(front, LATE)
    return Concern(name="rates by caller", hook=rates.hook, wanted=rates.wanted, facts=rates.facts)


class Rates:
    """The limits of one phase.

    Args:
        phase: what the limits count by.
    """

    def __init__(self, front: Front, phase: tuple[By, ...]) -> None:
        limits = front.settings.gateway.limits
        own = [limit for limit in map(read_rate, limits.rate) if limit.by in phase]
        self._own = bool(own)
        self._phase = phase
        self._catalog = front.catalog
        self._recorder = front.node.recorder
        self._plans = Plans(own, phase).of
        self._late = phase is LATE
        self.counter = counter_of(front)
        self._decide = self.counter.decide
        self._admit = self.counter.admit
        self.facts: dict[str, Any] = {"limits": [limit.text for limit in own], "scope": limits.scope}

    def wanted(self) -> bool:
        """Whether the settings, or some route, method or task, have a limit of this phase."""
        declared = (read_declared(rate) for policy in policies(self._catalog) for rate in policy.rates)
        # A limit that cannot be read is refused, not ignored.
        return self._own or any(limit is None or limit.by in self._phase for limit in declared)

    def hook(self, request: Request, proceed: Proceed) -> Awaitable[Answer]:
        """Answer a request within the limits; see edge.contract. (No coroutine when this gateway counts the caller.)

        Raises:
            RateLimited: a limit is used up.
        """
        if request.path in PROBED or (self._late and request.raw.method == "OPTIONS"):
            # Probes must not fail because others of the same address are limited. A preflight has no credentials.
            return proceed(request)
        steps = self._plans(request.entry)
        if len(steps) == 1 and (only := steps[0]).single:
            # Nearly all requests: one limit, which is not used up.
            standing = self._admit(only.caller(request), only.single)
            if standing is not None:
                request.raw.lines += only.lines % (standing[0], ceil(standing[1]))
                return proceed(request)
        for index, step in enumerate(steps):
            decision = self._decide(step.caller(request), step.quotas)
            if not isinstance(decision, Decision):
                return self._wait(request, proceed, steps[index:], decision)
            self._apply(request, step, decision)
        return proceed(request)

    async def _wait(
        self, request: Request, proceed: Proceed, steps: tuple[Step, ...], pending: Awaitable[Decision]
    ) -> Answer:
        self._apply(request, steps[0], await pending)
        for step in steps[1:]:
            decision = self._decide(step.caller(request), step.quotas)
            self._apply(request, step, decision if isinstance(decision, Decision) else await decision)
        return await proceed(request)

    def _apply(self, request: Request, step: Step, decision: Decision) -> None:
        """Announce the limits of a step to the client, and refuse the request if one is used up."""
        request.raw.lines += step.announce(decision.standings)
        if decision.refused < 0:
            return
        standing = decision.standings[decision.refused]
        retry_s = max(1, ceil(standing.reset_s if standing is not None else 1.0))
        self._recorder.counter(
            "http_rate_limited", "Requests that a limit refused.", limit=step.quotas[decision.refused].name
        ).add()
        shown = step.texts[decision.refused]
        raise RateLimited(
            f'too many requests: the limit "{shown}" is used up; send the request again in {retry_s} s',
            details={"limit": shown, "retry_after_s": retry_s},
        )


def counter_of(front: Front) -> Counter:
    """The counter of a gateway, made once."""
    counter = _COUNTERS.get(front)
    if counter is None:
        limits = front.settings.gateway.limits
        node = front.node
        table = RateTable(limits.keys)
        make: Any = partial(MeshCounter, node) if limits.scope == "mesh" else LocalCounter
        counter = _COUNTERS[front] = make(table, node.clock.now)
        recorder = node.recorder
        recorder.gauge("http_rate_limit_keys", lambda: len(table), "Limits and callers that are counted now.")
        recorder.total("http_rate_limit_forgotten", lambda: table.forgotten, "Counts replaced in a full table.")
        recorder.total("http_rate_limit_shared", lambda: table.shared, "Requests counted together with others.")
    return counter


def policies(catalog: Catalog) -> Iterator[EdgePolicy]:
    """What the routes, methods and tasks of all services ask of gateways."""
    for offer in catalog.offers.values():
        found = [route.edge for route, _ in offer.routes]
        found += [record.edge for records in (offer.methods, offer.tasks) for record in records.values()]
        yield from (policy for policy in found if policy is not None)
