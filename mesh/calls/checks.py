"""What a caller may ask for: refused where the call is made, with what is wrong.

Owns: the limits of targets, timeouts and metadata. Leaves to others: arguments (signature), the way of a call (client).
"""

from __future__ import annotations

import math
from typing import Any, Final

from mesh.config.values import read_seconds
from mesh.errors import BadRequest
from mesh.protocol.deadline import MAX_BUDGET_MS

#: Seconds, or text with a unit: 2.5, "2s", "250ms", "1m30s".
Duration = float | int | str

#: No "service.method" is longer, in characters.
MAX_TARGET: Final = 500
#: What `meta` may hold in all, in bytes and in entries: it is a note beside the call, not a body.
MAX_META: Final = 16 * 1024
MAX_META_ENTRIES: Final = 256
#: No deadline is further away, in seconds; what the wire can say.
LONGEST_S: Final = MAX_BUDGET_MS / 1000


def split_target(target: str) -> tuple[str, str]:
    """Service and method.

    Raises:
        BadRequest: it is not of the form "service.method", or cannot be written.
    """
    service, dot, method = target.rpartition(".")
    if not dot or not service or not method:
        raise BadRequest(f'{target[:100]!r} is no target: write "service.method"')
    if not target.isprintable() or len(target) > MAX_TARGET:
        raise BadRequest(f"{target[:100]!r} is no target: it cannot be written")
    return service, method


def seconds(what: str, option: str, value: Any) -> float:
    """A duration in seconds.

    Raises:
        BadRequest: it is none; the message names `what` it was for, and the option.
    """
    try:
        return read_seconds(value)
    except ValueError as exc:
        raise BadRequest(
            f'{what}: {option}={value!r} is not a time: write seconds, or text like "250ms", "2s" or "1m30s"'[:300]
        ) from exc


def bounded(target: str, deadline_at: float, now: float) -> float:
    """The deadline, cut when it is absurd: every call ends some time.

    Raises:
        BadRequest: it is no instant.
    """
    if not math.isfinite(deadline_at):
        raise BadRequest(f"{target}: a timeout is a number of seconds; every call has a deadline")
    return min(deadline_at, now + LONGEST_S)


def check_trace(trace: str) -> None:
    """Raises BadRequest for what cannot be a traceparent. (`traces.accept` looks closer, where one comes in.)"""
    if not trace.isascii() or len(trace) > 200:
        raise BadRequest(f"{trace[:100]!r} is no traceparent")


def check_meta(meta: dict[str, str]) -> None:
    size = 0
    for name, value in meta.items():
        if type(name) is not str or type(value) is not str:
            raise BadRequest(f"metadata maps strings to strings, not {name!r} to {value!r}")
        try:
            size += len(name.encode()) + len(value.encode())
        except UnicodeEncodeError as exc:
            raise BadRequest(f"metadata {name!r} is not valid Unicode") from exc
    if size > MAX_META or len(meta) > MAX_META_ENTRIES:
        raise BadRequest(
            f"metadata of {len(meta)} entries, {size} bytes; {MAX_META_ENTRIES} and {MAX_META} are the most"
        )
