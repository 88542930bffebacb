"""Turning a task and its arguments into a row that an engine can store.

Owns: the target and the options of a task, encoding and checking its arguments, the row.
Leaves to others: finding the target (node.targets), sending the row (gathering), handles (job).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

import msgspec

from mesh import ids
from mesh.calls.answers import decode_any
from mesh.calls.checks import check_meta
from mesh.calls.context import CURRENT, carrying
from mesh.calls.signature import encode_arguments
from mesh.errors import BadArguments, TooLarge
from mesh.protocol.messages import JSON, MSGPACK
from mesh.tasks.contract import DEFAULT_PRIORITY, PRIORITIES, NewTask
from mesh.tasks.job import Decode, Job
from mesh.tasks.options import Duration, due_at, span
from mesh.telemetry.traces import current as TRACE
from mesh.telemetry.traces import in_force

#: Maximum length of a `key` and of an `order`, in characters.
MAX_KEY: Final = 1024
#: Key in the same map as the user's `meta`: the places of the answers that a step waits for (see canvas).
PRIOR_META: Final = "mesh-prior"


class Target(msgspec.Struct, frozen=True):
    """What the deferring process knows of a task.

    Attributes:
        queue: "service.task".
        check: decodes arguments as the worker will, to reject wrong ones here; None when the function is not available.
        decode: decodes the answer.
        keep_s: default retention of the finished job.
        priority: default priority.
    """

    queue: str
    check: Callable[[Any, int], object] | None = None
    decode: Decode = decode_any
    keep_s: float = 3600.0
    priority: int = DEFAULT_PRIORITY


class Options(msgspec.Struct, frozen=True):
    """How one task is deferred; see `DurableVerbs.defer` for each."""

    key: str = ""
    delay: Duration | None = None
    at: datetime | float | None = None
    priority: int | None = None
    order: str = ""
    keep: Duration | None = None
    timeout: Duration | None = None
    meta: dict[str, str] | None = None


NO_OPTIONS: Final = Options()


def options(
    key: str,
    delay: Duration | None,
    at: datetime | float | None,
    priority: int | None,
    order: str,
    keep: Duration | None,
    timeout: Duration | None,
    meta: dict[str, str] | None,
) -> Options:
    """The given options; NO_OPTIONS, which costs nothing, when there are none."""
    if not (key or order or meta) and delay is at is priority is keep is timeout is None:
        return NO_OPTIONS
    return Options(key, delay, at, priority, order, keep, timeout, meta)


class Deferred(asyncio.Future[Job[Any]]):
    """A task that is being deferred: `job = await self.defer(…)` returns when it is durable."""


def arguments(target: Target, args: tuple[Any, ...], kwargs: dict[str, Any], max_bytes: int) -> bytes:
    """Encode and check the arguments of a task.

    Raises:
        BadArguments: the arguments cannot be encoded, or do not match the task's signature.
        TooLarge: they are longer than `max_bytes`.
    """
    body = encode_arguments(args, kwargs, target.queue)
    if len(body) > max_bytes:
        check_size(target, body, max_bytes)
    if target.check is not None:
        target.check(body, MSGPACK)
    return body


def check_size(target: Target, body: bytes, max_bytes: int) -> bytes:
    """The body itself. Raises TooLarge: it is longer than `max_bytes`."""
    if len(body) > max_bytes:
        raise TooLarge(
            f"the arguments of {target.queue} are {len(body):,} bytes long; the limit is {max_bytes:,}. "
            "Store them elsewhere and pass a reference"
        )
    return body


def encoding_of(body: bytes) -> int:
    """How the arguments of a task are encoded: JSON when they begin with `{` or `[`, else MessagePack.

    Arguments are an array, a map or nothing. In MessagePack none of these begins with `{` or `[`, which are small
    integers there; so the encoding follows from the body and engines need not store it.
    """
    return JSON if body[:1] in _JSON_STARTS else MSGPACK


_JSON_STARTS: Final = (b"{", b"[")


def new_task(target: Target, body: bytes, options: Options, now: float) -> NewTask:
    """The row of a task; `now` is wall clock.

    Raises:
        BadArguments: an option is invalid; the message names it.
    """
    if options is NO_OPTIONS:
        if CURRENT.get() is None:
            # Outside of handlers, without the calls that would look for a trace and for propagated values.
            return NewTask(
                ids.job_id(), target.queue, body, priority=target.priority, keep_s=target.keep_s, trace=TRACE.get()
            )
        return NewTask(
            ids.job_id(),
            target.queue,
            body,
            priority=target.priority,
            keep_s=target.keep_s,
            trace=in_force(),
            meta=carrying(None) or {},
        )
    queue = target.queue
    priority = target.priority if options.priority is None else options.priority
    if type(priority) is not int or priority not in PRIORITIES:
        raise BadArguments(f"{queue}: priority={priority!r} is not a whole number from 0 to 9")
    for name, text in (("key", options.key), ("order", options.order)):
        if not isinstance(text, str) or len(text) > MAX_KEY:
            raise BadArguments(f"{queue}: {name} is a text of at most {MAX_KEY} characters, not {text!r}"[:300])
    if options.meta:
        check_meta(options.meta)
        if PRIOR_META in options.meta:
            raise BadArguments(f"{queue}: meta {PRIOR_META!r} is reserved for the framework")
    not_before = due_at(queue, options.delay, options.at, now)
    return NewTask(
        id=ids.job_id(),
        queue=queue,
        body=body,
        key=options.key,
        order=options.order,
        priority=priority,
        due_at=not_before,
        keep_s=target.keep_s if options.keep is None else span(queue, "keep", options.keep),
        trace=in_force(),
        meta=carrying(options.meta) or {},
        timeout_s=0.0 if options.timeout is None else span(queue, "timeout", options.timeout),
        delay_s=max(0.0, not_before - now),
    )


def weight(task: NewTask) -> int:
    """The approximate size of a task in a message, in bytes."""
    size = len(task.body) + 200
    if task.meta:
        # At most four bytes for each character in UTF-8, and five around each text.
        size += sum(4 * (len(name) + len(value)) + 10 for name, value in task.meta.items())
    return size
