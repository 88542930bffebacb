"""Interceptors: one class for each concern around calls, streams, tasks, events and HTTP requests.

Owns: the base class that applications extend, the objects that its methods get, and composing several of them.
Leaves to others: where interceptors are declared (service.interceptors), applying them (intercepting for outgoing
calls, handling and tasks.attempt for offloaded handlers, service.interceptors for all others, gateway for HTTP).

Several interceptors form a chain: each gets `proceed`, which runs the rest of the chain and at last the work itself.
A chain is composed once for each method, so that a method without interceptors has no cost, and each interceptor costs
two function calls. See docs/interceptors.md.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Literal, TypeVar

import msgspec
from msgspec.structs import replace

from mesh.calls.answers import decode_any
from mesh.calls.context import CallContext
from mesh.calls.declared import BadDeclaration
from mesh.calls.failures import defined_at
from mesh.calls.options import CallOptions

C = TypeVar("C")

#: Runs the rest of a chain.
Proceed = Callable[[C], Awaitable[Any]]
#: One interceptor's method, bound.
Hook = Callable[[Any, Proceed[Any]], Awaitable[Any]]
Point = Literal["outgoing", "incoming", "delivery", "http"]
POINTS: Final[tuple[Point, ...]] = ("outgoing", "incoming", "delivery", "http")


#: A call that is sent within this time has its whole timeout, and all others what is left of it.
AT_ONCE_S: Final = 0.001


class OutgoingCall(msgspec.Struct, eq=False):
    """A call or stream that this process makes, before it is sent.

    Attributes:
        target: "service.method".
        body, encoding: the encoded arguments (mesh.protocol.messages); `arguments` decodes them.
        options: the other options of the call; the properties below read and change them.
        stream: the call is a stream; `await proceed(call)` then returns an asynchronous iterator.
        context: the context of the handler that makes the call; None outside of a handler.
        began_at: when the call was made, by the node's clock.

    An interceptor that changes nothing costs little: what can be changed is made when it is first read.
    """

    target: str
    body: Any
    encoding: int
    options: CallOptions
    decode: Callable[[Any, int], Any]
    stream: bool
    context: CallContext | None
    began_at: float
    _due: Callable[[OutgoingCall], float]
    _due_at: float | None = None
    _deadline_at: float | None = None
    _meta: dict[str, str] | None = None
    _sent: Any = None

    @property
    def due_at(self) -> float:
        """The deadline that the call had at the beginning."""
        if self._due_at is None:
            self._due_at = self._due(self)
        return self._due_at

    @property
    def deadline_at(self) -> float:
        """The instant, by the node's clock, at which the caller stops waiting; may be changed before `proceed`.

        The caller's `await` ends at the deadline that the call had at the beginning, if that is earlier.

        Raises:
            BadRequest: the target or the timeout of the call is invalid.
        """
        return self.due_at if self._deadline_at is None else self._deadline_at

    @deadline_at.setter
    def deadline_at(self, value: float) -> None:
        self._deadline_at = value

    def again(self, *, deadline_at: float | None = None) -> OutgoingCall:
        """A copy for one attempt of several: what is changed in it does not change this call.

        Args:
            deadline_at: of the attempt; None is the deadline of this call.
        """
        copy = replace(self, _sent=None)
        if self._meta is not None:
            copy._meta = dict(self._meta)
        if deadline_at is not None:
            copy._deadline_at = deadline_at
        return copy

    def avoid(self, other: OutgoingCall) -> None:
        """Do not call the instance that another attempt is at now."""
        handle = other._sent.order.handle if other._sent is not None else None
        if handle is not None:
            self.options = replace(self.options, avoid=(handle.instance.id, handle.peer.connections))

    def to_send(self, now: float) -> CallOptions:
        """The options with which the call is sent at the instant `now`.

        Nearly all calls are sent unchanged, in the turn of the loop in which they were made.
        """
        if self._deadline_at is None and self._meta is None and now < self.began_at + AT_ONCE_S:
            return self.options
        meta = self.options.meta if self._meta is None else self._meta or None
        return replace(self.options, timeout=float(self.deadline_at - now), meta=meta)

    @property
    def service(self) -> str:
        """The service of the target."""
        return self.target.rpartition(".")[0]

    @property
    def method(self) -> str:
        """The method of the target."""
        return self.target.rpartition(".")[2]

    @property
    def arguments(self) -> Any:
        """The arguments as plain values: a list, a map by name, or a map with integer keys for positions."""
        return decode_any(self.body, self.encoding) if self.body else []

    @property
    def meta(self) -> dict[str, str]:
        """Metadata that is sent with the call; may be changed in place before `proceed`."""
        if self._meta is None:
            self._meta = dict(self.options.meta or ())
        return self._meta

    @meta.setter
    def meta(self, value: dict[str, str]) -> None:
        self._meta = value

    @property
    def key(self) -> str | None:
        """Calls with the same key prefer the same instance; may be changed before `proceed`."""
        return self.options.key

    @key.setter
    def key(self, value: str | None) -> None:
        self.options = replace(self.options, key=value)

    @property
    def instance(self) -> str | None:
        """Id of the only instance to call; may be changed before `proceed`."""
        return self.options.instance

    @instance.setter
    def instance(self, value: str | None) -> None:
        self.options = replace(self.options, instance=value)

    @property
    def idempotent(self) -> bool | None:
        """Whether the call may be repeated; None takes what the method declares. May be changed before `proceed`."""
        return self.options.idempotent

    @idempotent.setter
    def idempotent(self, value: bool | None) -> None:
        self.options = replace(self.options, idempotent=value)


class IncomingCall(msgspec.Struct, eq=False):
    """A call or stream that this process answers: decoded and authorized, before its handler runs.

    Attributes:
        context: the context of the call, the same as `mesh.current()` in the handler.
        args: the decoded arguments, in the order of the handler's parameters; may be replaced before `proceed`.
            In place of an HTML form, its unread body is the last of them: the form is read behind the interceptors.
        stream: the call is a stream; `await proceed(call)` then returns an asynchronous iterator.
    """

    context: CallContext
    args: tuple[Any, ...]
    stream: bool = False

    @property
    def target(self) -> str:
        """The "service.method" that is called."""
        return self.context.target

    @property
    def meta(self) -> dict[str, str]:
        """The caller's metadata; may be changed in place."""
        return self.context.meta

    @property
    def caller(self) -> str:
        """Identity that the calling process claims."""
        return self.context.caller

    @property
    def user(self) -> str:
        """Name of the key that the calling process proved to hold; "" where links have no keys."""
        return self.context.user

    @property
    def deadline_at(self) -> float:
        """The instant, by the node's clock, at which the handler is stopped; may be changed."""
        return self.context.deadline_at

    @deadline_at.setter
    def deadline_at(self, value: float) -> None:
        self.context.deadline_at = value


class Delivery(msgspec.Struct, eq=False):
    """One attempt of a task, or the delivery of an event, before its handler runs.

    Attributes:
        context: the context of the work, the same as `mesh.current()` in the handler: of a task or durable event a
            `TaskContext` with the number of the attempt and the job's id.
        target: "service.task" or "service.handler".
        kind: "task" or "event".
        args: the decoded arguments of the task, in the order of its parameters, or the one `Event`; may be replaced
            before `proceed`.
    """

    context: CallContext
    target: str
    kind: Literal["task", "event"]
    args: tuple[Any, ...]

    @property
    def meta(self) -> dict[str, str]:
        """The metadata of the task or event; may be changed in place."""
        return self.context.meta

    @property
    def attempt(self) -> int:
        """The number of the attempt, from 1; 1 for a plain event."""
        return self.context.attempt


class Interceptor:
    """A concern around work. Override the methods for the points that matter; each runs the rest with `proceed`.

    ::

        class Tenancy(mesh.Interceptor):
            async def incoming(self, call, proceed):
                if not call.context.tenant:
                    raise mesh.Forbidden("no tenant")
                return await proceed(call)

        class Orders(mesh.Service):
            interceptors = [Tenancy()]

    A method may change the call before `await proceed(call)`, return another answer, return one without proceeding,
    raise, and run code afterwards; `outgoing` may also proceed several times, to retry. An exception is handled as one
    of the handler (or, in `outgoing`, of the call). For streams `proceed` returns an asynchronous iterator, and the
    method returns one.

    One instance may be used by many services and methods at once; it belongs to one event loop.
    """

    async def outgoing(self, call: OutgoingCall, proceed: Proceed[OutgoingCall]) -> Any:
        """Around each call and stream that the process, or the service, makes."""
        return await proceed(call)

    async def incoming(self, call: IncomingCall, proceed: Proceed[IncomingCall]) -> Any:
        """Around each call and stream that a service answers; also those of HTTP routes."""
        return await proceed(call)

    async def delivery(self, call: Delivery, proceed: Proceed[Delivery]) -> Any:
        """Around each attempt of a task, and each handler of an event, durable or plain."""
        return await proceed(call)

    async def http(self, call: Any, proceed: Proceed[Any]) -> Any:
        """Around each HTTP request at a gateway."""
        return await proceed(call)

    async def started(self, node: Any) -> None:
        """Runs once in each process before its services start; `node` can make calls. An error stops the process."""

    async def stopped(self) -> None:
        """Runs once in each process after its services have stopped."""


def hooks(interceptors: Sequence[Interceptor], point: Point) -> tuple[Hook, ...]:
    """The methods for one point of those interceptors that override it, in order."""
    return tuple(
        getattr(each, point) for each in interceptors if getattr(type(each), point) is not getattr(Interceptor, point)
    )


def compose(hooks: Sequence[Hook], innermost: Proceed[Any]) -> Proceed[Any]:
    """The chain of these hooks around `innermost`; the first one is the outermost."""
    proceed = innermost
    for hook in reversed(hooks):
        proceed = _bound(hook, proceed)
    return proceed


def _bound(hook: Hook, proceed: Proceed[Any]) -> Proceed[Any]:
    def run(call: Any) -> Awaitable[Any]:
        return hook(call, proceed)

    return run


def name_of(interceptor: Interceptor) -> str:
    """ "shop.tenancy:Tenancy"."""
    return f"{type(interceptor).__module__}:{type(interceptor).__qualname__}"


def check(what: str, interceptors: Any) -> tuple[Interceptor, ...]:
    """Return the interceptors of a declaration.

    Args:
        what: the place of the declaration, for errors: "Orders.interceptors".

    Raises:
        BadDeclaration: one is no interceptor, or a method of one is no `async def` with two parameters.
    """
    if isinstance(interceptors, str) or not isinstance(interceptors, Sequence):
        raise BadDeclaration(f"{what} is a list of interceptors, not {interceptors!r}"[:300])
    for each in interceptors:
        if isinstance(each, type) and issubclass(each, Interceptor):
            raise BadDeclaration(f"{what}: {each.__qualname__} is a class; use an instance: {each.__qualname__}()")
        if not isinstance(each, Interceptor):
            raise BadDeclaration(f"{what}: {each!r} is not a mesh.Interceptor"[:300])
        for point in POINTS:
            _check_hook(type(each), point, 2)
        _check_hook(type(each), "started", 1)
        _check_hook(type(each), "stopped", 0)
    return tuple(interceptors)


def _check_hook(cls: type[Interceptor], name: str, takes: int) -> None:
    function = inspect.getattr_static(cls, name)
    where = f"{cls.__qualname__}.{name}"
    if place := defined_at(function):
        where += f" ({place})"
    if not inspect.iscoroutinefunction(inspect.unwrap(function) if inspect.isfunction(function) else function):
        raise BadDeclaration(f"{where}: an interceptor's methods are `async def` without `yield`")
    try:
        inspect.signature(function).bind(*[None] * (takes + 1))
    except TypeError as exc:
        parameters = {0: "(self)", 1: "(self, node)", 2: "(self, call, proceed)"}[takes]
        raise BadDeclaration(f"{where}: its parameters are {parameters}; {exc}") from None
