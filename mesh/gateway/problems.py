"""Errors as `application/problem+json` (RFC 9457).

Owns: the members of a problem, Retry-After and Allow. Pure.
Leaves to others: the tree of errors with codes and statuses (mesh.errors), logging what nobody foresaw (server).
"""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec

from mesh.errors import MeshError
from mesh.gateway.media import PROBLEM_TYPE
from mesh.gateway.reply import Reply, phrase

_encode: Final = msgspec.json.Encoder().encode

#: Seconds that a client is told to wait when the error does not say: about as long as a restart takes.
RETRY_AFTER_S: Final = 1

_WAIT: Final = frozenset({429, 503})


class Unforeseen(MeshError):
    """What a client sees of an exception that is none of ours: nothing of its inside."""

    code = "internal_error"
    status = 500

    def __init__(self) -> None:
        super().__init__("the gateway failed to answer; its log tells why")


def problem(error: MeshError, trace: str | None = None) -> dict[str, Any]:
    """The members of the problem.

    Args:
        trace: the traceparent of the request; its trace id finds the request in logs.
    """
    members: dict[str, Any] = {
        "type": "about:blank",
        "title": phrase(error.status),
        "status": error.status,
        "detail": error.message,
        "code": error.code,
        "retryable": error.retryable,
    }
    if error.type_name != type(error).__name__:
        # A handler's own exception, known here by name only.
        members["exception"] = error.type_name
    if error.details:
        members["details"] = error.details
    if trace is not None:
        members["trace_id"] = trace[3:35]
    return members


def problem_json(error: MeshError, trace: str | None = None) -> bytes:
    """The problem as JSON. Details that JSON cannot hold are left out."""
    members = problem(error, trace)
    try:
        return _encode(members)
    except (TypeError, ValueError):
        members.pop("details", None)
        members["detail"] = str(members["detail"]).encode("utf-8", "replace").decode()
        return _encode(members)


def problem_reply(error: MeshError, trace: str | None = None) -> Reply:
    """The HTTP answer for an error."""
    extra = b""
    if error.status in _WAIT:
        extra = b"Retry-After: %d\r\n" % _retry_after(error)
    elif error.status == 405:
        extra = f"Allow: {error.details.get('allow', '')}\r\n".encode("latin-1", "replace")
    return Reply(problem_json(error, trace), PROBLEM_TYPE, error.status, extra)


def _retry_after(error: MeshError) -> int:
    told = error.details.get("retry_after_s")
    if isinstance(told, (int, float)) and 0 <= told <= 86_400:
        return math.ceil(told)
    return RETRY_AFTER_S
