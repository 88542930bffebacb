"""A fake of a service: the behaviour of each of its methods, and a record of their calls.

Owns: behaviours (a value, an exception, a function, a stream), checked against the real class when given; recording.
Leaves to others: putting a fake into a mesh (fake_process), calling it without one (unit).
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import msgspec

from mesh.calls.signature import Signature
from mesh.errors import BadArguments, SetupError
from mesh.protocol.messages import MSGPACK, RAW
from mesh.service.members import members
from mesh.service.service import Service

T = TypeVar("T")

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Recorded(msgspec.Struct, frozen=True):
    """One call that a fake received.

    Attributes:
        target: "mail.send".
        args, kwargs: as they were sent; for a fake of a class, as its method would receive them, defaults filled in.
        meta: the meta of the call.
        caller: identity of the process that called; "" in a unit test.
        key: the key of the call; only in a unit test.
    """

    target: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    meta: dict[str, str] = {}
    caller: str = ""
    key: str | None = None


class Behaviour:
    """The behaviour of one method of a fake."""

    def __init__(
        self, target: str, does: Any, real: Signature | None = None, *, called: bool = True, deferred: bool = False
    ) -> None:
        """Args:
        real: the signature of the real method; None when it is unknown.
        called, deferred: whether the real method can be called, and whether it is a task.
        """
        self.target = target
        self.does = does
        self.real = real
        self.called = called
        self.deferred = deferred
        self.stream = inspect.isasyncgenfunction(does) or inspect.isgeneratorfunction(does)
        if real is not None and real.stream is not self.stream and callable(does) and not _is_error(does):
            kind = "a stream: write `async def` with `yield`" if real.stream else "a call: remove `yield`"
            raise SetupError(f"fake {target}: the real method is {kind}")
        self.stream = real.stream if real is not None else self.stream
        self._form = real or Signature(_anything, target, bound=True)

    def decode(self, body: Any, encoding: int) -> Arguments:
        """The arguments in a body.

        Raises:
            BadArguments: they do not match the real method, or the fake's own function.
        """
        if self.real is None:
            args, kwargs = taken_apart(body, encoding)
        else:
            values = list(zip(self.real.parameters, self.real.decode_args(body, encoding), strict=True))
            args = tuple(value for parameter, value in values if not parameter.keyword_only)
            kwargs = {parameter.name: value for parameter, value in values if parameter.keyword_only}
        if callable(self.does) and not _is_error(self.does):
            try:
                inspect.signature(self.does).bind(*args, **kwargs)
            except TypeError as exc:
                raise BadArguments(f"fake {self.target}: {exc}", details={"path": "$"}) from exc
            except ValueError:
                pass  # a builtin without a signature: calling it raises the TypeError
        return args, kwargs

    def encode(self, value: Any, encoding: int) -> tuple[Any, int]:
        """The encoded answer.

        Raises:
            BadResult: it cannot be encoded, or does not match the real method.
        """
        return self._form.encoder(check=True)(value, encoding)

    async def answer(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer one call."""
        result = self._begin(args, kwargs)
        return await result if inspect.isawaitable(result) else result

    async def items(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> AsyncIterator[Any]:
        """Answer as a stream; a behaviour that is a plain value is iterated over."""
        result = self._begin(args, kwargs)
        if hasattr(result, "__aiter__"):
            async for item in result:
                yield item
        else:
            for item in result:
                yield item

    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if _is_error(self.does):
            raise self.does
        return self.does(*args, **kwargs) if callable(self.does) else self.does


class Fake:
    """A fake service: `Fake("mail", send=None)`, or checked against the real class, `Fake(Mail, send=None)`.

    The value given for a method decides its behaviour: a function, plain or `async`, is called with the arguments; one
    with `yield` is a stream; an exception is raised; anything else is the answer. Methods are given by keyword, as
    the public methods of an object, or by decorating a function or class with the fake.

    Attributes:
        name: the service's name.
        calls: the received calls, in order.
    """

    def __init__(self, service: str | type[Service], implementation: Any = None, /, **methods: Any) -> None:
        """Raises:
        SetupError: the real class has no such method, or one is a call and the other a stream.
        """
        self.cls = service if isinstance(service, type) else None
        self.name = service if isinstance(service, str) else service.name
        self.calls: list[Recorded] = []
        self.behaviours: dict[str, Behaviour] = {}
        self._real = {member.name: member for member in members(self.cls)} if self.cls is not None else {}
        self._changed: Callable[[], None] = lambda: None
        self.does(**methods)
        if implementation is not None:
            self(implementation)

    def __call__(self, thing: T) -> T:
        """As a decorator: add a function as the method of its name, or the public methods of a class or object."""
        if inspect.isfunction(thing):
            self.does(**{thing.__name__: thing})
        else:
            holder = thing() if isinstance(thing, type) else thing
            self.does(
                **{
                    name: getattr(holder, name)
                    for name in dir(holder)
                    if not name.startswith("_") and callable(getattr(holder, name))
                }
            )
        return thing

    def does(self, **methods: Any) -> None:
        """Change the behaviour of methods from now on."""
        for name, does in methods.items():
            target = f"{self.name}.{name}"
            self.behaviours[name] = self._behaviour(name, target, does)
        self._changed()

    def calls_of(self, method: str) -> list[Recorded]:
        """The received calls of "send", or "mail.send", in order."""
        target = method if "." in method else f"{self.name}.{method}"
        return [call for call in self.calls if call.target == target]

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call `callback` whenever the methods change."""
        self._changed = callback

    def _behaviour(self, name: str, target: str, does: Any) -> Behaviour:
        if self.cls is None:
            return Behaviour(target, does)
        member = self._real.get(name)
        if member is None or (member.rpc is None and member.task is None):
            fit = [found.name for found in self._real.values() if found.rpc is not None or found.task is not None]
            known = ", ".join(sorted(fit)) or "none"
            raise SetupError(f"fake {target}: {self.cls.__qualname__} has no such @rpc method or @task; it has {known}")
        real = Signature(member.function, target, owner=self.cls)
        return Behaviour(target, does, real, called=member.rpc is not None, deferred=member.task is not None)


async def _anything() -> Any:
    """Provides the signature of an unknown method."""


def _is_error(does: Any) -> bool:
    return isinstance(does, BaseException) or (isinstance(does, type) and issubclass(does, BaseException))


def taken_apart(body: Any, encoding: int) -> Arguments:
    """The arguments of a method without a known signature: an array, a map of names, or a map with positions too."""
    if encoding == RAW:
        return ((bytes(body),), {}) if body else ((), {})
    if not body:
        return (), {}
    try:
        given = msgspec.msgpack.decode(body) if encoding == MSGPACK else msgspec.json.decode(body)
    except msgspec.MsgspecError as exc:
        raise BadArguments(f"the arguments cannot be read: {exc}", details={"path": "$"}) from exc
    if isinstance(given, list):
        return tuple(given), {}
    if not isinstance(given, dict):
        raise BadArguments("the arguments must be an array or a map", details={"path": "$"})
    places = sorted(key for key in given if isinstance(key, int))
    return tuple(given[place] for place in places), {key: value for key, value in given.items() if key not in places}
