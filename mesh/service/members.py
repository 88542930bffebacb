"""The marked methods of a service class, and the checks when the class is created.

Owns: finding the methods, in order of definition, base classes first; rejecting declarations that cannot work.
Leaves to others: the marks themselves (decorators), types and records (describe, workload).

Types are not checked here: an annotation may name a class that is defined later in the module.
"""

from __future__ import annotations

import inspect
import re
import weakref
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from mesh.calls.declared import BadDeclaration
from mesh.calls.failures import defined_at
from mesh.service.decorators import Marks, RpcMark, marks_of, path_parameters, unclaimed
from mesh.tasks.options import TaskMark

#: Names that the Service class itself uses: a method with such a name would hide them.
RESERVED: Final = frozenset(
    {
        "call",
        "concurrency",
        "config",
        "draining",
        "emit",
        "instances",
        "interceptors",
        "log",
        "map",
        "meta",
        "name",
        "needs",
        "node",
        "queue",
        "rpc",
        "uses",
    }
    | {"scatter", "started", "stopped", "stream", "version"}
    | {"atomic", "batch", "chain", "defer", "group", "job", "lock", "state", "step", "tail"}
)


#: Those of them that a service's code calls on `self`: an attribute with such a name would hide them.
VERBS: Final = frozenset(
    {"call", "emit", "instances", "map", "metrics", "rpc", "scatter", "stream"}
    | {"atomic", "batch", "chain", "defer", "group", "job", "lock", "state", "step", "tail"}
)


class Member(NamedTuple):
    """One marked method.

    Attributes:
        rpc: its options when it may be called: it is marked with `@rpc` or any `@http`.
        task: its options when it may be deferred: it is marked with `@task`, or with a schedule.
    """

    name: str
    function: Callable[..., Any]
    marks: Marks
    rpc: RpcMark | None
    task: TaskMark | None = None

    @property
    def durable(self) -> bool:
        """Whether it handles durable events."""
        return any(mark.durable is not None for mark in self.marks.topics)


def members(cls: type) -> list[Member]:
    """The marked methods of a class. An override without marks removes the method of the base class."""
    names = dict.fromkeys(name for base in reversed(cls.__mro__) for name in vars(base))
    found = []
    for name in names:
        function = inspect.getattr_static(cls, name, None)
        marks = marks_of(function)
        if marks is not None:
            rpc = marks.rpc if marks.rpc is not None or not marks.routes else RpcMark()
            found.append(Member(name, function, marks, rpc, _task(marks)))
    return found


def _task(marks: Marks) -> TaskMark | None:
    if marks.task is not None or not marks.schedules:
        return marks.task
    given = (mark.attempts for mark in marks.schedules if mark.attempts is not None)
    attempts = next(given, None)
    return TaskMark() if attempts is None else TaskMark(attempts)


def claim(cls: type, base: type) -> None:
    """Record the class as owner of its marked methods, except those inherited from another service class."""
    inherited = [each for each in cls.__mro__[1:] if issubclass(each, base)]
    for member in members(cls):
        if not any(inspect.getattr_static(each, member.name, None) is member.function for each in inherited):
            member.marks.owners.append(weakref.ref(cls))


def check(cls: type) -> None:
    """Reject declarations that cannot work.

    Raises:
        BadDeclaration: the message names class and method.
    """
    _check_lost(cls)
    routes: dict[tuple[str, str, bool], str] = {}
    for member in members(cls):
        try:
            _check(member, cls, routes)
        except BadDeclaration as exc:
            place = defined_at(member.function)
            raise BadDeclaration(f"{exc.message} ({place})" if place else exc.message) from exc.__cause__


def _check_lost(cls: type) -> None:
    """Reject a class in which another decorator replaced a marked function: the method would be lost silently."""
    for base in cls.__mro__:
        for function in unclaimed(base):
            name = function.__name__
            there = vars(base).get(name)
            if _holds(there, function) and marks_of(there) is not None:
                continue
            where = f"{cls.__qualname__}.{name} ({defined_at(function)})"
            if isinstance(there, staticmethod | classmethod | property):
                kind = type(there).__name__
                raise BadDeclaration(f"{where}: a marked method takes self: remove @{kind}")
            if inspect.isfunction(there) and marks_of(there) is None and there.__qualname__ != function.__qualname__:
                raise BadDeclaration(
                    f"{where}: the decorator above its mark returned {there.__qualname__}, which has no mark: "
                    "use functools.wraps in it, or put the mark on top"
                )
            if inspect.isfunction(there):
                raise BadDeclaration(f"{where}: another {name} further down replaces it ({defined_at(there)})")
            raise BadDeclaration(
                f"{where}: a decorator above its mark replaced it with {there!r}: put the mark on top"[:400]
            )


def _holds(there: Any, function: Callable[..., Any]) -> bool:
    """Whether an attribute is the function, or a wrapper that carries its marks (functools.wraps).

    A function from an earlier, failed run of the same source counts as the same function: it is not lost.
    """
    if not inspect.isfunction(there):
        return False
    try:
        wrapped = inspect.unwrap(there)
    except ValueError:
        return False
    return wrapped is function or there.__code__ is function.__code__ or _code(wrapped) is function.__code__


def _code(function: Any) -> Any:
    return getattr(function, "__code__", None)


def _check(member: Member, cls: type, routes: dict[tuple[str, str, bool], str]) -> None:
    where = f"{cls.__qualname__}.{member.name}"
    if member.name in RESERVED or member.name.startswith("_"):
        reason = "is the Service class's own" if member.name in RESERVED else "begins with _"
        raise BadDeclaration(f"{where}: the name {reason}; choose another")
    marks = member.marks
    if marks.interceptors and not (member.rpc or member.task or marks.topics or marks.timers):
        raise BadDeclaration(f"{where}: @intercept needs a mark like @rpc, @task or @on with it")
    for offload in {mark.offload for mark in (member.rpc, member.task) if mark is not None and mark.offload}:
        _check_offload(member, where, cls, offload)
    _check_uncalled(member, where)
    _check_durable(member, where)
    for route in member.marks.routes:
        takes = _parameters(member.function)
        for name in path_parameters(route.path):
            if name not in takes:
                has = ", ".join(takes) or "none"
                raise BadDeclaration(f"{where}: path {route.path!r} has {{{name}}}, but the method takes {has}")
        # A call and a stream may share an address: a client that accepts Server-Sent Events gets the stream.
        stream = inspect.isasyncgenfunction(inspect.unwrap(member.function))
        key = (route.verb, re.sub(r"\{\w+", "{", route.path), stream)
        other = routes.setdefault(key, where)
        if other is not where:
            raise BadDeclaration(f"{where}: {route.verb} {route.path} is already the route of {other}")


def _check_offload(member: Member, where: str, cls: type, offload: str) -> None:
    function = inspect.unwrap(member.function)
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise BadDeclaration(
            f"{where}: offload={offload!r} runs a plain `def` off the loop; write `def`, or remove the offload"
        )
    if offload == "process":
        if "<locals>" in cls.__qualname__:
            raise BadDeclaration(
                f"{where}: another process imports it by name; define the class at the top level of its module"
            )
        if any(p.kind is p.KEYWORD_ONLY for p in inspect.signature(function).parameters.values()):
            raise BadDeclaration(f"{where}: a method offloaded to a process takes its arguments by position")


def _check_uncalled(member: Member, where: str) -> None:
    """Methods of `@on`, `@every` and `@cron` have no caller: they cannot stream and get no arguments from a call."""
    marks = member.marks
    for kind, what in ((marks.topics, "@on"), (marks.timers, "@every")):
        function = inspect.unwrap(member.function)
        if kind and (inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function)):
            raise BadDeclaration(f"{where}: {what} needs an `async def` or a `def` without `yield`")
    if marks.timers or marks.schedules:
        what = "@every" if marks.timers else "a schedule"
        needed = [p.name for p in _declared(member.function) if p.default is p.empty]
        if needed:
            raise BadDeclaration(f"{where}: {what} passes no arguments, but the method requires {', '.join(needed)}")


def _check_durable(member: Member, where: str) -> None:
    """Check that the marks of a method that runs by leases can be combined."""
    marks = member.marks
    if member.task is not None and inspect.isasyncgenfunction(inspect.unwrap(member.function)):
        raise BadDeclaration(f"{where}: a task has one result; it cannot `yield`")
    if member.task is not None and member.durable:
        raise BadDeclaration(f"{where}: a durable @on cannot also be a task; defer one in it: await self.defer(…)")
    options = [mark.attempts for mark in marks.schedules if mark.attempts is not None]
    if options and marks.task is not None:
        raise BadDeclaration(f"{where}: the options of its attempts belong in @task; remove them from the schedule")
    if any(one != options[0] for one in options):
        raise BadDeclaration(f"{where}: its schedules have different options; write them once, in @task")
    durable = [mark.durable for mark in marks.topics if mark.durable is not None]
    if any(one != durable[0] for one in durable):
        raise BadDeclaration(f"{where}: its durable topics have different options, but it is one subscription")


def _declared(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())[1:]


def _parameters(function: Callable[..., Any]) -> list[str]:
    return [parameter.name for parameter in _declared(function)]
