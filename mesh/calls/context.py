"""The context of the call that a handler answers, and what the handler's own calls inherit from it.

Owns: the context variable, and how long code may wait within that call.
Leaves to others: setting it (handling), reading it (client, events, logs).
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Protocol

from mesh.telemetry import traces


class CallContext(Protocol):
    """The call that is being answered.

    Attributes:
        target: "service.method".
        caller: identity that the calling process claims.
        user: name of the key that the calling process proved to hold; "" where links have no keys (ipc).
        deadline_at: the instant at which the caller stops waiting; calls made by the handler end no later. Infinite
            once the handler has returned: tasks that it left running are not bound by the caller's deadline.
        trace: W3C traceparent of this run of the handler, a span of its own in the caller's trace. When the caller sent
            no trace, it is None until the handler's first log line, event or task begins one.
        meta: the caller's metadata.
    """

    trace: str | None

    @property
    def target(self) -> str: ...
    @property
    def caller(self) -> str: ...
    @property
    def user(self) -> str: ...
    @property
    def deadline_at(self) -> float: ...
    @property
    def meta(self) -> dict[str, str]: ...


CURRENT: ContextVar[CallContext | None] = ContextVar("mesh_call", default=None)


def current() -> CallContext | None:
    """The call that the running handler answers; None outside one."""
    return CURRENT.get()


def begin_trace() -> str:
    """The trace of the call being answered, begun now when its caller sent none; "" outside of a call."""
    call = CURRENT.get()
    if call is None:
        return ""
    if not call.trace:
        call.trace = traces.root()
    return call.trace


traces.begin_with(begin_trace)


def patience(now: float, most_s: float) -> float:
    """Seconds to wait: `most_s`, or the time left for the call being answered when that is less; at least 0."""
    call = CURRENT.get()
    return most_s if call is None else max(0.0, min(most_s, call.deadline_at - now))
