"""What a handler may know of the call that it answers, and what its own calls inherit.

Owns: the context variable. Leaves to others: setting it (server), reading it (client, events, logs).
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Protocol


class CallContext(Protocol):
    """The call that is being answered.

    Attributes:
        target: "service.method".
        caller: identity of the process that called.
        deadline_at: the instant at which the caller stops waiting; calls made now end no later.
        trace: W3C traceparent, or None.
        meta: the caller's metadata.
    """

    @property
    def target(self) -> str: ...
    @property
    def caller(self) -> str: ...
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
