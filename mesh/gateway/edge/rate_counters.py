"""Where requests are counted: in this gateway, or in the gateway of the mesh that owns the caller.

Owns: the contract, and counting in this gateway.
Leaves to others: counting over the mesh (rate_mesh), the counts themselves (policy.rate_table).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from mesh.gateway.ports import Node
from mesh.policy.rate_table import Decision, Quota, RateTable


class Counter(Protocol):
    """Decides on requests."""

    def decide(self, caller: str, quotas: tuple[Quota, ...]) -> Decision | Awaitable[Decision]:
        """Admit a request and count it, or refuse it. Not awaitable when this gateway can decide by itself."""

    def admit(self, caller: str, limit: str) -> tuple[int, float] | None:
        """Admit a request with one limit, when that can be decided at once; else None, and `decide` decides. See
        RateTable.admit."""

    @property
    def lifespan(self) -> Callable[[Node], AbstractAsyncContextManager[Any]] | None:
        """What it needs while the gateway runs; see edge.contract."""


class LocalCounter:
    """Counts the requests of this gateway only.

    Args:
        now: the monotonic clock, in seconds.
    """

    lifespan = None

    def __init__(self, table: RateTable, now: Callable[[], float]) -> None:
        self._decide = table.decide
        self._admit = table.admit
        self._now = now

    def admit(self, caller: str, limit: str) -> tuple[int, float] | None:
        """Admit a request with one limit; see Counter."""
        return self._admit(caller, limit, self._now())

    def decide(self, caller: str, quotas: tuple[Quota, ...]) -> Decision:
        """Admit or refuse a request; see Counter."""
        return self._decide(caller, quotas, self._now())
