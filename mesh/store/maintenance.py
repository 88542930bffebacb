"""The store's maintenance: work that becomes due without a request.

Owns: when each kind is due, and how much of it one transaction does.
Leaves to others: the changes in the file (the core), transactions (turns), granting locks (queueing).

========== ==========================================================================================
Deaths     sessions that are over: their tasks become ready for other workers
Delayed    delayed tasks that are due
Deliveries events that subscriptions have not received yet
Unknown    tasks of a live service that none of its workers declares: dead after a while
Sweeping   expired rows
Locks      locks that became free while callers wait for them
========== ==========================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Final

from mesh.engines.sqlite.core import Core, Turn
from mesh.store.dispatch import Dispatch
from mesh.store.queueing import LockQueues
from mesh.store.sessions import Sessions
from mesh.suggest import suggestion
from mesh.telemetry.logs import get_logger

log = get_logger("mesh.store")

#: Rows that one transaction handles besides callers' requests: a millisecond or two.
SOME: Final = 300
#: How often to look for expired rows, and for unknown queues.
SWEEP_EVERY_S: Final = 5.0
LOOK_EVERY_S: Final = 1.0


class Deaths:
    """Sessions that are over."""

    def __init__(self, sessions: Sessions, dispatch: Dispatch, ended: Callable[[str], None]) -> None:
        """`ended(session)` is called when the end of a session is durable."""
        self._sessions = sessions
        self._dispatch = dispatch
        self._ended = ended
        self._over: list[tuple[str, str, int]] = []

    def due_at(self, now: float, wall: float) -> float | None:
        return self._sessions.due_at()

    def run(self, turn: Turn, now: float, wall: float) -> None:
        for session, why in self._sessions.died(now):
            turn.release(session, lost=True)
            self._over.append((session, why, self._dispatch.holds(session)))
            self._dispatch.leave(session)

    def committed(self) -> None:
        for session, why, held in self._over:
            self._sessions.forget(session)
            self._ended(session)
            tell = log.warning if held else log.info
            tell("session.ended", session=session, reason=why, tasks_for_others=held)
        self._over.clear()

    def undone(self) -> None:
        self._over.clear()


class Delayed:
    """Delayed tasks that are due."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def due_at(self, now: float, wall: float) -> float | None:
        due_at = self._core.next_due()
        return None if due_at is None else now + (due_at - wall)

    def run(self, turn: Turn, now: float, wall: float) -> None:
        due_at = self._core.next_due()
        if due_at is not None and due_at <= wall:
            turn.promote(SOME)

    def committed(self) -> None: ...
    def undone(self) -> None: ...


class Deliveries:
    """Events that subscriptions have not received yet."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def due_at(self, now: float, wall: float) -> float | None:
        return now if self._core.pumpable() else None

    def run(self, turn: Turn, now: float, wall: float) -> None:
        if self._core.pumpable():
            turn.pump(SOME)

    def committed(self) -> None: ...
    def undone(self) -> None: ...


class Unknown:
    """Tasks that no worker of their service declares."""

    def __init__(
        self,
        core: Core,
        sessions: Sessions,
        dispatch: Dispatch,
        after_s: float,
        registered: Callable[[str], Collection[str] | None],
    ) -> None:
        """Args:
        registered: the tasks that a service's live instances declare in the registry; None when there is no instance.
            A service without tasks has no session here; only the registry shows that it is live.
        """
        self._core = core
        self._registered = registered
        self._sessions = sessions
        self._dispatch = dispatch
        self._after_s = after_s
        self._since: dict[str, float] = {}
        self._next_at = 0.0

    def due_at(self, now: float, wall: float) -> float | None:
        return self._next_at if len(self._sessions) or self._core.names() else None

    def run(self, turn: Turn, now: float, wall: float) -> None:
        if now < self._next_at:
            return
        self._next_at = now + LOOK_EVERY_S
        services = self._sessions.services()
        unknown = set(self._unknown(services))
        for queue in [queue for queue in self._since if queue not in unknown]:
            del self._since[queue]
        for queue in unknown:
            since = self._since.setdefault(queue, now)
            if now - since >= self._after_s:
                service, _, name = queue.rpartition(".")
                known = self._registered(service) or ()
                hint = suggestion(name, known, "" if known else f"{service} has no tasks at all")
                error = (
                    f"no worker of {service} that was there for {self._after_s:g} s knows a task {name[:100]!r}{hint}"
                )
                buried = turn.bury(queue, error=error, limit=SOME)
                log.error("tasks.unknown", queue=queue, count=buried, reason=error)
                if buried >= SOME:
                    self._next_at = now

    def _unknown(self, services: set[str]) -> Iterable[str]:
        core = self._core
        for queue in core.names():
            if not (core.ready(queue) or core.suspects(queue)) or self._dispatch.workers(queue):
                continue
            service, _, name = queue.rpartition(".")
            if service in services or self._is_unregistered(service, name, queue):
                yield queue

    def _is_unregistered(self, service: str, name: str, queue: str) -> bool:
        """Whether the service is live and has no such task."""
        said = self._core.declared(queue)
        if said is not None and said.patterns:
            # A durable handler is not a task, and not listed as one in the registry.
            return False
        tasks = self._registered(service)
        return tasks is not None and name not in tasks

    def committed(self) -> None: ...
    def undone(self) -> None: ...


class Sweeping:
    """Expired rows."""

    def __init__(self) -> None:
        self._next_at = 0.0

    def due_at(self, now: float, wall: float) -> float | None:
        return self._next_at

    def run(self, turn: Turn, now: float, wall: float) -> None:
        if now >= self._next_at:
            swept = turn.sweep(SOME)
            self._next_at = now if swept >= SOME else now + SWEEP_EVERY_S

    def committed(self) -> None: ...
    def undone(self) -> None: ...


class Locks:
    """Locks that became free while callers wait for them."""

    def __init__(self, queues: LockQueues) -> None:
        self._queues = queues

    def due_at(self, now: float, wall: float) -> float | None:
        due_at = self._queues.due_at()
        return None if due_at is None else now + (due_at - wall)

    def run(self, turn: Turn, now: float, wall: float) -> None:
        self._queues.serve(turn, self._queues.due(turn.freed, wall))

    def committed(self) -> None:
        self._queues.committed()

    def undone(self) -> None:
        self._queues.undone()
