"""Tasks over HTTP: `POST /tasks/{service}/{task}` defers a task, `/jobs/{id}` shows its job.

Owns: reading arguments and options from a request, Location and Idempotency-Key, and a job as JSON.
Leaves to others: deferring and querying (service.durable), the known tasks (catalog), the socket (server).

The answer is 202 only when the task is durable. The address of the job works on every gateway, for as long as the
job is kept. A request that is repeated with the same Idempotency-Key defers nothing: the answer contains the first job;
a different request with that key is an error.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import parse_qsl, quote, unquote

import msgspec

from mesh.calls.answers import Answer
from mesh.discovery.record import TaskRecord
from mesh.errors import BadArguments, BadRequest, DeadlineExceeded, MethodNotAllowed, UnknownJob, UnknownRoute
from mesh.gateway.answers import json_of
from mesh.gateway.binding import MOST_PAIRS, unknown_argument
from mesh.gateway.catalog import Catalog
from mesh.gateway.convert import convert, converter, is_bytes
from mesh.gateway.media import JSON_TYPE, MSGPACK_TYPE, Kind, check_body_kind
from mesh.gateway.ports import Durable, Job
from mesh.gateway.reply import Reply
from mesh.gateway.schema_types import Arguments
from mesh.protocol.messages import MSGPACK
from mesh.tasks.contract import OVER, JobInfo
from mesh.tasks.deferring import Options
from mesh.tasks.options import span

_encode_json: Final = msgspec.json.Encoder().encode
_encode_msgpack: Final = msgspec.msgpack.Encoder().encode
#: Options of a defer, given in the query; see DurableVerbs.defer.
OPTIONS: Final[tuple[str, ...]] = ("delay", "at", "priority", "order", "keep", "timeout", "key")
#: The maximum wait of a request in seconds: proxies give up soon after.
LONGEST_WAIT_S: Final = 60.0
#: Metadata of a job that was deferred with an Idempotency-Key: the fingerprint of that request.
REQUEST: Final = "mesh.request"
_ID: Final = re.compile(r"[\x21-\x7e]{1,128}")


class KeyReused(BadRequest):
    """Two different requests used the same Idempotency-Key; the second deferred nothing."""

    code = "idempotency_key_reused"
    status = 422


class Jobs:
    """Handles the requests for tasks and jobs."""

    def __init__(self, durable: Durable, catalog: Catalog, *, debug: bool = False) -> None:
        self._debug = debug
        self._durable = durable
        self._catalog = catalog
        self._known: dict[str, tuple[TaskRecord, Arguments]] = {}

    # --- deferring ----------------------------------------------------------------------------------------

    def task(self, path: str) -> tuple[str, str, TaskRecord]:
        """Service, name and record of the task that a path below /tasks/ names.

        Raises:
            UnknownRoute, UnknownService, UnknownMethod: it names no task.
        """
        service, slash, name = path.partition("/")
        if not slash or not name or "/" in name:
            raise UnknownRoute(f"/tasks/{path}: defer a task with POST /tasks/SERVICE/TASK")
        service, name = unquote(service), unquote(name)
        return service, name, self._catalog.task(service, name)

    async def defer(
        self, target: str, record: TaskRecord, query: str, body: bytes, kind: Kind, idempotency: Sequence[str]
    ) -> Reply:
        """Defer a task.

        Args:
            target: "service.task".
            query: options (OPTIONS); for a body of bytes also the other arguments.
            kind: what the Content-Type says the body is.
            idempotency: the values of the Idempotency-Key header.

        Raises:
            BadArguments, UnsupportedMedia, TooLarge: nothing was deferred.
            KeyReused: a different request has used this Idempotency-Key before.
            TryLater, Uncertain, Unwritable: see DurableVerbs.defer.
        """
        told = _pairs(query)
        given = {name: told.pop(name) for name in OPTIONS if name in told}
        if idempotency:
            if "key" in given:
                raise BadArguments("query.key: there is an Idempotency-Key, too; send one of them", details=_at("key"))
            given["key"] = _key(idempotency)
        arguments = _encoded(record, self._arguments(target, record), told, body, kind)
        options = _options(given)
        if idempotency:
            options = msgspec.structs.replace(options, meta={REQUEST: _fingerprint(given, arguments)})
        job = await self._durable.defer_encoded(target, arguments, options)
        if idempotency and not job.fresh:
            await _check_same(job, (options.meta or {})[REQUEST])
        shown = {"id": job.id, "task": target, "job": f"/jobs/{job.id}"}
        return Reply(_encode_json(shown), JSON_TYPE, 202, f"Location: /jobs/{quote(job.id, safe='')}\r\n".encode())

    def _arguments(self, target: str, record: TaskRecord) -> Arguments:
        known = self._known.get(target)
        # A new release may have another record.
        if known is None or known[0] is not record:
            known = self._known[target] = (record, Arguments(record.params))
        return known[1]

    # --- jobs ---------------------------------------------------------------------------------------------

    async def job(self, verb: str, path: str, query: str, *, msgpack: bool = False) -> Reply:
        """GET shows a job, with `?wait=30s` when it is finished or after that time; DELETE cancels it.

        Raises:
            UnknownJob, MethodNotAllowed, BadArguments.
        """
        id = unquote(path)
        if not _ID.fullmatch(id) or "/" in id:
            raise UnknownRoute(f"/jobs/{path[:100]}: a job is at /jobs/ID")
        if verb == "DELETE":
            return self._shown(await self._durable.tasks.cancel(id, timeout_s=self._durable.timeout_s), msgpack)
        if verb not in ("GET", "HEAD"):
            allow = "DELETE, GET, HEAD, OPTIONS"
            if verb == "OPTIONS":
                return Reply(status=204, extra=b"Allow: %b\r\n" % allow.encode())
            raise MethodNotAllowed(f"{verb} /jobs: not allowed here", details={"allow": allow})
        told = _pairs(query)
        wait_s = span("job", "wait", told.pop("wait"), zero=True) if "wait" in told else 0.0
        for name in told:
            raise unknown_argument(f"query.{name}", name, ("wait",))
        return self._shown(await self._look(id, min(wait_s, LONGEST_WAIT_S)), msgpack)

    def _shown(self, info: JobInfo, msgpack: bool) -> Reply:
        shown = show(info, debug=self._debug)
        result = info.result if info.status == "done" and info.result else None
        if msgpack:
            shown["result"] = msgspec.Raw(result) if result is not None else None
            return Reply(_encode_msgpack(shown), MSGPACK_TYPE)
        shown["result"] = msgspec.Raw(json_of(Answer(result, MSGPACK))) if result is not None else None
        return Reply(_encode_json(shown), JSON_TYPE)

    async def _look(self, id: str, wait_s: float) -> JobInfo:
        tasks = self._durable.tasks
        if wait_s > 0:
            try:
                return await tasks.wait(id, timeout_s=wait_s)
            except DeadlineExceeded:
                pass  # show the job as it is
        found = await tasks.job(id, timeout_s=self._durable.timeout_s)
        if found is None:
            raise UnknownJob(f"no job has the id {id}, or it is no longer kept")
        return found


# --- reading --------------------------------------------------------------------------------------------


def _at(name: str) -> dict[str, str]:
    return {"path": f"query.{name}"}


def _pairs(query: str) -> dict[str, str]:
    """The query's values by name.

    Raises:
        BadArguments: a name occurs twice, or the query is not UTF-8.
    """
    if not query:
        return {}
    try:
        query.encode()
        pairs = parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=MOST_PAIRS)
    except ValueError as exc:
        raise BadArguments("query: is not UTF-8, or too long", details={"path": "query"}) from exc
    found: dict[str, str] = {}
    for name, value in pairs:
        if name in found:
            raise BadArguments(f"query.{name}: is given more than once", details=_at(name))
        found[name] = value
    return found


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
            raise BadArguments(f'query.priority: "{given["priority"][:40]}" is none of 0 to 9', details=_at("priority"))
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
            f'query.at: "{text[:60]}" is no instant; write 2030-01-31T12:00:00Z, or seconds since 1970',
            details=_at("at"),
        )
    return when


def _encoded(record: TaskRecord, known: Arguments, told: Mapping[str, str], body: bytes, kind: Kind) -> bytes:
    """The arguments to store: the body as received, after checking that a worker can read it.

    Raises:
        BadArguments: a worker cannot read it; `details["path"]` says where.
        UnsupportedMedia: the body is neither JSON nor what the task takes.
    """
    binary = [name for name, schema in record.params.get("properties", {}).items() if is_bytes(schema, record.params)]
    if body and kind not in ("json", "msgpack"):
        check_body_kind(kind, binary=len(binary) == 1)
        return _with_bytes(record, known.names, binary[0], told, body)
    for name in told:
        raise unknown_argument(f"query.{name}", name, OPTIONS)
    if kind == "msgpack":
        if body and body[0] >> 4 not in (8, 9) and body[0] not in _WIDE:
            raise _no_arguments()
        known.check_msgpack(body)
        return body
    text = body.strip(b" \t\r\n") or b"{}"
    if text[:1] not in (b"{", b"["):
        raise _no_arguments()
    known.check_json(text)
    return text


#: The first bytes of the longer arrays and maps of MessagePack.
_WIDE: Final = frozenset({0xDC, 0xDD, 0xDE, 0xDF})


def _no_arguments() -> BadArguments:
    return BadArguments(
        "body: must be an object of named arguments, or an array of positional ones", details={"path": "body"}
    )


def _with_bytes(record: TaskRecord, names: tuple[str, ...], blob: str, told: Mapping[str, str], body: bytes) -> bytes:
    """Encode a body that is the only bytes argument, with the other arguments from the query."""
    properties: Mapping[str, Any] = record.params["properties"]
    found: dict[str, Any] = {blob: body}
    for name, text in told.items():
        if name not in properties or name in found:
            raise unknown_argument(f"query.{name}", name, (*OPTIONS, *names))
        found[name] = convert(text, converter(properties[name], record.params), f"query.{name}")
    for name in record.params.get("required", ()):
        if name not in found:
            raise BadArguments(f"query.{name}: is missing", details=_at(name))
    return _encode_msgpack(found)


# --- showing --------------------------------------------------------------------------------------------


#: Public texts for the failure of a job; the text of the error itself is in the log, and in `mesh jobs show`.
_PUBLIC_REASONS: Final = {
    "failed": "the task failed",
    "undecodable": "its arguments cannot be read",
    "unknown": "no worker knows the task",
    "lost": "workers died while they ran it",
    "upstream": "an earlier step failed",
}


def show(info: JobInfo, *, debug: bool = False) -> dict[str, Any]:
    """A job as plain values, without its answer and its arguments.

    Args:
        debug: include the text of its error and the worker that runs it.
    """
    shown: dict[str, Any] = {
        "id": info.id,
        "task": info.queue,
        "status": info.status,
        "attempt": info.attempt,
        "priority": info.priority,
        "created_at": _time(info.created_at),
    }
    said = {"key": info.key, "order": info.order}
    if debug:
        said |= {"worker": info.worker, "topic": info.topic}
    shown |= {name: text for name, text in said.items() if text}
    if info.status not in OVER and info.due_at:
        shown["due_at"] = _time(info.due_at)
    if info.waits:
        shown["waits_for"] = info.waits
    if info.lost:
        shown["lost"] = info.lost
    if info.finished_at:
        shown["finished_at"] = _time(info.finished_at)
    if info.ends_at:
        shown["kept_until"] = _time(info.ends_at)
    if info.error or info.reason:
        message = info.error if debug else _PUBLIC_REASONS.get(info.reason, "the task failed")
        shown["error"] = {"reason": info.reason, "message": message}
    return shown


def _time(wall: float) -> str:
    return datetime.fromtimestamp(wall, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
