"""The context of the task or durable event that a handler is running.

Owns: the data type, which is also a CallContext: calls made by the handler inherit its deadline, trace and metadata.
Leaves to others: the context variable (calls.context), setting it (runner).
"""

from __future__ import annotations

from typing import Any, Protocol, TypeVar, overload

import msgspec

from mesh.calls.context import CURRENT, CallContext
from mesh.calls.propagation import Values
from mesh.errors import SetupError
from mesh.tasks.contract import Lease

T = TypeVar("T")


class Effects(Protocol):
    """The effects that `atomic` blocks of an attempt collected; the runner only tests whether there are any."""

    def __bool__(self) -> bool: ...


class TaskContext(msgspec.Struct, CallContext, eq=False):
    """One attempt, as its handler sees it; `mesh.current_task()` gives it.

    Attributes:
        lease: as the engine gave it; the properties read it.
        target: "service.task".
        caller, user: always "": the caller that deferred the task may have ended.
        deadline_at: the instant (of the clock) at which the attempt is stopped; calls made in it end no later.
        carried: see CallContext.
        effects: committed together with the acknowledgement; filled by `atomic`.
    """

    lease: Lease
    target: str
    deadline_at: float
    trace: str | None
    meta: dict[str, str]
    caller: str = ""
    user: str = ""
    effects: Any = None
    carried: Values | None = None

    def detached(self) -> TaskContext:
        """A copy that can be pickled, for a handler in a child process; without the body and the effects."""
        lease = msgspec.structs.replace(self.lease, body=b"")
        return TaskContext(lease, self.target, self.deadline_at, self.trace, self.meta, carried=self.carried)

    @property
    def over(self) -> bool:
        """Whether the handler has returned; background work that it left running is not part of the attempt."""
        return False

    @property
    def job(self) -> str:
        """The job's id; the same in every attempt."""
        return self.lease.id

    @property
    def attempt(self) -> int:
        """The number of the attempt, from 1."""
        return self.lease.attempt

    @property
    def lost(self) -> int:
        """How many workers died while they ran it."""
        return self.lease.lost

    @property
    def key(self) -> str:
        """The key of the task or event; "" for none."""
        return self.lease.key

    @property
    def created_at(self) -> float:
        """When it was deferred, in seconds since 1970."""
        return self.lease.created_at

    @property
    def topic(self) -> str:
        """The topic of the durable event; "" in a task."""
        return self.lease.topic

    @property
    def event(self) -> str:
        """The durable event's id; "" in a task."""
        return self.lease.event

    @property
    def offset(self) -> int:
        """The offset of the durable event in the log; 0 in a task."""
        return self.lease.offset

    @property
    def prior(self) -> Any:
        """The answers of the tasks that it waited for, as plain values: one answer, or a list in a group's callback."""
        return msgspec.msgpack.decode(self.lease.prior) if self.lease.prior else None


@overload
def current_task() -> TaskContext: ...
@overload
def current_task(default: T, /) -> TaskContext | T: ...
def current_task(*default: T) -> TaskContext | T:
    """The task or durable event that the running handler works on.

    Args:
        default: returned outside of a task or durable event, for example in a call; `current_task(None)` tests
            whether there is one.

    Raises:
        SetupError: none is running, and no default was given.
    """
    context = CURRENT.get()
    if isinstance(context, TaskContext):
        return context
    if default:
        return default[0]
    raise SetupError(
        "current_task(): no task or durable event is running here; use current_task(None) where there may be none"
    )
