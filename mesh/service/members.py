"""The marked methods of a service class, and whether each can work as it is written.

Owns: finding them, in order of definition, base classes first; and what is refused when the class is created.
Leaves to others: the marks themselves (decorators), types and records (describe).

Types are not looked at here: an annotation may name a class that stands further down in the module.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from mesh.calls.declared import BadDeclaration
from mesh.service.decorators import Marks, RpcMark, marks_of, path_parameters

#: What the Service class itself uses: a method of this name would take it away from the service's own code.
RESERVED: Final = frozenset(
    {
        "call",
        "concurrency",
        "config",
        "emit",
        "instances",
        "log",
        "map",
        "meta",
        "name",
        "needs",
        "node",
        "queue",
        "rpc",
    }
    | {"scatter", "started", "stopped", "stream", "version"}
)


class Member(NamedTuple):
    """One marked method.

    Attributes:
        rpc: its options when it may be called: `@rpc` or any `@http` stands over it.
    """

    name: str
    function: Callable[..., Any]
    marks: Marks
    rpc: RpcMark | None


def members(cls: type) -> list[Member]:
    """The marked methods of a class. An override without marks is not one: it takes the method back."""
    names = dict.fromkeys(name for base in reversed(cls.__mro__) for name in vars(base))
    found = []
    for name in names:
        function = inspect.getattr_static(cls, name, None)
        marks = marks_of(function)
        if marks is not None:
            rpc = marks.rpc if marks.rpc is not None or not marks.routes else RpcMark()
            found.append(Member(name, function, marks, rpc))
    return found


def check(cls: type) -> None:
    """Refuse what cannot work.

    Raises:
        BadDeclaration: the message names class and method.
    """
    routes: dict[tuple[str, str], str] = {}
    for member in members(cls):
        where = f"{cls.__qualname__}.{member.name}"
        if member.name in RESERVED or member.name.startswith("_"):
            reason = "is the Service class's own" if member.name in RESERVED else "begins with _"
            raise BadDeclaration(f"{where}: the name {reason}; choose another")
        _check_function(member, where, cls)
        _check_uncalled(member, where)
        for route in member.marks.routes:
            takes = _parameters(member.function)
            for name in path_parameters(route.path):
                if name not in takes:
                    has = ", ".join(takes) or "none"
                    raise BadDeclaration(f"{where}: path {route.path!r} has {{{name}}}, the method takes {has}")
            key = (route.verb, re.sub(r"\{\w+", "{", route.path))
            other = routes.setdefault(key, where)
            if other is not where:
                raise BadDeclaration(f"{where}: {route.verb} {route.path} is the route of {other} already")


def _check_function(member: Member, where: str, cls: type) -> None:
    function, rpc = inspect.unwrap(member.function), member.rpc
    if rpc is None or not rpc.offload:
        return
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise BadDeclaration(
            f"{where}: offload={rpc.offload!r} runs a plain `def` off the loop; write `def`, or leave out the offload"
        )
    if rpc.offload == "process":
        if "<locals>" in cls.__qualname__:
            raise BadDeclaration(f"{where}: another process must find it by name; define the class at the module's top")
        if any(p.kind is p.KEYWORD_ONLY for p in inspect.signature(function).parameters.values()):
            raise BadDeclaration(f"{where}: a method offloaded to a process takes its arguments by position")


def _check_uncalled(member: Member, where: str) -> None:
    """`@on` and `@every` run on their own: nobody is there to receive a stream, or to give arguments."""
    for marks, what in ((member.marks.topics, "@on"), (member.marks.timers, "@every")):
        if marks and not inspect.iscoroutinefunction(inspect.unwrap(member.function)):
            raise BadDeclaration(f"{where}: {what} needs an `async def` without `yield`")
    if member.marks.timers:
        needed = [p.name for p in _declared(member.function) if p.default is p.empty]
        if needed:
            raise BadDeclaration(f"{where}: @every gives no arguments, but {', '.join(needed)} would be needed")


def _declared(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())[1:]


def _parameters(function: Callable[..., Any]) -> list[str]:
    return [parameter.name for parameter in _declared(function)]
