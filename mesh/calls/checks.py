"""Validation of targets, timeouts and metadata, at the place where a call is made.

Owns: their limits. Leaves to others: arguments (signature), sending the call (client).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from mesh.config.values import read_seconds
from mesh.errors import BadRequest
from mesh.protocol.deadline import MAX_BUDGET_MS

#: Seconds, or text with a unit: 2.5, "2s", "250ms", "1m30s".
Duration = float | int | str

#: The longest "service.method", in characters.
MAX_TARGET: Final = 500
#: The largest `meta`, in bytes and in entries.
MAX_META: Final = 16 * 1024
MAX_META_ENTRIES: Final = 256
#: The longest timeout in seconds: the largest that the wire format can express.
LONGEST_S: Final = MAX_BUDGET_MS / 1000


def split_target(target: str) -> tuple[str, str]:
    """Split a target into service and method.

    Raises:
        BadRequest: the target is not of the form "service.method", is too long, or is not printable.
    """
    service, dot, method = target.rpartition(".")
    if not dot or not service or not method:
        raise BadRequest(f'{target[:100]!r} is not a target: write "service.method"')
    if not target.isprintable() or len(target) > MAX_TARGET:
        raise BadRequest(f"{target[:100]!r} is not a target: it is too long, or not printable")
    return service, method


def seconds(what: str, option: str, value: Any) -> float:
    """Convert a duration into seconds.

    Raises:
        BadRequest: the value is not a duration; the message names `what` it was for, and the option.
    """
    try:
        return read_seconds(value)
    except ValueError as exc:
        raise BadRequest(
            f'{what}: {option}={value!r} is not a time: write seconds, or text like "250ms", "2s" or "1m30s"'[:300]
        ) from exc


def bounded(target: str, deadline_at: float, now: float) -> float:
    """The deadline, at most LONGEST_S from now.

    Raises:
        BadRequest: the deadline is infinite or NaN.
    """
    if not math.isfinite(deadline_at):
        raise BadRequest(f"{target}: a timeout is a number of seconds; every call has a deadline")
    return min(deadline_at, now + LONGEST_S)


def check_trace(trace: str) -> None:
    """Raise BadRequest for text that cannot be a traceparent. (`traces.accept` checks incoming ones fully.)"""
    if not trace.isascii() or len(trace) > 200:
        raise BadRequest(f"{trace[:100]!r} is not a traceparent")


def check_meta(meta: Mapping[str, str]) -> None:
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
            f"metadata has {len(meta)} entries and {size} bytes; the limits are {MAX_META_ENTRIES} and {MAX_META}"
        )
