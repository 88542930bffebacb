"""The context of the work at hand, and what the calls, events and tasks that this work causes inherit from it.

Owns: the context variable, the public interface of a context, and how long code may wait within it.
Leaves to others: setting it (handling, events.inbox, tasks.runner, worker.worker), reading it (client, events, logs),
the names of propagated values in messages (propagation).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

import msgspec

from mesh.calls.propagation import (
    BAGGAGE,
    PRINCIPAL,
    ROLES,
    SCOPES,
    TENANT,
    TRACESTATE,
    UNVERIFIED,
    Values,
    read_name,
    read_names,
    replaced,
    without_principal,
)
from mesh.errors import BadArguments, SetupError
from mesh.telemetry import baggage as w3c_baggage
from mesh.telemetry import traces

NEVER: Final = float("inf")
#: A name, so that type checkers do not take the attributes below for missing slots.
_NO_SLOTS: Final[tuple[str, ...]] = ()


class CallContext:
    """The context of the call, stream, event, task or timer that is being handled; `mesh.current()` gives it.

    `tenant`, `principal`, `roles`, `scopes`, `baggage` and `tracestate` are inherited by everything that the work
    causes: calls, streams, events and tasks, in whichever process they run. Assigning them affects what is caused
    afterwards.

    Attributes:
        target: "service.method".
        caller: identity that the calling process claims; of an event its publisher; "" in tasks and timers.
        user: name of the key that the calling process proved to hold; "" where links have no keys (ipc).
        deadline_at: the instant at which the caller stops waiting; calls made by the handler end no later. Infinite
            once the handler has returned: tasks that it left running are not bound by the caller's deadline. Infinite
            in plain events and timers.
        trace: W3C traceparent of this run of the handler, a span of its own in the caller's trace. When the caller sent
            no trace, it is None until the handler's first log line, event or task begins one.
        meta: the caller's metadata.
        carried: the propagated values; code uses the properties below.
    """

    # Each subclass is a Struct and has these fields. A base class without slots would give it a dictionary, too.
    __slots__ = _NO_SLOTS

    target: str
    caller: str
    deadline_at: float
    trace: str | None
    meta: dict[str, str]
    carried: Values | None

    # A property here, because a subclass may compute it; each subclass has it, as a field or as a property.
    @property
    def user(self) -> str:
        raise NotImplementedError

    @property
    def attempt(self) -> int:
        """The number of the attempt of a task or durable event, from 1; 1 in all other work."""
        return 1

    @property
    def tenant(self) -> str:
        """The tenant for which the work is done; "" when none was set.

        Raises:
            BadArguments: when assigned: not printable text of at most 256 characters.
        """
        return self.carried.get(TENANT, "") if self.carried else ""

    @tenant.setter
    def tenant(self, value: str) -> None:
        self.carried = replaced(self.carried, TENANT, read_name("tenant", value))

    @property
    def principal(self) -> str:
        """On whose behalf the work is done: the user that the edge authenticated; "" for unknown.

        Assigning another principal removes the roles and scopes, which belong to the one before.

        Raises:
            BadArguments: when assigned: not printable text of at most 256 characters.
        """
        return self.carried.get(PRINCIPAL, "") if self.carried else ""

    @principal.setter
    def principal(self, value: str) -> None:
        value = read_name("principal", value)
        if value != self.principal or (value and not self.verified):
            self.carried = replaced(without_principal(self.carried or {}), PRINCIPAL, value)

    @property
    def roles(self) -> frozenset[str]:
        """The roles of the principal, such as "clerk"; empty by default.

        Raises:
            BadArguments: when assigned: there is no principal, or the names are not printable ASCII without spaces, of
                at most 128 characters each and 2048 together.
        """
        return self._names(ROLES)

    @roles.setter
    def roles(self, names: Iterable[str]) -> None:
        self._set_names("roles", ROLES, names)

    @property
    def scopes(self) -> frozenset[str]:
        """What the principal has been granted, such as "orders:write"; empty by default.

        Raises:
            BadArguments: when assigned: as for `roles`.
        """
        return self._names(SCOPES)

    @scopes.setter
    def scopes(self, names: Iterable[str]) -> None:
        self._set_names("scopes", SCOPES, names)

    @property
    def verified(self) -> bool:
        """Whether there is a principal, and each process that passed it on may assert principals.

        False in a worker with [access] when the principal came from a process that `[access] assert` does not list, or
        through one. True without [access]: there, every process is trusted.
        """
        carried = self.carried
        return bool(carried) and PRINCIPAL in carried and UNVERIFIED not in carried  # type: ignore[operator]

    def _names(self, name: str) -> frozenset[str]:
        return frozenset(self.carried.get(name, "").split()) if self.carried else frozenset()

    def _set_names(self, what: str, name: str, names: Iterable[str]) -> None:
        text = read_names(what, names)
        if text and not self.principal:
            raise BadArguments(f"{what}: there is no principal to have them; assign the principal first")
        self.carried = replaced(self.carried, name, text)

    @property
    def baggage(self) -> Mapping[str, str]:
        """The entries of the W3C baggage, as a new map: `context.baggage = {**context.baggage, "plan": "free"}`.

        A baggage comes from the sender of the first request, unchecked: do not decide on access by it.

        Raises:
            BadArguments: when assigned: a key is no token, a value is no text, or there is too much of it.
        """
        return w3c_baggage.parse(self.carried[BAGGAGE]) if self.carried and BAGGAGE in self.carried else {}

    @baggage.setter
    def baggage(self, entries: Mapping[str, str]) -> None:
        self.carried = replaced(self.carried, BAGGAGE, w3c_baggage.render(entries))

    @property
    def tracestate(self) -> str:
        """The W3C tracestate, as the first sender wrote it; "" for none."""
        return self.carried.get(TRACESTATE, "") if self.carried else ""

    def detached(self) -> CallContext:
        """A copy that can be pickled, for a handler in a child process."""
        return PlainContext(
            self.target, self.caller, self.user, self.deadline_at, self.trace, dict(self.meta), self.carried
        )


class PlainContext(msgspec.Struct, CallContext, eq=False):
    """The context of work that is neither a call nor a task: a plain event, a timer, a block of `mesh.scope`, a handler
    in a child process. Attributes as in CallContext."""

    target: str = ""
    caller: str = ""
    user: str = ""
    deadline_at: float = NEVER
    trace: str | None = None
    meta: dict[str, str] = {}
    carried: Values | None = None


CURRENT: ContextVar[CallContext | None] = ContextVar("mesh_call", default=None)


def current() -> CallContext | None:
    """The context of the call, stream, event, task or timer that the running code handles; None outside of them.

    Example::

        context = mesh.current()
        if context is not None:
            self.log.info("greeting.asked", caller=context.caller, tenant=context.tenant)
    """
    return CURRENT.get()


@contextmanager
def scope(
    *,
    tenant: str = "",
    principal: str = "",
    roles: Iterable[str] = (),
    scopes: Iterable[str] = (),
    baggage: Mapping[str, str] | None = None,
    trace: str | None = None,
) -> Iterator[CallContext]:
    """Give a block of a program that handles nothing a context: `with mesh.scope(tenant="acme"): await n.call(…)`.

    For clients, scripts and tests. All calls, events and tasks of the block have these values. In a handler, assign to
    `mesh.current()` instead.

    Args:
        tenant, principal, roles, scopes, baggage: see CallContext; those that are not given are inherited from a scope
            around this one, roles and scopes unless the principal is another one.
        trace: W3C traceparent of the block; None begins a new trace.

    Raises:
        SetupError: the block is in a handler.
        BadArguments: a value is invalid; see CallContext.
    """
    outer = CURRENT.get()
    if outer is not None and not isinstance(outer, _Scope):
        raise SetupError(
            f"mesh.scope() cannot be used in the handler {outer.target}: assign to mesh.current().tenant … instead"
        )
    context = _Scope(trace=traces.accept(trace) or traces.root(), carried=outer.carried if outer is not None else None)
    if tenant:
        context.tenant = tenant
    if principal:
        context.principal = principal
    if roles:
        context.roles = roles
    if scopes:
        context.scopes = scopes
    if baggage is not None:
        context.baggage = baggage
    token, traced = CURRENT.set(context), traces.current.set(context.trace or "")
    try:
        yield context
    finally:
        traces.current.reset(traced)
        CURRENT.reset(token)


class _Scope(PlainContext, eq=False):
    """The context of a block of `scope`."""


def carrying(meta: dict[str, str] | None) -> dict[str, str] | None:
    """The metadata of a message: the caller's, and the values of the current context below them."""
    context = CURRENT.get()
    if context is None or context.carried is None:
        return meta
    return {**context.carried, **(meta or {})}


def begin_trace() -> str:
    """The trace of the work at hand, begun now when its caller sent none; "" outside of any."""
    call = CURRENT.get()
    if call is None:
        return ""
    if not call.trace:
        call.trace = traces.root()
    return call.trace


traces.begin_with(begin_trace)


def inherited(deadline_at: float) -> float:
    """The deadline of work that the current work causes: `deadline_at`, or that of the current work when it is earlier.

    (The client compares by itself: it has the context in hand for the trace as well.)
    """
    call = CURRENT.get()
    return deadline_at if call is None or call.deadline_at >= deadline_at else call.deadline_at


def patience(now: float, most_s: float) -> float:
    """Seconds to wait: `most_s`, or the time left for the call being answered when that is less; at least 0."""
    return max(0.0, inherited(now + most_s) - now)
