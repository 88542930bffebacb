"""What an instance tells of itself: the record that hubs keep and clients read.

Owns: the shapes. Encoded with msgspec as MessagePack maps, so that a newer field is ignored by an older reader.
Leaves to others: keeping records (table, hub), making them from a service class (service.describe).
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

#: Where an HTTP route finds a parameter: a path segment, the query string, a member of the JSON object in the
#: body, or the whole body (JSON for a structured type, the raw bytes for `bytes`).
Source = Literal["path", "query", "field", "body"]


class MethodRecord(msgspec.Struct, omit_defaults=True, frozen=True):
    """One method that may be called.

    Attributes:
        params: JSON Schema (2020-12) of an object with one property per parameter, in order of declaration.
        returns: JSON Schema of the answer, or of each item of a stream.
        stream: answers with many items instead of one.
        idempotent: may be repeated on another instance when an answer is lost.
        timeout_s: the default deadline of a call to it; None takes the caller's default.
        binary: the answer is `bytes` and travels as it is, without JSON or MessagePack around it.
        exposed: a gateway calls it for anyone at /rpc.
    """

    name: str
    params: dict[str, Any] = {}
    returns: dict[str, Any] = {}
    stream: bool = False
    idempotent: bool = False
    timeout_s: float | None = None
    binary: bool = False
    doc: str = ""
    exposed: bool = False


class RouteRecord(msgspec.Struct, omit_defaults=True, frozen=True):
    """One HTTP address of a service.

    Attributes:
        verb: "GET", "POST", "PUT", "PATCH" or "DELETE".
        path: "/hello/{name}": literal segments and whole-segment parameters; a last `{rest...}` takes the remainder.
        method: the method that answers, by its name in `Instance.methods`.
        sources: where each parameter comes from, by parameter name.
        status: the HTTP status of a success.
        produces: Content-Type of the answer; "" means application/json (application/octet-stream for a binary one).
        forms: a body of bytes may be an HTML form, which the method reads itself.
    """

    verb: str
    path: str
    method: str
    sources: dict[str, Source] = {}
    status: int = 200
    produces: str = ""
    forms: bool = False


class Subscription(msgspec.Struct, omit_defaults=True, frozen=True):
    """One `@on(topic)`: `to` "one" instance of the service, acknowledged, or to "every" one over PUB/SUB."""

    topic: str
    method: str = ""
    to: Literal["one", "every"] = "one"


class TaskRecord(msgspec.Struct, omit_defaults=True, frozen=True):
    """One task that may be deferred.

    Attributes:
        params, returns, binary, doc: as a method's.
        keep_s: how long a finished job is kept when whoever defers does not say; None takes the deferrer's default.
        priority: of a job that is deferred without one.
        schedules: when the mesh defers it by itself: "0 3 * * * Asia/Tokyo", "every 10s".
        exposed: a gateway defers it for anyone at /tasks.
    """

    name: str
    params: dict[str, Any] = {}
    returns: dict[str, Any] = {}
    binary: bool = False
    doc: str = ""
    keep_s: float | None = None
    priority: int = 5
    schedules: list[str] = []
    exposed: bool = False


class Instance(msgspec.Struct, omit_defaults=True, frozen=True):
    """One running copy of a service.

    Attributes:
        id: unique among the living; `epoch` tells two claims to one id apart (the later wins).
        worker: id of the process; instances in one worker share `endpoint` and `events`.
        host: name of the machine, for people and for preferring what is near.
        endpoint: where its worker's ROUTER listens. "" for a mere listener that answers no calls.
        events: where its worker's SUB listens; "" when it subscribes to nothing for every instance.
        subscriptions: what it hears of as it is emitted; `durable`: what it hears of from the log.
        load: calls in hand divided by `places`, 0.0 to 1.0, as of the last renewal.
        places: how many calls it runs at once; 0 where that is not told.
    """

    service: str
    id: str
    epoch: int
    worker: str = ""
    version: str = ""
    host: str = ""
    pid: int = 0
    endpoint: str = ""
    events: str = ""
    methods: dict[str, MethodRecord] = {}
    routes: list[RouteRecord] = []
    subscriptions: list[Subscription] = []
    meta: dict[str, str] = {}
    doc: str = ""
    load: float = 0.0
    tasks: dict[str, TaskRecord] = {}
    durable: list[Subscription] = []
    places: int = 0
