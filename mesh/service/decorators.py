"""The decorators of service methods: `@rpc`, `@on`, `@every`; see http_routes and task_decorators for the others.

Owns: the options of each, rejected at once when invalid, and the marks that decorators put on the function.
Leaves to others: the allowed options of attempts (tasks.options), whether marks and function fit together
(members), using the marks (describe, workload).

A decorator returns the function itself: it can be called and tested as written, and editors see its types.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, TypeVar, Unpack, overload

import msgspec

from mesh.calls.declared import BadDeclaration
from mesh.calls.failures import defined_at
from mesh.calls.interceptors import Interceptor
from mesh.calls.interceptors import check as check_interceptors
from mesh.calls.method import Offload
from mesh.config.policies import PolicySettings
from mesh.discovery.record import EdgePolicy
from mesh.errors import MeshError
from mesh.events.topics import check_pattern
from mesh.schedules.contract import Missed
from mesh.schedules.plan import Every, Plan
from mesh.service.edge_options import OPTIONS as EDGE_OPTIONS
from mesh.service.edge_options import EdgeOptions, read_edge
from mesh.service.policy_options import PolicyOptions, read_policy
from mesh.tasks.options import (
    Attempts,
    Duration,
    Fatal,
    TaskMark,
    check_count,
    read_attempts,
    read_seconds,
)


class RpcOptions(EdgeOptions, PolicyOptions, total=False):
    """The options of `@rpc` for gateways and for callers."""


F = TypeVar("F", bound=Callable[..., Any])
To = Literal["one", "every"]
Start = Literal["new", "all"]

#: How many calls may wait for a method that sets `concurrency` but not `queue`.
DEFAULT_QUEUE: Final = 1024
_ATTRIBUTE: Final = "__mesh_marks__"


class RpcMark(msgspec.Struct, frozen=True):
    """`@rpc` and its options; see `rpc`."""

    idempotent: bool = False
    timeout_s: float | None = None
    concurrency: int = 0
    queue: int = 0
    offload: Offload = ""
    check_result: bool | None = None
    expose: bool | None = None
    edge: EdgePolicy | None = None
    policy: PolicySettings | None = None


class RouteMark(msgspec.Struct, frozen=True):
    """`@http.get(path)` and the other HTTP decorators."""

    verb: str
    path: str
    status: int = 200
    produces: str = ""
    forms: bool = False
    responses: dict[str, str] = {}
    edge: EdgePolicy | None = None
    topics: list[str] = []
    subprotocols: list[str] = []


class DurableMark(msgspec.Struct, frozen=True):
    """The options of `@on(topic, durable=True)`."""

    attempts: Attempts = Attempts()
    start: Start = "new"


class TopicMark(msgspec.Struct, frozen=True):
    """`@on(topic)`; `durable` is None for a handler of plain events."""

    topic: str
    to: To = "one"
    durable: DurableMark | None = None


class TimerMark(msgspec.Struct, frozen=True):
    """`@every(period)`."""

    period_s: float


class ScheduleMark(msgspec.Struct, frozen=True):
    """`@cron(…)` or `@every(…, once=True)`; `attempts` is None when none of the options of attempts was given."""

    plan: Plan
    missed: Missed = "once"
    attempts: Attempts | None = None


class Marks(msgspec.Struct):
    """All marks that decorators put on one function.

    Attributes:
        owners: the service classes that it was defined in, or mixed into; `Orders.charge` finds its service by them.
    """

    rpc: RpcMark | None = None
    routes: list[RouteMark] = []
    topics: list[TopicMark] = []
    timers: list[TimerMark] = []
    task: TaskMark | None = None
    schedules: list[ScheduleMark] = []
    interceptors: tuple[Interceptor, ...] = ()
    owners: list[Any] = []


def marks_of(function: Any) -> Marks | None:
    """The marks on a function; None when there are none."""
    marks = getattr(function, _ATTRIBUTE, None)
    return marks if isinstance(marks, Marks) else None


@overload
def rpc(function: F, /) -> F: ...
@overload
def rpc(
    *,
    idempotent: bool = False,
    timeout: Duration | None = None,
    concurrency: int = 0,
    queue: int | None = None,
    offload: Offload = "",
    check_result: bool | None = None,
    expose: bool | None = None,
    **options: Unpack[RpcOptions],
) -> Callable[[F], F]: ...
def rpc(
    function: F | None = None,
    /,
    *,
    idempotent: bool = False,
    timeout: Duration | None = None,
    concurrency: int = 0,
    queue: int | None = None,
    offload: Offload = "",
    check_result: bool | None = None,
    expose: bool | None = None,
    **options: Unpack[RpcOptions],
) -> F | Callable[[F], F]:
    """Let a method be called from other processes. An `async def` is a call, with `yield` in it a stream.

    Args:
        idempotent: running it twice does no harm, so a call is retried at another instance when its answer is lost.
        timeout: the deadline of a call when the caller gives none; seconds, or text like "2s".
        concurrency: how many calls may run at once in one worker; 0 applies only the service's limit.
        queue: how many more calls may wait when `concurrency` is reached; further calls fail at once with `overloaded`.
        offload: where a plain `def` runs: in a "thread" (the default) or a "process".
        check_result: whether an answer (of a stream: an item) that does not match the annotation is rejected with
            `bad_result`; None uses `calls.check_results`.
        expose: let anyone who reaches a gateway call it at POST /rpc/{service}/{method}. None uses the service's
            `expose`, which is False unless its class sets it. HTTP routes to the method do not depend on it.
        options: what gateways do in front of it at /rpc (`auth`, `limit`, `max_body`, `cors`, `cache`; see
            `http.EdgeOptions`; HTTP routes have their own), and what callers do when it is slow or fails (`retries`,
            `hedge`, `breaker`, …; see `PolicyOptions`).

    Raises:
        BadDeclaration: an option has an invalid value.
    """
    timeout_s = None if timeout is None else read_seconds("@rpc: timeout", timeout)
    check_count("@rpc: concurrency", concurrency)
    if queue is not None:
        check_count("@rpc: queue", queue)
        if not concurrency:
            raise BadDeclaration("@rpc: queue requires concurrency: without it no call of this method is queued")
    if offload not in ("", "thread", "process"):
        raise BadDeclaration(f'@rpc: offload is "thread" or "process", not {offload!r}')
    mark = RpcMark(
        idempotent=bool(idempotent),
        timeout_s=timeout_s,
        concurrency=concurrency,
        queue=(DEFAULT_QUEUE if queue is None else queue) if concurrency else 0,
        offload=offload,
        check_result=check_result,
        expose=read_expose("@rpc", expose),
        edge=read_edge("@rpc", {name: value for name, value in options.items() if name in EDGE_OPTIONS}),
        policy=read_policy("@rpc", {name: value for name, value in options.items() if name not in EDGE_OPTIONS}),
    )

    def decorate(target: F) -> F:
        marks = marks_on(target, "@rpc")
        if marks.rpc is not None:
            raise BadDeclaration(f"{_name(target)}: @rpc is applied twice")
        marks.rpc = mark
        return target

    return decorate if function is None else decorate(function)


def read_expose(what: str, expose: bool | None) -> bool | None:
    """Return the option. Raises BadDeclaration: it is not one of True, False and None."""
    if expose is not None and type(expose) is not bool:
        raise BadDeclaration(f"{what}: expose is True, False or None, not {expose!r}")
    return expose


def on(
    topic: str,
    *,
    to: To = "one",
    durable: bool = False,
    retries: int | None = None,
    backoff: Duration | None = None,
    timeout: Duration | None = None,
    start: Start | None = None,
    slots: int | None = None,
    concurrency: int | None = None,
    fatal: Fatal | None = None,
) -> Callable[[F], F]:
    """Subscribe to events. The method takes the event's data, the `Event` itself (by its annotation), both, or nothing.

    Args:
        topic: dotted words; `*` stands for one word, `#` for none or more.
        to: "one" delivers each event to one instance of this service, with an ack; "every" delivers it to every
            instance, at most once.
        durable: receive durable events from the log: at least once, one after the other for each key, including events
            that were emitted while no instance ran. Events that fail until their retries are used up become dead
            letters. Events that were not emitted durable are not received. The options below require it; all but
            `start` mean the same as for `@task`.
        retries, backoff, timeout, slots, concurrency, fatal: as for `@task`.
        start: where a new subscription begins: with "new" events, or with "all" events that are kept.

    Raises:
        BadDeclaration: the pattern is malformed, or an option is invalid.
    """
    what = f"@on({topic!r})"
    try:
        check_pattern(topic)
    except MeshError as exc:
        raise BadDeclaration(f"@on: {exc.message}") from exc
    if to not in ("one", "every"):
        raise BadDeclaration(f'{what}: to is "one" or "every", not {to!r}')
    options = {
        "retries": retries,
        "backoff": backoff,
        "timeout": timeout,
        "slots": slots,
        "concurrency": concurrency,
        "fatal": fatal,
    }
    given = {name: value for name, value in options.items() if value is not None}
    mark = TopicMark(topic, to)
    if durable:
        if to == "every":
            raise BadDeclaration(f'{what}: durable events are for one instance of a service; leave out to="every"')
        if start not in (None, "new", "all"):
            raise BadDeclaration(f'{what}: start is "new" or "all", not {start!r}')
        attempts = read_attempts(what, **given)  # type: ignore[arg-type]
        mark = TopicMark(topic, to, DurableMark(attempts, start or "new"))
    elif given or start is not None:
        named = next(iter(given), "start")
        raise BadDeclaration(f"{what}: {named} is for durable events; add durable=True")

    def decorate(target: F) -> F:
        marks_on(target, "@on").topics.insert(0, mark)
        return target

    return decorate


def every(
    period: Duration,
    *,
    once: bool = False,
    missed: Missed | None = None,
    retries: int | None = None,
    backoff: Duration | None = None,
    timeout: Duration | None = None,
) -> Callable[[F], F]:
    """Run the method periodically in each instance, without overlapping runs: `@every("10s")`.

    Args:
        period: from start to start; seconds, or text like "10s". A run that takes longer delays the next.
        once: run once for the whole mesh and not in each instance: at the multiples of the period since 1970, as a
            task, which survives the death of any worker. The other options require it, and mean the same as for
            `@cron`.
        missed, retries, backoff, timeout: as for `@cron`.

    Raises:
        BadDeclaration: the period is not a positive time, or an option is invalid.
    """
    what = f"@every({period!r})"
    options = {"retries": retries, "backoff": backoff, "timeout": timeout}
    given = {name: value for name, value in options.items() if value is not None}
    if once:
        return schedule(what, Every(period), missed or "once", given)
    if given or missed is not None:
        named = next(iter(given), "missed")
        raise BadDeclaration(f"{what}: {named} requires once=True")
    mark = TimerMark(read_seconds("@every", period))

    def decorate(target: F) -> F:
        marks_on(target, "@every").timers.insert(0, mark)
        return target

    return decorate


def schedule(what: str, plan: Plan, missed: Missed, options: dict[str, Any]) -> Callable[[F], F]:
    """For `@cron` and `@every(once=True)`: a decorator that marks a method with this plan and these options.

    Raises:
        BadDeclaration: an option is invalid.
    """
    if missed not in ("once", "all", "skip"):
        raise BadDeclaration(f'{what}: missed is "once", "all" or "skip", not {missed!r}')
    mark = ScheduleMark(plan, missed, read_attempts(what, **options) if options else None)

    def decorate(target: F) -> F:
        marks_on(target, what).schedules.insert(0, mark)
        return target

    return decorate


def intercept(*interceptors: Interceptor) -> Callable[[F], F]:
    """Put interceptors around one method, inside of those of its service: `@mesh.intercept(Audit())` with `@rpc`,
    `@http…`, `@task`, `@on` or `@every`, in any order.

    Args:
        interceptors: the first is the outermost. `incoming` runs around calls, `delivery` around tasks and events,
            `outgoing` around the calls that the method makes.

    Raises:
        BadDeclaration: one is no interceptor.

    See docs/interceptors.md.
    """
    found = check_interceptors("@intercept", interceptors)
    if not found:
        raise BadDeclaration("@intercept requires an interceptor: write @mesh.intercept(Audit())")

    def decorate(target: F) -> F:
        marks = marks_on(target, "@intercept")
        marks.interceptors = found + marks.interceptors
        return target

    return decorate


_PARAMETER: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(\.\.\.)?\}")
# RFC 3986, section 3.3: the characters of a path segment.
_SEGMENT: Final = re.compile(r"(?:[A-Za-z0-9\-._~!$&'()*+,;=:@]|%[0-9A-Fa-f]{2})+")


def path_parameters(path: str) -> list[str]:
    """The names of a route's parameters, in order.

    Raises:
        BadDeclaration: the path is malformed.
    """
    if not isinstance(path, str) or not path.startswith("/"):
        raise BadDeclaration(f"path {path!r} must begin with /")
    names: list[str] = []
    segments = path[1:].split("/") if path != "/" else []
    for at, segment in enumerate(segments):
        if found := _PARAMETER.fullmatch(segment):
            if found[2] and at != len(segments) - 1:
                raise BadDeclaration(f"path {path!r}: {segment} matches the rest of the path and must come last")
            if found[1] in names:
                raise BadDeclaration(f"path {path!r} has the parameter {found[1]!r} twice")
            names.append(found[1])
        elif not _SEGMENT.fullmatch(segment):
            mend = "a parameter is a whole segment: {name}" if "{" in segment or "}" in segment else "it must be quoted"
            if not segment:
                mend = "leave out the last /" if at == len(segments) - 1 else "write a single /"
            raise BadDeclaration(f"path {path!r}: {segment!r} is not a segment; {mend}")
    return names


def marks_on(target: Any, what: str) -> Marks:
    """The function's own marks, created when missing.

    Decorators apply from the bottom up, so each inserts its mark in front: the order is as in the source.
    """
    if not inspect.isfunction(target):
        raise BadDeclaration(f"{what} {_misplaced(target)}")
    marks = marks_of(target)
    if marks is None:
        marks = Marks()
        setattr(target, _ATTRIBUTE, marks)
        _note(target)
    return marks


def unclaimed(cls: type) -> list[Callable[..., Any]]:
    """The marked functions in the body of this class that no earlier call has returned."""
    _, functions = _UNCLAIMED.pop((cls.__module__, cls.__qualname__), (None, []))
    return functions


#: By module and qualified name of the class under definition: the namespace of this run of its body, and the functions
#: marked in it. A marked function that another decorator replaces would otherwise be lost silently.
_UNCLAIMED: Final[dict[tuple[str, str], tuple[Mapping[str, Any] | None, list[Callable[..., Any]]]]] = {}


def _note(function: Callable[..., Any]) -> None:
    owner = function.__qualname__.rpartition(".")[0]
    frame = inspect.currentframe()
    while frame is not None and frame.f_locals.get("__qualname__") != owner:
        frame = frame.f_back
    if frame is not None and owner:
        key = (function.__module__, owner)
        body, functions = _UNCLAIMED.get(key, (None, []))
        # A class body that raised leaves its functions behind; the next run of the same body must not find them. The
        # reference keeps the namespace of the earlier run alive: its id alone may be used again.
        here = frame.f_locals
        _UNCLAIMED[key] = (here, [*functions, function] if body is here else [function])


def _misplaced(target: Any) -> str:
    """The error message for a mark on something other than a function, with the correct form."""
    function = getattr(target, "__func__", None) or getattr(target, "fget", None) or getattr(target, "func", None)
    at = f" ({place})" if (place := defined_at(function)) else ""
    if isinstance(target, type):
        return f"marks methods, and {target.__qualname__} is a class: apply it to a method of the class"
    kind = type(target).__name__
    if isinstance(target, staticmethod | classmethod | property):
        name = getattr(function, "__qualname__", "the method")
        return f"cannot mark a {kind}: write {name} as a plain method with self, without @{kind}{at}"
    return f"must be applied to a plain method, not {target!r}: write `async def` and call it there{at}"[:400]


def _name(target: Any) -> str:
    return str(getattr(target, "__qualname__", target))
