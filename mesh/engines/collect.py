"""Collects the changes of an `atomic` block until they are committed together.

Owns: the current collector (a context variable, so that tasks started in a block inherit it), the order of the changes,
and rejecting at once changes that cannot be committed together.
Leaves to others: which engine serves which capability (choose), opening and committing blocks (service.atomic), the
methods that add changes (node.durable, state.namespace).
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

#: Called with the result of a deferred task after the commit.
Told = Callable[[Ticket], None]
#: Raises NotOffered when no engine commits these together.
Together = Callable[[frozenset[Capability]], object]


class Collector:
    """The changes of one block, in the order in which they were made.

    Attributes:
        tasks, events, writes: the changes so far.
        uses: the capabilities that must be committed together.
        open: whether the block is still open.
        outer: changes that precede these in the same commit; None for none. Reads of state include them.
    """

    __slots__ = ("_together", "_unit", "events", "open", "outer", "tasks", "told", "uses", "writes")

    def __init__(self, together: Together, uses: Iterable[Capability] = (), outer: Collector | None = None) -> None:
        """Args:
        together: called at each first use of a capability, so that the offending statement itself fails.
        uses: capabilities that are committed with the block in any case: that of the lease that is being run.
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
        """Add tasks; `told` are called with their tickets after the commit. Raises: see `_take`."""
        self._take("queues")
        self.tasks += tasks
        self.told += told or [None] * len(tasks)

    def append(self, events: Sequence[NewEvent]) -> None:
        """Add events for the log. Raises: see `_take`."""
        self._take("events")
        self.events += events

    def write(self, writes: Sequence[Write]) -> None:
        """Add changes of state. Raises: see `_take`."""
        self._take("state")
        self.writes += writes

    def _take(self, capability: Capability) -> None:
        """Raises:
        NotOffered: no engine commits this capability together with those that the block uses already.
        SetupError: the block is over.
        """
        if not self.open:
            raise SetupError("this atomic block has ended: await everything that it starts before its end")
        if capability not in self.uses:
            uses = self.uses | {capability}
            self._together(uses)
            self.uses = uses

    def close(self) -> None:
        """Accept no more changes: tasks that the block left running must not change what is being committed."""
        self.open = False

    def absorb(self, inner: Collector) -> None:
        """Add all changes of an inner block."""
        self.uses |= inner.uses
        self.tasks += inner.tasks
        self.told += inner.told
        self.events += inner.events
        self.writes += inner.writes

    def unit(self, settle: Sequence[Settlement] = ()) -> Unit:
        """All changes as a unit, with the given acknowledgements. Later calls return the same unit, so that a retry
        after a missing answer does not commit it twice."""
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
        """Pass on the tickets after the commit."""
        for told, ticket in zip(self.told, outcome.tickets, strict=False):
            if told is not None:
                told(ticket)


COLLECTING: Final[ContextVar[Collector | None]] = ContextVar("mesh_atomic", default=None)


def collecting() -> Collector | None:
    """The collector of the current block; None outside of any block."""
    return COLLECTING.get()
