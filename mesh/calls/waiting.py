"""Calls that wait for an instance of a service, and the waiters of `wait_for`.

Owns: which requests wait for which service, their order and their number.
Leaves to others: which request gives way when too many wait (policy.fair_queue), whether a request should wait, and
what happens afterwards (client).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from mesh.policy.fair_queue import FairQueue

R = TypeVar("R", bound=Hashable)


class WaitingRoom(Generic[R]):
    """Waiting requests by service, first come, first served; at most `most` in all."""

    __slots__ = ("_all", "_most", "_requests", "_watchers")

    def __init__(self, most: int) -> None:
        self._most = most
        #: All of them, by tenant.
        self._all: FairQueue[R] = FairQueue()
        self._requests: dict[str, OrderedDict[R, float]] = {}
        self._watchers: dict[str, list[asyncio.Future[None]]] = {}

    def __len__(self) -> int:
        return len(self._all)

    @property
    def full(self) -> bool:
        """Whether no further request may wait."""
        return len(self._all) >= self._most

    @property
    def services(self) -> list[str]:
        """The services for which requests wait."""
        return list(self._requests)

    def enter(self, service: str, request: R, since: float, tenant: str = "") -> None:
        """Wait for an instance of the service."""
        self._requests.setdefault(service, OrderedDict())[request] = since
        self._all.push(request, tenant)

    def displaceable(self, tenant: str) -> R | None:
        """The request that should leave a full room for one of `tenant`: the newest of the tenant with the most. None
        when the other one should be refused."""
        return self._all.displaceable(tenant)

    def since(self, service: str, request: R) -> float | None:
        """When the request began to wait; None when it does not wait."""
        waiting = self._requests.get(service)
        return waiting.get(request) if waiting is not None else None

    def take(self, service: str) -> list[R]:
        """Remove and return the requests that wait for the service, in order."""
        waiting = self._requests.pop(service, None)
        if not waiting:
            return []
        for request in waiting:
            self._all.remove(request)
        return list(waiting)

    def leave(self, service: str, request: R) -> None:
        """Remove one request. Harmless when it does not wait."""
        waiting = self._requests.get(service)
        if waiting is not None and request in waiting:
            del waiting[request]
            self._all.remove(request)
            if not waiting:
                del self._requests[service]

    def call_in(self, service: str) -> list[R]:
        """An instance can be called: resolve the watchers, then remove and return the waiting requests, in order."""
        for woken in self._watchers.pop(service, ()):
            if not woken.done():
                woken.set_result(None)
        return self.take(service)

    def empty(self) -> list[R]:
        """Remove and return all requests."""
        everybody = [request for waiting in self._requests.values() for request in waiting]
        self._requests.clear()
        self._all.clear()
        return everybody

    def watch(self, service: str, woken: asyncio.Future[None]) -> Callable[[], None]:
        """Resolve `woken` when an instance can be called; returns a function that stops this."""
        watching = self._watchers.setdefault(service, [])
        watching.append(woken)

        def forget() -> None:
            if woken in watching:
                watching.remove(woken)
            if not watching and self._watchers.get(service) is watching:
                del self._watchers[service]

        return forget
