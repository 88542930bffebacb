"""Derives from a service class: methods for the server, event handlers, timers, and the record for the registry.

Owns: resolving the types of marked methods, once for each class; where an HTTP route finds each parameter.
Leaves to others: checks that need no types (members), tasks and durable events (workload), running any of it
(worker), reading records (gateway).
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

from mesh.calls.declared import BadDeclaration, Parameter
from mesh.calls.importing import reference_of
from mesh.calls.method import Method
from mesh.calls.signature import Signature
from mesh.discovery.record import Instance, MethodRecord, RouteRecord, Subscription, TaskRecord
from mesh.events.event import Decode, Event, Handler, decoder
from mesh.service.decorators import RouteMark, path_parameters
from mesh.service.http_sources import fields, sources
from mesh.service.members import Member, members
from mesh.service.service import Service
from mesh.service.threads import awaitable, blocks

Run = Callable[[], Awaitable[Any]]


class Timer(NamedTuple):
    """One `@every` of one instance: run the method, wait, run it again."""

    label: str
    period_s: float
    run: Callable[[], Awaitable[Any]]


class Typed(NamedTuple):
    """A method that may be called or deferred, with its types resolved."""

    member: Member
    signature: Signature


# Resolving a method's types costs some 250 µs: do it once for each class, not for each instance.
_KNOWN: Final[WeakKeyDictionary[type[Service], tuple[Typed, ...]]] = WeakKeyDictionary()


def typed(cls: type[Service]) -> tuple[Typed, ...]:
    """The methods of a class that may be called or deferred.

    Raises:
        BadDeclaration: an annotation cannot be resolved, or a type cannot travel.
    """
    known = _KNOWN.get(cls)
    if known is None:
        known = _KNOWN[cls] = tuple(
            Typed(member, Signature(member.function, f"{cls.name}.{member.name}", owner=cls))
            for member in members(cls)
            if member.rpc is not None or member.task is not None
        )
        for member, signature in known:
            if member.task is not None and signature.inbound is not None:
                if signature.form is not None:
                    raise BadDeclaration(f"{signature.label}: a task cannot take a form: its arguments are stored")
                raise BadDeclaration(
                    f'{signature.label}: a task cannot take "{signature.inbound.name}", a stream of items: its '
                    "arguments are stored; take a list instead"
                )
            if signature.form is not None and not member.marks.routes:
                raise BadDeclaration(f"{signature.label} takes a form, which only HTTP carries: add @http.post(path)")
            if member.task is not None and signature.responds:
                raise BadDeclaration(
                    f"{signature.label}: a task cannot return an http.Response, since no HTTP request waits for its "
                    "result; return the body instead"
                )
    return known


def methods(
    service: Service, *, check_results: bool = True, intercept: Callable[[Method, Member, Any], Method] | None = None
) -> list[Method]:
    """The methods that the server answers for this instance.

    Args:
        check_results: the setting [calls] check_results.
        intercept: (method, member, type of the answer) -> the method with its interceptors.

    Raises:
        BadDeclaration: an annotation cannot be resolved, or a type cannot travel.
    """
    cls = type(service)
    found = []
    for member, signature in typed(cls):
        rpc = member.rpc
        if rpc is None:
            continue
        check = check_results if rpc.check_result is None else rpc.check_result
        method = Method(
            target=f"{cls.name}.{member.name}",
            service=cls.name,
            name=member.name,
            run=signature.by_position(getattr(service, member.name)),
            decode_args=signature.decode_args,
            encode_result=signature.encoder(check=check),
            stream=signature.stream,
            asynchronous=signature.asynchronous,
            idempotent=rpc.idempotent,
            timeout_s=rpc.timeout_s,
            concurrency=rpc.concurrency,
            queue=rpc.queue,
            offload=rpc.offload or ("thread" if blocks(member.function) else ""),
            reference=reference_of(cls, member.name) if rpc.offload else (),
            check_result=check,
            inbound=None if signature.inbound is None else (signature.inbound.at, signature.item_decoder()),
        )
        found.append(method if intercept is None else intercept(method, member, signature.returns))
    return found


def handlers(service: Service, *, intercept: Callable[[Handler, Member], Handler] | None = None) -> list[Handler]:
    """The handlers of plain events of this instance; those of durable events are in workload.

    Args:
        intercept: (handler, member) -> the handler with its interceptors.

    Raises:
        BadDeclaration: a handler takes more than the data and the Event.
    """
    name = type(service).name
    found = []
    for member in members(type(service)):
        marks = [mark for mark in member.marks.topics if mark.durable is None]
        if marks:
            label = f"{name}.{member.name}"
            decode, handle = listening(service, member)
            run = awaitable(service, handle)
            mine = [Handler(label, name, mark.topic, mark.to == "every", decode, run) for mark in marks]
            found += mine if intercept is None else [intercept(each, member) for each in mine]
    return found


def listening(service: Service, member: Member) -> tuple[Decode, Callable[[Event], Any]]:
    """The decoder of an event handler's data, and the function to call with the event; it blocks if the handler does.

    Raises:
        BadDeclaration: the handler takes more than the data and the Event.
    """
    cls = type(service)
    label = f"{cls.name}.{member.name}"
    signature = Signature(member.function, label, owner=cls)
    if signature.form is not None:
        raise BadDeclaration(f"{label}: an event has no form; take its data")
    if signature.inbound is not None:
        raise BadDeclaration(
            f'{label}: argument "{signature.inbound.name}" is a stream of items; an event has one value'
        )
    for name in fields(signature.parameters, label).names:
        raise BadDeclaration(f'{label}: argument "{name}" is marked as part of an HTTP request; an event has none')
    data = _data_parameter(signature.parameters, label)
    decode = decoder(label, data.type if data is not None else Any)
    return decode, _handling(getattr(service, member.name), signature.parameters)


def timers(service: Service, *, intercept: Callable[[Run, Member], Run] | None = None) -> list[Timer]:
    """The `@every` timers of this instance.

    Args:
        intercept: (function, member) -> the function with its interceptors.
    """
    cls = type(service)
    found = []
    for member in members(cls):
        if member.marks.timers:
            run = awaitable(service, getattr(service, member.name))
            run = run if intercept is None else intercept(run, member)
            found += [Timer(f"{cls.name}.{member.name}", mark.period_s, run) for mark in member.marks.timers]
    return found


def record(
    cls: type[Service],
    *,
    id: str,
    epoch: int,
    worker: str = "",
    host: str = "",
    pid: int = 0,
    endpoint: str = "",
    events: str = "",
    meta: dict[str, str] | None = None,
    places: int = 0,
) -> Instance:
    """The registry record of an instance of the class; `meta` is added to the class's own.

    `places` is how many calls the instance runs at once; 0: unknown.

    Raises:
        BadDeclaration: an annotation cannot be resolved, or a type cannot travel.
    """
    known = typed(cls)
    called = [each for each in known if each.member.rpc is not None]
    heard = [(member, mark) for member in members(cls) for mark in member.marks.topics]
    return Instance(
        service=cls.name,
        id=id,
        epoch=epoch,
        worker=worker,
        version=cls.version,
        host=host,
        pid=pid,
        endpoint=endpoint,
        events=events,
        methods={member.name: _method_record(cls, member, signature) for member, signature in called},
        routes=[
            *(_route_record(mark, member, signature) for member, signature in called for mark in member.marks.routes),
            *cls._raw_routes(),
        ],
        subscriptions=[
            Subscription(topic=mark.topic, method=member.name, to=mark.to)
            for member, mark in heard
            if mark.durable is None
        ],
        tasks={each.member.name: _task_record(cls, *each) for each in known if each.member.task is not None},
        durable=[
            Subscription(topic=mark.topic, method=member.name) for member, mark in heard if mark.durable is not None
        ],
        meta={**cls.meta, **(meta or {})},
        doc=_doc(cls),
        places=places,
    )


def _method_record(cls: type[Service], member: Member, signature: Signature) -> MethodRecord:
    rpc = member.rpc
    assert rpc is not None
    return MethodRecord(
        name=member.name,
        params=signature.params_schema,
        returns=signature.returns_schema,
        stream=signature.stream,
        idempotent=rpc.idempotent,
        timeout_s=rpc.timeout_s,
        binary=signature.binary,
        doc=_doc(member.function),
        exposed=cls.expose if rpc.expose is None else rpc.expose,
        edge=rpc.edge,
        policy=rpc.policy,
        inbound=signature.inbound_schema,
        events=signature.events,
        **fields(signature.parameters, signature.label)._asdict(),
    )


def _task_record(cls: type[Service], member: Member, signature: Signature) -> TaskRecord:
    task = member.task
    assert task is not None
    return TaskRecord(
        name=member.name,
        params=signature.params_schema,
        returns=signature.returns_schema,
        binary=signature.binary,
        doc=_doc(member.function),
        keep_s=task.keep_s,
        priority=task.priority,
        schedules=[mark.plan.text for mark in member.marks.schedules],
        exposed=cls.expose if task.expose is None else task.expose,
        edge=task.edge,
        **fields(signature.parameters, signature.label)._asdict(),
    )


def _route_record(mark: RouteMark, member: Member, signature: Signature) -> RouteRecord:
    if mark.verb == "WEBSOCKET" and not signature.stream:
        raise BadDeclaration(
            f"{signature.label}: the handler of a WebSocket yields the messages to send: write `async def` with `yield`"
        )
    if signature.form is not None:
        if mark.verb not in ("POST", "PUT", "PATCH"):
            raise BadDeclaration(f"{signature.label} takes a form, which a {mark.verb} cannot carry; use @http.post")
        for name in path_parameters(mark.path):
            if name in signature.form.parameters:
                raise BadDeclaration(f'{signature.label}: argument "{name}" is in the path and in the form; keep one')
        if mark.forms:
            raise BadDeclaration(
                f"{signature.label}: forms=True is for a method that parses forms itself; remove it, or take the body "
                "as `bytes`"
            )
    uploads = signature.inbound is not None
    found = sources(mark.verb, path_parameters(mark.path), signature.parameters, signature.label, uploads=uploads)
    for parameter in signature.parameters:
        if found.get(parameter.name) == "path" and parameter.shape != "scalar":
            raise BadDeclaration(
                f'{signature.label}: "{parameter.name}" is in the path {mark.path!r}, which can hold only single values'
            )
    return RouteRecord(
        mark.verb,
        mark.path,
        member.name,
        found,
        mark.status,
        mark.produces,
        mark.forms,
        mark.responses,
        mark.edge,
        mark.topics,
        mark.subprotocols,
    )


def _doc(thing: Any) -> str:
    # Not inspect.getdoc: for a class without a docstring it returns that of the base class.
    return inspect.cleandoc(thing.__doc__) if thing.__doc__ else ""


def _data_parameter(parameters: tuple[Parameter, ...], label: str) -> Parameter | None:
    """The parameter that takes an event's data."""
    candidates = [p for p in parameters if p.type is not Event]
    needed = [p for p in candidates if p.required]
    if len(needed) > 1:
        names = ", ".join(p.name for p in needed)
        raise BadDeclaration(f"{label}: an event has one value as its data, but the method needs {names}")
    return needed[0] if needed else next(iter(candidates), None)


def _handling(run: Callable[..., Any], parameters: tuple[Parameter, ...]) -> Callable[[Event], Any]:
    data = _data_parameter(parameters, "")

    def handle(event: Event) -> Any:
        positional: list[Any] = []
        named: dict[str, Any] = {}
        for parameter in parameters:
            value = event if parameter.type is Event else event.data if parameter is data else parameter.default
            if parameter.keyword_only:
                named[parameter.name] = value
            else:
                positional.append(value)
        return run(*positional, **named)

    handle.__wrapped__ = run  # type: ignore[attr-defined]  # where it is defined, for the log
    return handle
