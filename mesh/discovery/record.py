"""The record of an instance: registered with hubs and read by clients.

Owns: the record types. Encoded with msgspec as MessagePack maps, so that an older reader ignores a newer field.
Leaves to others: keeping records (table, hub), making them from a service class (service.describe).
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from mesh.config.policies import PolicySettings

#: The source of a parameter of an HTTP route: a path segment, the query string, a member of the JSON object in the
#: body, or the whole body (JSON for a structured type, the raw bytes for `bytes`).
Source = Literal["path", "query", "field", "body"]


class EdgePolicy(msgspec.Struct, omit_defaults=True, frozen=True):
    """What a route, method or task asks of the gateways in front of it; see mesh.service.edge_options.

    Attributes:
        auth: "" takes the gateway's default, "none" lets anyone in, "user" requires an authenticated caller.
        scopes: the caller must have all of them.
        roles: the caller must have one of them.
        rates: rate limits, such as "100/m by principal".
        max_body_bytes: the largest request body; 0 takes the gateway's.
        cors: origins of web pages that may read the answers; empty takes the gateway's.
        cache: the Cache-Control header of successful answers.
    """

    auth: Literal["", "none", "user"] = ""
    scopes: list[str] = []
    roles: list[str] = []
    rates: list[str] = []
    max_body_bytes: int = 0
    cors: list[str] = []
    cache: str = ""


class MethodRecord(msgspec.Struct, omit_defaults=True, frozen=True):
    """One method that can be called.

    Attributes:
        params: JSON Schema (2020-12) of an object with one property per parameter, in order of declaration.
        returns: JSON Schema of the answer, or of each item of a stream.
        stream: the answer is a stream of items.
        idempotent: a call may be repeated on another instance when its answer is lost.
        timeout_s: the default timeout of a call; None takes the caller's default.
        binary: the answer is `bytes` and is sent without JSON or MessagePack around it.
        exposed: gateways make it callable at /rpc.
        headers, cookies: the parameters that a gateway fills from header fields and cookies of an HTTP request, and
            from nothing else in it: the name of the field or cookie, by parameter name.
        edge: what it asks of gateways at /rpc; None for their defaults.
        events: a gateway gets its items with ids and names, for Server-Sent Events (mesh.calls.server_event).
        inbound: JSON Schema of each item that the caller sends: a client stream. None: it takes arguments only. Of an
            HTML form, where the body is the stream, the schema of the form: its `contentMediaType` is that of the body;
            application/x-www-form-urlencoded allows multipart/form-data as well.
        policy: what callers do when it is slow or fails; mesh.toml of a caller may say otherwise.
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
    headers: dict[str, str] = {}
    cookies: dict[str, str] = {}
    edge: EdgePolicy | None = None
    inbound: dict[str, Any] | None = None
    events: bool = False
    policy: PolicySettings | None = None


class RouteRecord(msgspec.Struct, omit_defaults=True, frozen=True):
    """One HTTP route of a service.

    Attributes:
        verb: "GET", "POST", "PUT", "PATCH" or "DELETE"; "WEBSOCKET" for a WebSocket.
        path: "/hello/{name}": literal segments and whole-segment parameters; a final `{rest...}` takes the remainder.
        method: name of the method that answers, in `Instance.methods`.
        sources: the source of each parameter, by parameter name; none for header fields and cookies.
        status: the HTTP status of a success.
        produces: Content-Type of the answer; "" means application/json (application/octet-stream for a binary one).
        forms: a body of bytes may be an HTML form, which the method parses itself.
        responses: further statuses of answers, with what they mean.
        topics: of a WebSocket: the events that its handler may send to clients, as patterns.
        subprotocols: of a WebSocket, the preferred one first.
        raw: "asgi": the gateway passes the request on as a whole, to an application; "" for a method.
        edge: what it asks of gateways; None for their defaults.
    """

    verb: str
    path: str
    method: str
    sources: dict[str, Source] = {}
    status: int = 200
    produces: str = ""
    forms: bool = False
    responses: dict[str, str] = {}
    edge: EdgePolicy | None = None
    topics: list[str] = []
    subprotocols: list[str] = []
    raw: str = ""


class Subscription(msgspec.Struct, omit_defaults=True, frozen=True):
    """One `@on(topic)`: delivered `to` "one" instance of the service with an ack, or to "every" one over PUB/SUB."""

    topic: str
    method: str = ""
    to: Literal["one", "every"] = "one"


class TaskRecord(msgspec.Struct, omit_defaults=True, frozen=True):
    """One task that can be deferred.

    Attributes:
        params, returns, binary, doc, headers, cookies, edge: as in MethodRecord; the gateway serves it at /tasks.
        keep_s: retention of a finished job that is deferred without one; None takes the deferrer's default.
        priority: priority of a job that is deferred without one.
        schedules: when the mesh defers the task by itself: "0 3 * * * Asia/Tokyo", "every 10s".
        exposed: gateways make it deferrable at /tasks.
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
    headers: dict[str, str] = {}
    cookies: dict[str, str] = {}
    edge: EdgePolicy | None = None


class Instance(msgspec.Struct, omit_defaults=True, frozen=True):
    """One running copy of a service.

    Attributes:
        id: unique among running instances. Of two claims to one id, the one with the later `epoch` wins.
        worker: id of the process; instances in one worker share `endpoint` and `events`.
        host: name of the machine, for display and for preferring instances on the caller's host.
        endpoint: where its worker's ROUTER listens; "" for an instance that answers no calls.
        events: where its worker's SUB listens; "" when it has no subscription of the kind "every".
        subscriptions: events delivered as they are emitted.
        durable: events delivered from the durable log.
        load: admitted calls divided by `places`, 0.0 to 1.0, as of the last renewal.
        places: how many calls it runs at once; 0 when unknown.
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
