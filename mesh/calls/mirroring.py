"""Sends copies of calls to a canary, and compares its answers with those of the regular release.

Owns: the copies, their limits, the comparison, and its metrics and log lines.
Leaves to others: which calls are mirrored (cohorts), sending (client).

A copy is sent after the caller has its answer, so it delays no call; its own answer is only compared. When too many
copies are under way, further ones are dropped and counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextvars import Context
from typing import Any, Final

import msgspec

from mesh.calls.request import Call, Client, Decode, Order
from mesh.calls.route import Route
from mesh.errors import MeshError
from mesh.protocol.messages import JSON, MIRROR, MSGPACK
from mesh.telemetry.logs import get_logger
from mesh.telemetry.metrics import MethodStats, Recorder

log = get_logger("mesh.calls")

#: Copies under way at once, of one process. With LARGEST, this limits the memory that they take.
MOST_AT_ONCE: Final = 32
#: The largest answer that is compared, in bytes.
LARGEST: Final = 1024 * 1024
#: The longest wait for the answer to a copy, in seconds.
PATIENCE_S: Final = 10.0
#: A difference in the answers of one method is logged this often at most, in seconds.
LOG_EVERY_S: Final = 10.0
#: Methods with a time of their last log line.
MOST_LOGGED: Final = 1000

DROPPED: Final = "dropped"
#: Errors after which the canary has not run the copy.
NOT_RUN: Final = frozenset({"unavailable", "draining", "overloaded", "cancelled"})

Answered = tuple[str, bytes, int]
Send = Callable[[Order, Decode], "asyncio.Future[Any]"]


class Mirror:
    """The copies that one process sends."""

    def __init__(self, send: Send, recorder: Recorder, now: Callable[[], float], random: Callable[[], float]) -> None:
        """Args:
        send: (order, decode) -> the awaitable for the answer to a copy.
        """
        self._send = send
        self._recorder = recorder
        self.now = now
        self._random = random
        self._tasks: set[asyncio.Task[None]] = set()
        self._logged_at: dict[str, float] = {}

    def tap(self, call: Call) -> None:
        """Send a copy of this call when it has been answered."""
        tap = _Tap(self, call.client, call.decode)
        call.client = tap
        call.decode = tap.decode

    def answered(self, order: Order, answer: Answered, took_s: float) -> None:
        """The regular release has answered a tapped call."""
        split = order.route.group.split
        ready = split.canaries.ready if split is not None else ()
        if not ready or len(self._tasks) >= MOST_AT_ONCE or len(answer[1]) > LARGEST:
            self._count(order, DROPPED)
            return
        canary: str = ready[int(self._random() * len(ready))].instance.id
        # In a context of its own: the copy inherits no deadline of the code that happens to run now.
        task = asyncio.get_running_loop().create_task(
            self._copy(order, answer, canary, took_s), name="mesh.mirror", context=Context()
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """Give up all copies."""
        for task in self._tasks:
            task.cancel()

    async def _copy(self, order: Order, old: Answered, canary: str, took_s: float) -> None:
        began_at = self.now()
        of = order.route
        copied = msgspec.structs.replace(
            order,
            # Not among this process' own calls in the metrics.
            route=Route(of.target, of.method, of.group, MethodStats("client", of.group.name, of.method)),
            deadline_at=began_at + PATIENCE_S,
            began_at=began_at,
            sent_at=began_at,
            idempotent=False,
            meta={**(order.meta or {}), MIRROR: "1"},
            key=None,
            instance=canary,
            handle=None,
            tried=None,
            attempts=0,
            parked_at=0.0,
            trouble=None,
        )
        try:
            body, encoding = await self._send(copied, _raw)
            new = ("", body, encoding)
        except MeshError as exc:
            new = (exc.code, b"", MSGPACK)
        spent_s = self.now() - began_at
        if new[0] in NOT_RUN:
            self._count(order, DROPPED)
            return
        result, where = compare(old, new)
        self._count(order, result)
        self._seconds(order, "old", took_s)
        self._seconds(order, "new", spent_s)
        target = order.route.target
        now = self.now()
        if result != "equal" and now - self._logged_at.get(target, -LOG_EVERY_S) >= LOG_EVERY_S:
            if len(self._logged_at) >= MOST_LOGGED:
                self._logged_at.clear()
            self._logged_at[target] = now
            log.warning(
                "mirror.differed", target=target, instance=canary, result=result, where=where, trace=order.trace
            )

    def _count(self, order: Order, result: str) -> None:
        service, _, method = order.route.target.rpartition(".")
        self._recorder.counter(
            "mirrored",
            "Copies of calls that were sent to a canary, by the result of the comparison.",
            service=service,
            method=method,
            result=result,
        ).add()

    def _seconds(self, order: Order, release: str, seconds: float) -> None:
        service, _, method = order.route.target.rpartition(".")
        self._recorder.counter(
            "mirrored_seconds",
            "How long the compared answers took, in seconds, by release.",
            service=service,
            method=method,
            of=release,
        ).add(seconds)


class _Tap:
    """Stands between a call and its client, and sees the answer."""

    __slots__ = ("_client", "_decode", "_mirror", "_order", "_took_s")

    def __init__(self, mirror: Mirror, client: Client, decode: Decode) -> None:
        self._mirror = mirror
        self._client = client
        self._decode = decode
        self._order: Order | None = None
        self._took_s = 0.0

    def decode(self, body: Any, encoding: int) -> Any:
        order, self._order = self._order, None
        if order is not None:
            self._mirror.answered(order, ("", bytes(body), encoding), self._took_s)
        return self._decode(body, encoding)

    def settled(self, request: Any, order: Order, code: str) -> None:
        self._client.settled(request, order, code)
        if order.handle.share is not None:
            return  # it was repeated, and a canary answered it itself
        self._took_s = self._mirror.now() - order.sent_at
        if code:
            self._mirror.answered(order, (code, b"", MSGPACK), self._took_s)
        else:
            self._order = order  # `decode` comes next, with the body

    def gave_up(self, request: Any, code: str) -> None:
        self._client.gave_up(request, code)

    def was_refused(self, request: Any, error: MeshError) -> None:
        self._client.was_refused(request, error)

    def was_lost(self, request: Any, sent: bool, reason: str) -> None:
        self._client.was_lost(request, sent, reason)


def _raw(body: Any, encoding: int) -> tuple[bytes, int]:
    return bytes(body), encoding


def compare(old: Answered, new: Answered) -> tuple[str, str]:
    """("equal", "differs" or "failed", where the difference is).

    Args:
        old, new: the error code ("" for none), the body, and its encoding.
    """
    if new[0] and new[0] != old[0]:
        return "failed", new[0]
    if old[0]:
        return ("equal", "") if new[0] else ("differs", f"{old[0]} before")
    if old[1:] == new[1:]:
        return "equal", ""
    one, other = _decoded(old), _decoded(new)
    where = difference(one, other) if one is not _UNREAD and other is not _UNREAD else "$"
    return ("differs", where) if where else ("equal", "")


_UNREAD: Final = object()


def _decoded(answer: Answered) -> Any:
    try:
        if answer[2] == JSON:
            return msgspec.json.decode(answer[1])
        if answer[2] == MSGPACK:
            return msgspec.msgpack.decode(answer[1])
    except (msgspec.MsgspecError, RecursionError, ValueError):
        pass
    return _UNREAD


def difference(one: Any, other: Any, path: str = "$", depth: int = 32) -> str:
    """The path of the first difference between two decoded values, without the values themselves; "" for none."""
    if depth and isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in one:
            if key not in other:
                return f"{path}.{key}"[:200]
            if found := difference(one[key], other[key], f"{path}.{key}", depth - 1):
                return found
        return next((f"{path}.{key}"[:200] for key in other if key not in one), "")
    if depth and isinstance(one, list) and isinstance(other, list):
        for place, (left, right) in enumerate(zip(one, other, strict=False)):
            if found := difference(left, right, f"{path}[{place}]", depth - 1):
                return found
        return "" if len(one) == len(other) else f"{path}[{min(len(one), len(other))}]"[:200]
    return "" if type(one) is type(other) and one == other else path[:200]
