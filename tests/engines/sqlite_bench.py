"""The bench for the SQLite core: a core on a folder of its own, and short words for what tests do with it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mesh.engines.contract import Outcome, Unit
from mesh.engines.sqlite.core import Core
from mesh.errors import MeshError, from_wire
from mesh.events.log import NewEvent
from mesh.state.contract import Write
from mesh.tasks.contract import JobInfo, Lease, NewTask, Settlement, Verdict

QUEUE = "mail.send"

#: Where writing costs nothing, if there is such a place; waiting for the disk is of no interest to most tests.
QUICK_DIR = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


class Bench:
    """A core, an instant that only the test moves, and ids that are made one after the other."""

    def __init__(self, dir: Path, **settings: Any) -> None:
        self.dir = dir
        self.settings = settings
        self.wall = 1_000_000.0
        self.core = Core(dir, **settings)
        self.core.open()
        self._numbers = itertools.count(1)

    def reopen(self) -> None:
        """As a new process would find the file."""
        self.core.close()
        self.core = Core(self.dir, **self.settings)
        self.core.open()

    def id(self) -> str:
        return f"{next(self._numbers):012x}{'0' * 16}"

    # --- asking ------------------------------------------------------------------------------------------

    def task(self, queue: str = QUEUE, body: bytes = b"\x90", **fields: Any) -> NewTask:
        return NewTask(fields.pop("id", None) or self.id(), queue, body, **fields)

    def event(self, topic: str = "order.created", body: bytes = b"\x01", **fields: Any) -> NewEvent:
        return NewEvent(fields.pop("id", None) or self.id(), topic, body, **fields)

    def unit(self, **parts: Any) -> Unit:
        return Unit(parts.pop("id", None) or self.id(), **parts)

    def apply(self, *units: Unit) -> list[Outcome]:
        with self.core.turn(self.wall) as turn:
            return turn.apply(units)

    def commit(self, **parts: Any) -> Outcome:
        """One unit in a turn of its own. Raises what it was refused for."""
        [outcome] = self.apply(self.unit(**parts))
        if outcome.error is not None:
            raise from_wire(outcome.error)
        return outcome

    def refused(self, **parts: Any) -> MeshError:
        """The error of a unit that must be refused."""
        [outcome] = self.apply(self.unit(**parts))
        assert outcome.error is not None, "it was not refused"
        return from_wire(outcome.error)

    def defer(self, *tasks: NewTask) -> list[str]:
        return [ticket.id for ticket in self.commit(tasks=tasks).tickets]

    def write(self, key: str, verb: str = "set", etag: str | None = None, **fields: Any) -> Write:
        new_etag = fields.pop("new_etag", None) or self.id()[:12]
        return Write(fields.pop("namespace", "carts"), key, verb, new_etag, etag=etag, **fields)  # type: ignore[arg-type]

    def claim(
        self, n: int = 100, session: str = "worker-1@1", queue: str = QUEUE, *, solo: bool = False
    ) -> list[Lease]:
        with self.core.turn(self.wall) as turn:
            return turn.claim(queue, n, session, solo=solo)

    def one(self, **how: Any) -> Lease:
        [lease] = self.claim(1, **how)
        return lease

    def settle(self, *leases: Lease, verdict: Verdict = "done", **fields: Any) -> None:
        self.commit(settle=[self.word(lease, verdict, **fields) for lease in leases])

    def word(self, lease: Lease, verdict: Verdict = "done", **fields: Any) -> Settlement:
        return Settlement(lease.id, lease.attempt, verdict, **fields)

    # --- looking -----------------------------------------------------------------------------------------

    def job(self, id: str) -> JobInfo:
        found = self.core.job(id, self.wall)
        assert found is not None, f"no job {id}"
        return found

    def status(self, id: str) -> str | None:
        found = self.core.job(id, self.wall)
        return found.status if found is not None else None

    def statuses(self, ids: Sequence[str]) -> list[str | None]:
        return [self.status(id) for id in ids]

    def promote(self) -> int:
        with self.core.turn(self.wall) as turn:
            return turn.promote()

    def pump(self) -> int:
        with self.core.turn(self.wall) as turn:
            return turn.pump()

    def sweep(self, limit: int = 500) -> int:
        with self.core.turn(self.wall) as turn:
            return turn.sweep(limit)

    def sound(self) -> None:
        """Nothing is wrong with the file, and memory knows what is in it."""
        assert self.core.check() == []
        before = memory(self.core)
        self.reopen()
        assert memory(self.core) == before


def memory(core: Core) -> dict[str, Any]:
    """What the core keeps in memory, in a form that can be compared."""
    assert core._rooms_ is not None
    book = core._rooms_.book
    return {
        "lanes": {
            lane.name: (lane.counts.copy(), lane.suspects, lane.said, lane.position if not lane.level else "level")
            for lane in book.lanes.values()
        },
        "held": {
            job.id: tuple(getattr(job, name) for name in type(job).__slots__ if name not in ("lane",))
            for job in book.held.values()
        },
        "sessions": {session: sorted(jobs) for session, jobs in book.sessions.items()},
        "spaces": {space.name: space.entries for space in core._rooms_.state._spaces.values()},
        "offset": book.offset,
    }
