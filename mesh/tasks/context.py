"""What a handler may know of the task or durable event that it is running.

Owns: the shape, which is also a CallContext: calls made by the handler inherit its deadline, trace and metadata.
Leaves to others: the context variable (calls.context), setting it (runner).
"""

from __future__ import annotations

from typing import Any, Protocol, TypeVar, overload

import msgspec

from mesh.calls.context import CURRENT
from mesh.errors import SetupError
from mesh.tasks.contract import Lease

T = TypeVar("T")


class Effects(Protocol):
    """What `atomic` blocks of an attempt collected, as the runner sees it: something, or nothing."""

    def __bool__(self) -> bool: ...


class TaskContext(msgspec.Struct, eq=False):
    """One attempt, as its handler sees it; `mesh.current_task()` gives it.

    Attributes:
        lease: as the engine gave it; the properties read it.
        target: "service.task".
        caller, user: "" always: whoever deferred it need not live any more.
        deadline_at: the instant (of the clock) at which the attempt is stopped; calls made in it end no later.
        effects: what is committed with the acknowledgement; filled by `atomic`.
    """

    lease: Lease
    target: str
    deadline_at: float
    trace: str | None
    meta: dict[str, str]
    caller: str = ""
    user: str = ""
    effects: Any = None

    @property
    def over(self) -> bool:
        """Whether the handler has returned: what it left running is not part of the attempt any more."""
        return False

    @property
    def job(self) -> str:
        """The job's id; the same in every attempt."""
        return self.lease.id

    @property
    def attempt(self) -> int:
        """Counted from 1."""
        return self.lease.attempt

    @property
    def lost(self) -> int:
        """How many workers died while they ran it."""
        return self.lease.lost

    @property
    def key(self) -> str:
        """As it was deferred or emitted with; "" for none."""
        return self.lease.key

    @property
    def created_at(self) -> float:
        """When it was deferred, in seconds since 1970."""
        return self.lease.created_at

    @property
    def topic(self) -> str:
        """Of the durable event; "" in a task."""
        return self.lease.topic

    @property
    def event(self) -> str:
        """The durable event's id; "" in a task."""
        return self.lease.event

    @property
    def offset(self) -> int:
        """Where the durable event stands in the log; 0 in a task."""
        return self.lease.offset

    @property
    def prior(self) -> Any:
        """What the tasks that it waited for answered, as plain values: one answer, or a list in a group's callback."""
        return msgspec.msgpack.decode(self.lease.prior) if self.lease.prior else None


@overload
def current_task() -> TaskContext: ...
@overload
def current_task(default: T, /) -> TaskContext | T: ...
def current_task(*default: T) -> TaskContext | T:
    """The task or durable event that the running handler works at.

    Args:
        default: what is given elsewhere, also in a plain call; `current_task(None)` asks whether there is one.

    Raises:
        SetupError: none is running, and no default was given.
    """
    context = CURRENT.get()
    if isinstance(context, TaskContext):
        return context
    if default:
        return default[0]
    raise SetupError(
        "current_task(): no task or durable event is running here; where there may be none, ask current_task(None)"
    )
