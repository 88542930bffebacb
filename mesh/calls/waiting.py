"""Calls that wait for an instance of a service, and the waiters of `wait_for`.

Owns: which requests wait for which service, their order and their number.
Leaves to others: whether a request should wait, and what happens afterwards (client).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

R = TypeVar("R", bound=Hashable)


class WaitingRoom(Generic[R]):
    """Waiting requests by service, first come, first served; at most `most` in all."""

    __slots__ = ("_count", "_most", "_requests", "_watchers")

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0
        self._requests: dict[str, OrderedDict[R, float]] = {}
        self._watchers: dict[str, list[asyncio.Future[None]]] = {}

    def __len__(self) -> int:
        return self._count

    @property
    def full(self) -> bool:
        """Whether no further request may wait."""
        return self._count >= self._most

    @property
    def services(self) -> list[str]:
        """The services for which requests wait."""
        return list(self._requests)

    def enter(self, service: str, request: R, since: float) -> None:
        """Wait for an instance of the service."""
        self._requests.setdefault(service, OrderedDict())[request] = since
        self._count += 1

    def since(self, service: str, request: R) -> float | None:
        """When the request began to wait; None when it does not wait."""
        waiting = self._requests.get(service)
        return waiting.get(request) if waiting is not None else None

    def take(self, service: str) -> list[R]:
        """Remove and return the requests that wait for the service, in order."""
        waiting = self._requests.pop(service, None)
        if not waiting:
            return []
        self._count -= len(waiting)
        return list(waiting)

    def leave(self, service: str, request: R) -> None:
        """Remove one request. Harmless when it does not wait."""
        waiting = self._requests.get(service)
        if waiting is not None and request in waiting:
            del waiting[request]
            self._count -= 1
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
        self._count = 0
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
