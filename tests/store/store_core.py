"""A core without a file: units that are counted, tasks that are ready, and a disk that fails when it is told to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from mesh.engines.contract import Outcome, Unit
from mesh.errors import BadRequest
from mesh.tasks.contract import Lease, NewTask, Queue, Ticket


class FakeTurn:
    """One transaction: what it changed is taken back when it fails."""

    def __init__(self, core: FakeCore, wall: float) -> None:
        self.core = core
        self.wall = wall
        self.woken: set[str] = set()
        self.over: list[str] = []
        self.stopping: list[tuple[str, str, int]] = []
        self.freed: set[str] = set()

    def __enter__(self) -> FakeTurn:
        if self.core.fails is not None and self.core.fails_at == "begin":
            raise self.core.fails
        self.before = (
            {queue: list(tasks) for queue, tasks in self.core.tasks.items()},
            dict(self.core.leases),
            list(self.core.units),
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        failing = self.core.fails if self.core.fails_at == "commit" else None
        if exc is None and failing is None:
            self.core.commits += 1
            return
        tasks, self.core.leases, self.core.units = self.before
        self.core.tasks = defaultdict(list, tasks)
        if exc is None and failing is not None:
            raise failing

    def apply(self, units: Sequence[Unit]) -> list[Outcome]:
        outcomes = []
        self.core.slices.append(len(units))
        for unit in units:
            if unit.id in self.core.poison:
                raise RuntimeError(f"{unit.id} is more than this core can bear")
            if unit.id in self.core.refused:
                outcomes.append(Outcome(BadRequest(f"no {unit.id}").to_wire()))
                continue
            self.core.units.append(unit.id)
            for task in unit.tasks:
                self.core.tasks[task.queue].append(task)
                self.woken.add(task.queue)
            for settled in unit.settle:
                self.core.leases.pop(settled.id, None)
                self.over.append(settled.id)
            outcomes.append(Outcome(tickets=[Ticket(task.id) for task in unit.tasks]))
        return outcomes

    def claim(self, queue: str, n: int, session: str, *, solo: bool = False) -> list[Lease]:
        taken = self.core.tasks[queue][:n]
        del self.core.tasks[queue][:n]
        for task in taken:
            self.core.leases[task.id] = (session, queue)
        return [Lease(task.id, 1, queue, task.body) for task in taken]


class FakeHeld:
    def __init__(self, id: str, queue: str, session: str) -> None:
        self.id, self.attempt, self.queue, self.session, self.stopping, self.suspect = (
            id,
            1,
            queue,
            session,
            False,
            False,
        )


class FakeCore:
    """See mesh.engines.sqlite.core.Core, as far as turns need it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.tasks: defaultdict[str, list[NewTask]] = defaultdict(list)
        self.leases: dict[str, tuple[str, str]] = {}
        self.units: list[str] = []
        self.slices: list[int] = []
        self.commits = 0
        self.poison: set[str] = set()
        self.refused: set[str] = set()
        self.fails: Exception | None = None
        self.fails_at = "commit"

    def turn(self, wall: float, ahead: float = 0.0) -> FakeTurn:
        return FakeTurn(self, wall)

    def rest(self) -> None: ...

    def ready(self, queue: str) -> int:
        return len(self.tasks[queue])

    def suspects(self, queue: str) -> int:
        return 0

    def names(self) -> list[str]:
        return list(self.tasks)

    def declared(self, queue: str) -> Queue | None:
        return None

    def held(self) -> dict[str, list[FakeHeld]]:
        found: defaultdict[str, list[FakeHeld]] = defaultdict(list)
        for id, (session, queue) in self.leases.items():
            found[session].append(FakeHeld(id, queue, session))
        return found
