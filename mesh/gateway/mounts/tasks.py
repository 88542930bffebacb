"""/tasks: `POST /tasks/{service}/{task}` defers a task.

Owns: reading arguments and options from a request, Location and Idempotency-Key.
Leaves to others: deferring (node.durable), the known tasks (catalog), the job afterwards (jobs).

The answer is 202 only when the task is durable. A request that is repeated with the same Idempotency-Key defers
nothing: the answer contains the first job; a different request with that key is an error.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final
from urllib.parse import quote, unquote

import msgspec
from aiohttp import hdrs
from multidict import CIMultiDictProxy, istr

from mesh.discovery.record import TaskRecord
from mesh.errors import BadArguments, BadRequest, MeshError, Unavailable, UnknownJob, UnknownRoute, UnknownService
from mesh.gateway.binding import unknown_argument
from mesh.gateway.convert import convert, converter, is_bytes
from mesh.gateway.depth import check_depth, may_be_deep
from mesh.gateway.edge.auth.ownership import own_key
from mesh.gateway.edge.identity import Identity
from mesh.gateway.entry import NO_POLICY, Entry
from mesh.gateway.fields import Fields
from mesh.gateway.front import Front
from mesh.gateway.media import JSON_TYPE, Kind, check_body_kind, kind_of
from mesh.gateway.mounts.contract import Mount
from mesh.gateway.mounts.serving import answer_method
from mesh.gateway.openapi import Document
from mesh.gateway.ports import Job
from mesh.gateway.query import read_single
from mesh.gateway.reply import Reply
from mesh.gateway.request import Request
from mesh.gateway.routes import allow_header
from mesh.gateway.schema_types import Arguments
from mesh.protocol.messages import JSON, MSGPACK
from mesh.tasks.deferring import Options

_encode_json: Final = msgspec.json.Encoder().encode
_encode_msgpack: Final = msgspec.msgpack.Encoder().encode
_ALLOW: Final = allow_header({"POST"})
_IDEMPOTENCY_KEY: Final = istr("Idempotency-Key")
#: Options of a defer, given in the query; see DurableVerbs.defer.
OPTIONS: Final[tuple[str, ...]] = ("delay", "at", "priority", "order", "keep", "timeout", "key")
#: Metadata of a job that was deferred with an Idempotency-Key: the fingerprint of that request.
REQUEST: Final = "mesh.request"


class KeyReused(BadRequest):
    """Two different requests used the same Idempotency-Key; the second deferred nothing."""

    code = "idempotency_key_reused"
    status = 422


def mount(front: Front) -> Mount:
    """/tasks."""
    # The handler answers other methods than POST itself: the path comes first, so that an unknown task is a 404.
    tasks = Tasks(front)
    return Mount(prefix="/tasks", handler=tasks.answer, methods=(), openapi=Document.add_tasks, entry=tasks.entry)


class Tasks:
    """Handles the requests for tasks."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._known: dict[str, tuple[TaskRecord, Arguments, Fields]] = {}

    async def answer(self, request: Request) -> Reply:
        """Defer a task, and count the request."""
        front = self._front
        try:
            service, name, record = self._find(request.path[7:])
        except UnknownService:
            if not front.may_say_unknown():
                raise Unavailable("no hub has reported the running services yet") from None
            raise
        other = answer_method(request, _ALLOW, "tasks are deferred with POST")
        if other is not None:
            return other
        target = request.target = f"{service}.{name}"
        if request.known is not None and request.known.name != target:
            # It has appeared since: the edge has not applied its policy.
            raise Unavailable("the tasks have just changed")
        stats = front.node.recorder.method("http", service, name)
        code = "cancelled"
        began_at = front.node.clock.now()
        stats.begin()
        try:
            most = record.edge.max_body_bytes if record.edge is not None else 0
            body = await front.bodies.read(request, front.timeout_s, most)
            kind = kind_of(request.headers.get(hdrs.CONTENT_TYPE))
            if kind == "json" and may_be_deep(body, front.settings.gateway.max_json_depth):
                await check_depth(body, front.settings.gateway.max_json_depth, front.node.recorder)
            reply = await self._defer(
                target, record, request.query_string, body, kind, request.headers, request.identity
            )
            code = ""
            return reply
        except MeshError as exc:
            code = exc.code
            raise
        finally:
            stats.end(front.node.clock.now() - began_at, code)

    def entry(self, request: Request) -> Entry:
        """The task of a request.

        Raises:
            UnknownRoute, UnknownService, UnknownMethod: there is none.
        """
        service, name, record = self._find(request.path[7:])
        return Entry("/tasks", f"{service}.{name}", record.edge or NO_POLICY)

    def _find(self, path: str) -> tuple[str, str, TaskRecord]:
        """Service, name and record of the task that a path below /tasks/ names.

        Raises:
            UnknownRoute, UnknownService, UnknownMethod: it names no task.
        """
        service, slash, name = path.partition("/")
        if not slash or not name or "/" in name:
            raise UnknownRoute(f"/tasks/{path[:200]}: defer a task with POST /tasks/SERVICE/TASK")
        service, name = unquote(service), unquote(name)
        return service, name, self._front.catalog.task(service, name)

    async def _defer(
        self,
        target: str,
        record: TaskRecord,
        query: str,
        body: bytes,
        kind: Kind,
        headers: CIMultiDictProxy[str],
        identity: Identity | None,
    ) -> Reply:
        """Defer a task.

        Args:
            target: "service.task".
            query: options (OPTIONS); for a body of bytes also the other arguments.
            kind: what the Content-Type says the body is.
            headers: of the request: Idempotency-Key, and those that the task reads.
            identity: of the caller; an Idempotency-Key is that of this caller alone.

        Raises:
            BadArguments, UnsupportedMedia, TooLarge: nothing was deferred.
            KeyReused: a different request has used this Idempotency-Key before.
            TryLater, Uncertain, Unwritable: see DurableVerbs.defer.
        """
        told = read_single(query)
        given = {name: told.pop(name) for name in OPTIONS if name in told}
        idempotency = headers.getall(_IDEMPOTENCY_KEY, ())
        if idempotency:
            if "key" in given:
                raise BadArguments(
                    "query.key: cannot be combined with Idempotency-Key; send one of them", details=_at("key")
                )
            given["key"] = own_key(identity, _key(idempotency))
        arguments = self._encoded(target, record, told, body, kind, headers)
        options = _options(given)
        if idempotency:
            options = msgspec.structs.replace(options, meta={REQUEST: _fingerprint(given, arguments)})
        job = await self._front.node.durable.defer_encoded(target, arguments, options)
        if idempotency and not job.fresh:
            await _check_same(job, (options.meta or {})[REQUEST])
        shown = {"id": job.id, "task": target, "job": f"/jobs/{job.id}"}
        return Reply(_encode_json(shown), JSON_TYPE, 202, f"Location: /jobs/{quote(job.id, safe='')}\r\n".encode())

    def _encoded(
        self,
        target: str,
        record: TaskRecord,
        told: Mapping[str, str],
        body: bytes,
        kind: Kind,
        headers: CIMultiDictProxy[str],
    ) -> bytes:
        """The arguments to store: the body as received, after checking that a worker can read it, with the values of
        header fields and cookies added.

        Raises:
            BadArguments: a worker cannot read it; `details["path"]` says where.
            UnsupportedMedia: the body is neither JSON nor what the task takes.
        """
        known = self._known.get(target)
        # A new release may have another record.
        if known is None or known[0] is not record:
            known = self._known[target] = (record, Arguments(record.params), Fields(record))
        _, arguments, elsewhere = known
        properties = record.params.get("properties", {})
        own = tuple(name for name in properties if name not in elsewhere)
        if body and kind not in ("json", "msgpack"):
            binary = [name for name in own if is_bytes(properties[name], record.params)]
            check_body_kind(kind, binary=len(binary) == 1)
            found = _with_bytes(record, own, binary[0], told, body)
            elsewhere.read(headers, found)
            return _encode_msgpack(found)
        for name in told:
            raise unknown_argument(f"query.{name}", name, OPTIONS)
        if kind == "msgpack":
            if body and body[0] >> 4 not in (8, 9) and body[0] not in _WIDE:
                raise _no_arguments()
            body = elsewhere.merge(body, MSGPACK, headers) if elsewhere else body
            self._check(arguments.check_msgpack, body, elsewhere)
            return body
        text = body.strip(b" \t\r\n") or b"{}"
        if text[:1] not in (b"{", b"["):
            raise _no_arguments()
        text = elsewhere.merge(text, JSON, headers) if elsewhere else text
        self._check(arguments.check_json, text, elsewhere)
        return text

    @staticmethod
    def _check(check: Callable[[bytes], None], body: bytes, elsewhere: Fields) -> None:
        try:
            check(body)
        except BadArguments as exc:
            name, _, rest = str(exc.details.get("path", "")).removeprefix("body.").partition(".")
            if place := elsewhere.place(name):
                exc.details["path"] = f"{place}.{rest}" if rest else place
            raise


# --- reading --------------------------------------------------------------------------------------------


def _at(name: str) -> dict[str, str]:
    return {"path": f"query.{name}"}


def _key(headers: Sequence[str]) -> str:
    """The key in an Idempotency-Key header; in the draft standard it is quoted, but most clients omit the quotes.

    Raises:
        BadArguments: it is empty or not UTF-8, or there are several.
    """
    if len(headers) > 1:
        raise BadArguments("Idempotency-Key: is given more than once", details={"path": "header.Idempotency-Key"})
    key = headers[0].strip()
    try:
        key.encode()  # fails for bytes that were not UTF-8, which are surrogates here
    except UnicodeEncodeError:
        raise BadArguments("Idempotency-Key: is not UTF-8", details={"path": "header.Idempotency-Key"}) from None
    if len(key) >= 2 and key[0] == key[-1] == '"':
        key = key[1:-1]
    if not key:
        raise BadArguments("Idempotency-Key: is empty", details={"path": "header.Idempotency-Key"})
    return key


def _fingerprint(given: Mapping[str, str], arguments: bytes) -> str:
    """The fingerprint of a request: of the exact bytes of its options and arguments. A retry sends the same bytes."""
    told = _encode_json(sorted(given.items()))
    return hashlib.sha256(told + b"\0" + arguments).hexdigest()[:32]


async def _check_same(job: Job, fingerprint: str) -> None:
    """Raises:
    KeyReused: the job with this key was made by another request.
    """
    try:
        first = (await job.info()).meta.get(REQUEST, "")
    except UnknownJob:
        return  # the job has just been removed
    # A job that was deferred in another way (`?key=`, from a service) has no fingerprint: compare its key only.
    if first and first != fingerprint:
        raise KeyReused(
            f"Idempotency-Key: another request deferred the job {job.id} with it; send a new key with each new request",
            details={"path": "header.Idempotency-Key", "job": job.id},
        )


def _options(given: Mapping[str, str]) -> Options:
    priority: int | None = None
    at: float | datetime | None = None
    if "priority" in given:
        if not given["priority"].isdecimal():
            raise BadArguments(
                f'query.priority: "{given["priority"][:40]}" is not a whole number from 0 to 9', details=_at("priority")
            )
        priority = int(given["priority"][:4])
    if "at" in given:
        at = _instant(given["at"])
    return Options(
        key=given.get("key", ""),
        delay=given.get("delay"),
        at=at,
        priority=priority,
        order=given.get("order", ""),
        keep=given.get("keep"),
        timeout=given.get("timeout"),
    )


def _instant(text: str) -> datetime | float:
    try:
        return float(text)
    except ValueError:
        pass
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        when = None
    if when is None or when.tzinfo is None:
        raise BadArguments(
            f'query.at: "{text[:60]}" is not an instant; write 2030-01-31T12:00:00Z, or seconds since 1970',
            details=_at("at"),
        )
    return when


#: The first bytes of the longer arrays and maps of MessagePack.
_WIDE: Final = frozenset({0xDC, 0xDD, 0xDE, 0xDF})


def _no_arguments() -> BadArguments:
    return BadArguments(
        "body: must be an object of named arguments, or an array of positional ones", details={"path": "body"}
    )


def _with_bytes(
    record: TaskRecord, names: tuple[str, ...], blob: str, told: Mapping[str, str], body: bytes
) -> dict[str, Any]:
    """The arguments of a body that is the only bytes argument, with the other arguments from the query."""
    properties: Mapping[str, Any] = record.params["properties"]
    found: dict[str, Any] = {blob: body}
    for name, text in told.items():
        if name not in names or name in found:
            raise unknown_argument(f"query.{name}", name, (*OPTIONS, *names))
        found[name] = convert(text, converter(properties[name], record.params), f"query.{name}")
    for name in record.params.get("required", ()):
        if name in names and name not in found:
            raise BadArguments(f"query.{name}: is missing", details=_at(name))
    return found
