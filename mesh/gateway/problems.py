"""Errors as `application/problem+json` (RFC 9457).

Owns: the members of a problem, the public part of an error, Retry-After and Allow. Pure.
Leaves to others: the tree of errors with codes and statuses (mesh.errors), logging hidden texts (request_log).
"""

from __future__ import annotations

import math
import re
from typing import Any, Final

import msgspec

from mesh.errors import BadRequest, Forbidden, MeshError, RateLimited, RemoteError, TryLater, Uncertain
from mesh.gateway.decompress import READ, UnsupportedEncoding
from mesh.gateway.media import PROBLEM_TYPE
from mesh.gateway.reply import Reply, phrase

_encode: Final = msgspec.json.Encoder().encode

#: Retry-After in seconds when the error has none: about as long as a restart takes.
RETRY_AFTER_S: Final = 1

_WAIT: Final = frozenset({429, 503})
_METHODS: Final = re.compile(r"[A-Z, ]{0,200}")

#: Public texts by code. They replace the error's own text, which may name hosts, instances and addresses.
_PUBLIC: Final = {
    "unavailable": "the service cannot be reached now; send the request again later",
    "overloaded": "the service is at its limit; send the request again later",
    "circuit_open": "the service fails or is too slow now; send the request again later",
    "rate_limited": "there were too many requests; send the request again later",
    "draining": "the server is restarting; send the request again later",
    "try_later": "nothing was done; send the request again later",
    "unwritable": "nothing can be stored now; send the request again later",
    "lock_taken": "another request holds a lock that this one needs; send the request again later",
    "link_lost": "the answer was lost; the request may have been carried out",
    "uncertain": "the answer was lost; the request may have been carried out",
    "deadline_exceeded": "there was no answer in time; the request may have been carried out",
    "cancelled": "the request was cancelled; it may have been carried out in part",
    "bad_gateway": "the server behind this address cannot be reached, or its answer cannot be read",
    "upstream_timeout": "the server behind this address did not answer in time",
    "auth_unavailable": "the credential cannot be checked now; send the request again later",
    "forbidden": "the gateway may not call this",
}
_FAILED: Final = "the request failed; the server's log has the reason under the trace id"


class Unforeseen(MeshError):
    """The public form of an exception that is not a MeshError: it reveals no internals."""

    code = "internal_error"
    status = 500

    def __init__(self) -> None:
        super().__init__(_FAILED)


def is_hidden(error: MeshError) -> bool:
    """Whether the error's text is for the operator only.

    The texts of unexpected exceptions, and the framework's texts about instances and links, are hidden. An error that a
    service declares with a code and a status other than 500 is meant for clients, and so are errors about the client's
    own request.
    """
    if isinstance(error, RateLimited) and not error.from_call:
        return False  # of this gateway: the client must know which limit it has reached
    if isinstance(error, (TryLater, Uncertain, Forbidden)):
        return True
    if isinstance(error, BadRequest):
        return False  # also a 505, which is about the client's version of HTTP
    status = error.status
    return status >= 500 and (status == 500 or not isinstance(error, RemoteError) or error.code == "handler_error")


def public_text(error: MeshError) -> str:
    """The sentence that a client receives when the error's own text is hidden."""
    return _PUBLIC.get(error.code, _FAILED)


class Problems:
    """Converts errors to problems.

    Args:
        debug: show the text of every error, for development.
    """

    def __init__(self, *, debug: bool = False) -> None:
        self.debug = debug

    def members(self, error: MeshError, trace: str | None = None) -> dict[str, Any]:
        """The members of the problem.

        Args:
            trace: the traceparent of the request; its trace id finds the request in logs.
        """
        status = error.status if 400 <= error.status <= 599 else 500
        hidden = not self.debug and is_hidden(error)
        members: dict[str, Any] = {
            "type": "about:blank",
            "title": phrase(status),
            "status": status,
            "detail": public_text(error) if hidden else error.message,
            "code": error.code,
            "retryable": error.retryable,
        }
        if not hidden:
            if error.type_name != type(error).__name__:
                # An exception of a handler; only its name is known here.
                members["exception"] = error.type_name
            if error.details:
                members["details"] = error.details
        if trace is not None:
            members["trace_id"] = trace[3:35]
        return members

    def json(self, error: MeshError, trace: str | None = None) -> bytes:
        """The problem as JSON. Details that JSON cannot represent are left out."""
        members = self.members(error, trace)
        try:
            return _encode(members)
        except (TypeError, ValueError, RecursionError):
            members.pop("details", None)
            members["detail"] = str(members["detail"]).encode("utf-8", "replace").decode()
            return _encode(members)

    def reply(self, error: MeshError, trace: str | None = None) -> Reply:
        """The HTTP answer for an error."""
        extra = b""
        if error.status in _WAIT:
            extra = b"Retry-After: %d\r\n" % _retry_after(error)
        elif error.status == 405:
            # A worker may have sent the error: allow only names of HTTP methods in the head.
            allow = str(error.details.get("allow", ""))
            extra = f"Allow: {allow}\r\n".encode() if _METHODS.fullmatch(allow) else b""
        elif isinstance(error, UnsupportedEncoding):
            extra = f"Accept-Encoding: {READ}\r\n".encode()
        status = error.status if 400 <= error.status <= 599 else 500
        return Reply(self.json(error, trace), PROBLEM_TYPE, status, extra)


def _retry_after(error: MeshError) -> int:
    told = error.details.get("retry_after_s")
    if isinstance(told, (int, float)) and 0 <= told <= 86_400:
        return math.ceil(told)
    return RETRY_AFTER_S
