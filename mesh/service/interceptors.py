"""The interceptors of one process: declared where, in which order, and put around the handlers of its services.

Owns: collecting interceptors from mesh.toml, the node, classes and methods; wrapping handlers; their start and stop.
Leaves to others: the chain itself (calls.interceptors), outgoing calls (calls.intercepting), HTTP (gateway).

Order, from the outermost: mesh.toml, the node (`connect(interceptors=…)`), the service class with its base classes'
before its own, the method (`@mesh.intercept`). `mesh config` lists the chains.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import msgspec

from mesh.calls.answers import typed_decoder
from mesh.calls.context import CURRENT, CallContext, PlainContext
from mesh.calls.importing import attribute_of
from mesh.calls.intercepting import OUTGOING
from mesh.calls.interceptors import (
    POINTS,
    Delivery,
    Hook,
    IncomingCall,
    Interceptor,
    Point,
    Proceed,
    check,
    compose,
    hooks,
    name_of,
)
from mesh.calls.method import Method
from mesh.config import Settings
from mesh.config.settings import InterceptorSettings
from mesh.errors import SetupError
from mesh.events.event import Handler
from mesh.service.members import Member, members
from mesh.service.service import Service
from mesh.tasks.attempt import Work
from mesh.telemetry.logs import get_logger

log = get_logger("mesh.interceptors")


class Declared(NamedTuple):
    """One interceptor at one point, with the place of its declaration: "mesh.toml", "node", "Orders", "Orders.buy"."""

    interceptor: Interceptor
    place: str


class Interceptors:
    """The interceptors of one process.

    Attributes:
        shared: those of mesh.toml and of the node, for each point.
    """

    def __init__(self, settings: Settings | None, own: Sequence[Interceptor] = ()) -> None:
        """Import the interceptors of mesh.toml.

        Args:
            settings: None for a process to which those of mesh.toml do not apply.
            own: those of the node, for all points that they override.

        Raises:
            SetupError: one cannot be imported or made, or is no interceptor; the message names the entry.
        """
        table, root = (settings.interceptors, settings.root) if settings else (InterceptorSettings(), Path())
        made: dict[str, Interceptor] = {}
        own = check("interceptors of the node", own)
        self.shared: dict[Point, tuple[Declared, ...]] = {}
        for point in POINTS:
            found = []
            for word in getattr(table, point):
                interceptor = made.get(word) or made.setdefault(word, _made(word, point, root))
                if not hooks((interceptor,), point):
                    raise SetupError(f'interceptors.{point}: "{word}" has no method {point}')
                found.append(Declared(interceptor, "mesh.toml"))
            found += [Declared(each, "node") for each in own if hooks((each,), point)]
            self.shared[point] = tuple(found)
        self._known: dict[Interceptor, bool] = dict.fromkeys(
            [*made.values(), *own], False
        )  # -> whether its `started` has run

    def chain(self, point: Point, cls: type[Service] | None = None, member: Member | None = None) -> list[Declared]:
        """The interceptors of one method at one point, the outermost first.

        Args:
            cls, member: None for the chain of the process, or of the whole service.
        """
        found = list(self.shared[point])
        if cls is not None:
            found += [Declared(each, owner) for each, owner in of_class(cls) if hooks((each,), point)]
        if cls is not None and member is not None:
            place = f"{cls.__qualname__}.{member.name}"
            found += [Declared(each, place) for each in member.marks.interceptors if hooks((each,), point)]
        return found

    def hooks(self, point: Point, cls: type[Service] | None = None, member: Member | None = None) -> tuple[Hook, ...]:
        """The methods of `chain`."""
        return hooks([each.interceptor for each in self.chain(point, cls, member)], point)

    def outgoing(self, cls: type[Service], member: Member | None = None) -> tuple[Hook, ...]:
        """The outgoing hooks of a service, or of one of its methods, without those of the process."""
        return self.hooks("outgoing", cls, member)[len(self.shared["outgoing"]) :]

    def intercepts_outgoing(self, classes: Sequence[type[Service]]) -> bool:
        """Whether any call of the process may have an outgoing interceptor."""
        return bool(self.shared["outgoing"]) or any(
            self.outgoing(cls, member) for cls in classes for member in (None, *members(cls))
        )

    # --- around handlers ----------------------------------------------------------------------------------

    def method(self, cls: type[Service], method: Method, member: Member, returns: Any) -> Method:
        """The method with its interceptors around it; the same object when it has none.

        Args:
            returns: the type of its answer.
        """
        incoming, outgoing = self.hooks("incoming", cls, member), self.outgoing(cls, member)
        if not incoming and not outgoing:
            return method
        if method.offload:
            return msgspec.structs.replace(
                method,
                around=_around(incoming, outgoing),
                decode_result=typed_decoder(method.target, returns),
            )
        run = method.run
        wrapped = _stream(run, incoming, outgoing) if method.stream else _call(run, incoming, outgoing)
        return msgspec.structs.replace(method, run=wrapped)

    def work(
        self, work: Work, cls: type[Service], member: Member, kind: Literal["task", "event"], returns: Any
    ) -> Work:
        """A task or durable handler with its interceptors around it; the same object when it has none."""
        delivery, outgoing = self.hooks("delivery", cls, member), self.outgoing(cls, member)
        if not delivery and not outgoing:
            return work
        if work.offload:
            return msgspec.structs.replace(
                work, around=_around(delivery, outgoing), kind=kind, decode_result=typed_decoder(work.queue, returns)
            )
        return msgspec.structs.replace(work, run=_delivered(work.queue, kind, work.run, delivery, outgoing))

    def handler(self, cls: type[Service], handler: Handler, member: Member) -> Handler:
        """A handler of plain events with its interceptors around it; the same object when it has none."""
        delivery, outgoing = self.hooks("delivery", cls, member), self.outgoing(cls, member)
        if not delivery and not outgoing:
            return handler
        run = _delivered(handler.label, "event", handler.run, delivery, outgoing)
        return msgspec.structs.replace(handler, run=run)

    def timer(self, cls: type[Service], run: Callable[[], Any], member: Member) -> Callable[[], Any]:
        """A timer with the outgoing interceptors of its service around its calls."""
        outgoing = self.outgoing(cls, member)
        if not outgoing:
            return run

        async def intercepted() -> Any:
            OUTGOING.set(outgoing)
            return await run()

        intercepted.__wrapped__ = run  # type: ignore[attr-defined]  # where it is defined, for the log
        return intercepted

    @contextmanager
    def around_hook(self, cls: type[Service]) -> Iterator[None]:
        """The calls of a service's `started`, `draining` and `stopped` have its outgoing interceptors."""
        token = OUTGOING.set(self.outgoing(cls))
        try:
            yield
        finally:
            OUTGOING.reset(token)

    # --- their life ---------------------------------------------------------------------------------------

    async def start(self, node: Any, classes: Sequence[type[Service]] = ()) -> None:
        """Run `started` of each interceptor once, in the order of their chains.

        Raises:
            Exception: what one of them raised; those before it get `stopped` by `stop`.
        """
        for cls in classes:
            for each, _ in of_class(cls):
                self._known.setdefault(each, False)
            for member in members(cls):
                for each in member.marks.interceptors:
                    self._known.setdefault(each, False)
        for interceptor in self._known:
            await interceptor.started(node)
            self._known[interceptor] = True

    async def stop(self) -> None:
        """Run `stopped` of each interceptor that has started, in reverse order. A failure is logged."""
        for interceptor in reversed(list(self._known)):
            if self._known[interceptor]:
                self._known[interceptor] = False
                try:
                    await interceptor.stopped()
                except Exception:
                    log.exception("interceptor.stop_failed", interceptor=name_of(interceptor))

    def abandon(self) -> None:
        """Run no `stopped`: simulates the death of the process in tests."""
        self._known = dict.fromkeys(self._known, False)


def of_class(cls: type[Service]) -> list[tuple[Interceptor, str]]:
    """The interceptors of a class and its base classes, those of the base classes first; each with its class."""
    found: list[tuple[Interceptor, str]] = []
    for base in reversed(cls.__mro__):
        for each in vars(base).get("interceptors", ()):
            if all(each is not other for other, _ in found):
                found.append((each, base.__qualname__))
    return found


def _made(word: str, point: Point, root: Path) -> Interceptor:
    what = f'interceptors.{point}: "{word}"'
    found = attribute_of(word, what, root)
    if isinstance(found, type) and issubclass(found, Interceptor):
        try:
            found = found()
        except Exception as exc:
            raise SetupError(f"{what}: it cannot be created: {type(exc).__name__}: {exc}") from exc
    check(what, [found])
    return found  # type: ignore[no-any-return]


# --- wrapping ---------------------------------------------------------------------------------------------

_NOTHING: Final = PlainContext()


def _context() -> CallContext:
    return CURRENT.get() or _NOTHING


def _call(run: Callable[..., Any], incoming: tuple[Hook, ...], outgoing: tuple[Hook, ...]) -> Callable[..., Any]:
    async def innermost(call: IncomingCall) -> Any:
        return await run(*call.args)

    proceed = compose(incoming, innermost)

    async def intercepted(*args: Any) -> Any:
        if outgoing:
            OUTGOING.set(outgoing)
        return await proceed(IncomingCall(_context(), args))

    intercepted.__wrapped__ = run  # type: ignore[attr-defined]  # where it is defined, for the log
    return intercepted


def _stream(run: Callable[..., Any], incoming: tuple[Hook, ...], outgoing: tuple[Hook, ...]) -> Callable[..., Any]:
    async def innermost(call: IncomingCall) -> Any:
        return run(*call.args)

    proceed = compose(incoming, innermost)

    async def intercepted(*args: Any) -> AsyncIterator[Any]:
        if outgoing:
            OUTGOING.set(outgoing)
        items = await proceed(IncomingCall(_context(), args, stream=True))
        if not hasattr(items, "__aiter__"):
            raise SetupError(
                f"an interceptor returned {type(items).__name__} for a stream; return the iterator that `proceed` "
                "returned, or an async generator"
            )
        try:
            async for item in items:
                yield item
        finally:
            close = getattr(items, "aclose", None)
            if close is not None:
                await close()

    intercepted.__wrapped__ = run  # type: ignore[attr-defined]  # where it is defined, for the log
    return intercepted


def _delivered(
    target: str,
    kind: Literal["task", "event"],
    run: Callable[..., Any],
    delivery: tuple[Hook, ...],
    outgoing: tuple[Hook, ...],
) -> Callable[..., Any]:
    async def innermost(call: Delivery) -> Any:
        return await run(*call.args)

    proceed = compose(delivery, innermost)

    async def intercepted(*args: Any) -> Any:
        # Handlers of one event may share a context: restore it.
        token = OUTGOING.set(outgoing)
        try:
            return await proceed(Delivery(_context(), target, kind, args))
        finally:
            OUTGOING.reset(token)

    intercepted.__wrapped__ = run  # type: ignore[attr-defined]  # where it is defined, for the log
    return intercepted


def _around(inner: tuple[Hook, ...], outgoing: tuple[Hook, ...]) -> Callable[[Proceed[Any]], Proceed[Any]]:
    """For handlers that run in an executor: puts the chain around the function that starts them there."""

    def around(innermost: Proceed[Any]) -> Proceed[Any]:
        chain = compose(inner, innermost)

        async def run(call: Any) -> Any:
            if outgoing:
                OUTGOING.set(outgoing)
            return await chain(call)

        return run

    return around
