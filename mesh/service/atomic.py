"""Transactions of durable writes: `async with self.atomic():`.

Owns: opening and ending a block, nesting, and whether it is committed with a task's ack or by itself.
Leaves to others: collecting the writes (engines.collect), the commit (durable), the ack (tasks.runner).

In the handler of a task or durable event a block is committed together with the ack, after the handler has returned:
its writes, events and deferred tasks happen exactly once, however often the handler runs. Elsewhere a block is
committed at its end. A block that raises writes nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import Token
from types import TracebackType

from mesh.engines.collect import COLLECTING, Collector, Together, collecting
from mesh.engines.contract import Capability
from mesh.errors import SetupError
from mesh.tasks.context import TaskContext, current_task


class Atomic:
    """One block: collects the state writes, durable events and deferred tasks inside it; see the module."""

    __slots__ = ("_collector", "_commit", "_outer", "_together", "_token")

    def __init__(self, together: Together, commit: Callable[[Collector], Awaitable[None]]) -> None:
        self._together = together
        self._commit = commit
        self._collector: Collector | None = None
        self._outer: Collector | None = None
        self._token: Token[Collector | None] | None = None

    def __len__(self) -> int:
        """The number of writes, events and tasks collected so far."""
        found = self._collector
        return 0 if found is None else len(found.tasks) + len(found.events) + len(found.writes)

    async def __aenter__(self) -> Atomic:
        if self._collector is not None:
            raise SetupError("an atomic block can be entered only once; create another one")
        self._outer = collecting()
        attempt = _attempt()
        before = attempt.effects if self._outer is None and attempt is not None else self._outer
        self._collector = Collector(self._together, self._uses(), before)
        self._token = COLLECTING.set(self._collector)
        return self

    def _uses(self) -> frozenset[Capability]:
        """The capabilities that are part of the commit in any case."""
        if self._outer is not None:
            return self._outer.uses
        attempt = _attempt()
        if attempt is None:
            return frozenset()
        if attempt.effects is not None:
            uses: frozenset[Capability] = attempt.effects.uses
            return uses
        return frozenset(("events",)) if attempt.topic else frozenset(("queues",))

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        collector = self._collector
        assert collector is not None, "it was entered"
        assert self._token is not None
        COLLECTING.reset(self._token)
        collector.close()
        if value is not None or not collector:
            return
        attempt = _attempt()
        if self._outer is not None:
            if not self._outer.open:
                raise SetupError("the outer atomic block has ended: await everything that it starts inside the block")
            self._outer.absorb(collector)
        elif attempt is None:
            await self._commit(collector)
        elif attempt.effects is None:
            attempt.effects = collector
        else:
            attempt.effects.absorb(collector)


def _attempt() -> TaskContext | None:
    """The attempt that the current code belongs to; None also in code that a finished handler left running."""
    attempt = current_task(None)
    return None if attempt is None or attempt.over else attempt
