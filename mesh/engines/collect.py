"""What an `atomic` block asks for, kept until all of it is committed at once.

Owns: the collector in force (a context variable, so that it is inherited by what a block starts), the order of what it
takes, and refusing at once what could never be committed together.
Leaves to others: which engine serves what (choose), opening and committing blocks (service.atomic), the verbs that
put things in (service.durable, state.namespace).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from typing import Final

from mesh import ids
from mesh.engines.contract import Capability, Outcome, Unit
from mesh.errors import SetupError
from mesh.events.log import NewEvent
from mesh.state.contract import Write
from mesh.tasks.contract import NewTask, Settlement, Ticket

#: Told what became of a deferred task, when it is known.
Told = Callable[[Ticket], None]
#: Raises NotOffered when no engine commits these together.
Together = Callable[[frozenset[Capability]], object]


class Collector:
    """The wishes of one block, in the order in which they were made.

    Attributes:
        tasks, events, writes: so far.
        uses: the capabilities that must be committed together.
        open: whether the block still goes on.
        outer: what will be committed before this, in the same commit; None for nothing. State reads through it.
    """

    __slots__ = ("_together", "_unit", "events", "open", "outer", "tasks", "told", "uses", "writes")

    def __init__(self, together: Together, uses: Iterable[Capability] = (), outer: Collector | None = None) -> None:
        """Args:
        together: asked at each first use of a capability, so that the line which cannot work is the one that fails.
        uses: what will be committed with the block in any case: the capability of the lease that is being run.
        """
        self.outer = outer
        self._together = together
        self.open = True
        self._unit: Unit | None = None
        self.uses = frozenset(uses)
        self.tasks: list[NewTask] = []
        self.told: list[Told | None] = []
        self.events: list[NewEvent] = []
        self.writes: list[Write] = []

    def __bool__(self) -> bool:
        """Whether there is anything to commit."""
        return bool(self.tasks or self.events or self.writes)

    def defer(self, tasks: Sequence[NewTask], told: Sequence[Told | None] = ()) -> None:
        """Take tasks; `told` are called with their tickets after the commit. Raises: see `_take`."""
        self._take("tasks")
        self.tasks += tasks
        self.told += told or [None] * len(tasks)

    def append(self, events: Sequence[NewEvent]) -> None:
        """Take events for the log. Raises: see `_take`."""
        self._take("events")
        self.events += events

    def write(self, writes: Sequence[Write]) -> None:
        """Take changes of state. Raises: see `_take`."""
        self._take("state")
        self.writes += writes

    def _take(self, capability: Capability) -> None:
        """Raises:
        NotOffered: no engine commits this together with what the block has already.
        SetupError: the block is over.
        """
        if not self.open:
            raise SetupError("this atomic block is over: await what it starts before it ends")
        if capability not in self.uses:
            uses = self.uses | {capability}
            self._together(uses)
            self.uses = uses

    def close(self) -> None:
        """Take nothing more: what the block left running must not change what is being committed."""
        self.open = False

    def absorb(self, inner: Collector) -> None:
        """Take over everything that an inner block collected."""
        self.uses |= inner.uses
        self.tasks += inner.tasks
        self.told += inner.told
        self.events += inner.events
        self.writes += inner.writes

    def unit(self, settle: Sequence[Settlement] = ()) -> Unit:
        """All of it, with the acknowledgements that go with it. Always the same one: asked for again, because an
        engine gave no answer, it must not be committed twice."""
        if self._unit is None:
            self._unit = Unit(
                id=ids.job_id(),
                tasks=tuple(self.tasks),
                events=tuple(self.events),
                writes=tuple(self.writes),
                settle=tuple(settle),
            )
        return self._unit

    def tell(self, outcome: Outcome) -> None:
        """The unit was committed: pass the tickets on."""
        for told, ticket in zip(self.told, outcome.tickets, strict=False):
            if told is not None:
                told(ticket)


COLLECTING: Final[ContextVar[Collector | None]] = ContextVar("mesh_atomic", default=None)


def collecting() -> Collector | None:
    """The collector of the block that the running code stands in; None outside of any."""
    return COLLECTING.get()
