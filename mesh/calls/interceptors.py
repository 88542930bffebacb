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
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final, Literal, TypeVar

import msgspec

from mesh.calls.answers import decode_any
from mesh.calls.context import CallContext
from mesh.calls.declared import BadDeclaration
from mesh.calls.failures import defined_at

C = TypeVar("C")

#: Runs the rest of a chain.
Proceed = Callable[[C], Awaitable[Any]]
#: One interceptor's method, bound.
Hook = Callable[[Any, Proceed[Any]], Awaitable[Any]]
Point = Literal["outgoing", "incoming", "delivery", "http"]
POINTS: Final[tuple[Point, ...]] = ("outgoing", "incoming", "delivery", "http")


class OutgoingCall(msgspec.Struct, eq=False):
    """A call or stream that this process makes, before it is sent.

    Attributes:
        target: "service.method".
        body, encoding: the encoded arguments (mesh.protocol.messages); `arguments` decodes them.
        meta: metadata that is sent with the call; may be changed in place.
        deadline_at: the instant, by the node's clock, at which the caller stops waiting; may be changed before
            `proceed`. The caller's `await` ends at the deadline that the call had at the beginning, if that is earlier.
        key, instance, idempotent: as for `Node.call`; may be changed before `proceed`.
        stream: the call is a stream; `await proceed(call)` then returns an asynchronous iterator.
        context: the context of the handler that makes the call; None outside of a handler.
        window: see CallOptions.
        source: the encoded items that the call sends; None for a call without a client stream. It can be read once.
    """

    target: str
    body: Any
    encoding: int
    deadline_at: float
    meta: dict[str, str]
    key: str | None
    instance: str | None
    idempotent: bool | None
    trace: str | None
    decode: Callable[[Any, int], Any]
    stream: bool
    context: CallContext | None
    source: AsyncIterator[tuple[Any, int]] | None = None
    window: int = 0

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
