"""What a handler may know of the call that it answers, and what its own calls inherit.

Owns: the context variable, and how long may be waited under it.
Leaves to others: setting it (server), reading it (client, events, logs).
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Protocol


class CallContext(Protocol):
    """The call that is being answered.

    Attributes:
        target: "service.method".
        caller: identity of the process that called, as it says.
        user: name of the key that this process proved to hold; "" where links have no keys (ipc).
        deadline_at: the instant at which the caller stops waiting; calls made now end no later.
        trace: W3C traceparent, or None.
        meta: the caller's metadata.
    """

    @property
    def target(self) -> str: ...
    @property
    def caller(self) -> str: ...
    @property
    def user(self) -> str: ...
    @property
    def deadline_at(self) -> float: ...
    @property
    def trace(self) -> str | None: ...
    @property
    def meta(self) -> dict[str, str]: ...


CURRENT: ContextVar[CallContext | None] = ContextVar("mesh_call", default=None)


def current() -> CallContext | None:
    """The call that the running handler answers; None outside one."""
    return CURRENT.get()


def patience(now: float, most_s: float) -> float:
    """Seconds to wait: `most_s`, or what is left of the call that is being answered when that is less; 0 at least."""
    call = CURRENT.get()
    return most_s if call is None else max(0.0, min(most_s, call.deadline_at - now))
