"""Every error that mesh raises: one tree, branched by what the caller should do.

Owns: the classes, their stable codes, HTTP statuses and retry advice, and their form on the wire.
Leaves to others: when an error is raised, and how a gateway renders it (application/problem+json).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

#: Characters of a message. Longer text is a dump and belongs in the log of the process that raised the error.
MAX_MESSAGE = 4000

Details = Mapping[str, Any]


class MeshError(Exception):
    """The root of the tree.

    Attributes:
        code: stable name of the kind of error; safe to compare with and to alert on.
        status: the HTTP status a gateway answers with.
        retryable: whether the same request may succeed later or elsewhere.
        details: small map of plain values, for example `{"path": "$.name"}`.
        from_call: True when a call or stream ended with this error; False when the running code raised it.
    """

    code: str = "error"
    status: int = 500
    retryable: bool = False
    from_call: bool = False
    #: One line of advice, shown by the command line under the message.
    advice: ClassVar[str] = ""

    def __init__(self, message: str = "", *, details: Details | None = None) -> None:
        super().__init__(message or self.code.replace("_", " "))
        self.details: dict[str, Any] = dict(details or {})

    @property
    def message(self) -> str:
        """The human-readable message, without the class name."""
        return str(self.args[0]) if self.args else ""

    @property
    def type_name(self) -> str:
        """The class name in the process that raised the error."""
        return type(self).__name__

    def to_wire(self) -> dict[str, Any]:
        """The map that travels in an `error` or `refused` message."""
        wire: dict[str, Any] = {
            "code": self.code,
            "message": _plain_text(self.message),
            "type": self.type_name,
            "status": self.status,
            "retry": self.retryable,
        }
        if self.details:
            wire["details"] = _plain_values(self.details)
        return wire


def _plain_text(text: str) -> str:
    """Text that any peer can read: at most MAX_MESSAGE characters, without lone surrogates (file names have them)."""
    return text[:MAX_MESSAGE].encode("utf-8", "replace").decode()


def _plain_values(details: Details) -> dict[str, Any]:
    """The `details` of a service's error as values that MessagePack and JSON can encode; other values become text."""
    try:
        plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(details, enc_hook=str))
    # A value's own `__str__` or `__repr__` may raise anything; the error itself must reach its caller all the same.
    except Exception as exc:
        return {"unreadable": f"the details of this error cannot be written: {type(exc).__name__}"}
    return plain


# --- the request is wrong: correct it -------------------------------------------------------------


class BadRequest(MeshError):
    """The request itself is wrong; sending it again will not help."""

    code = "bad_request"
    status = 400


class BadArguments(BadRequest):
    """An argument is missing, unknown, or of the wrong type; `details["path"]` says which."""

    code = "bad_arguments"


class Unauthenticated(BadRequest):
    """The request has no credential, or a wrong one, and this requires a caller; authenticate and send it again."""

    code = "unauthenticated"
    status = 401


class Forbidden(BadRequest):
    """[access] does not allow this caller to call this method; nothing was done."""

    code = "forbidden"
    status = 403


class UnknownService(BadRequest):
    """No hub lists a service of this name."""

    code = "unknown_service"
    status = 404


class UnknownMethod(BadRequest):
    """The service has no method of this name."""

    code = "unknown_method"
    status = 404


class UnknownRoute(BadRequest):
    """No service declares this HTTP path."""

    code = "unknown_route"
    status = 404


class MethodNotAllowed(BadRequest):
    """The path exists, but not for this HTTP verb."""

    code = "method_not_allowed"
    status = 405


class TooLarge(BadRequest):
    """A body is larger than the limit that the message names."""

    code = "too_large"
    status = 413


class UnsupportedMedia(BadRequest):
    """This path does not accept the Content-Type of the request."""

    code = "unsupported_media"
    status = 415


class ShapeMismatch(BadRequest):
    """A stream method was called as a plain call, or a plain method as a stream."""

    code = "shape_mismatch"


class Conflict(BadRequest):
    """The object to change is not in the state that the request assumes (its etag, a schedule); read it again."""

    code = "conflict"
    status = 409


class UnknownJob(BadRequest):
    """No job has this id: it never existed, or its retention is over."""

    code = "unknown_job"
    status = 404


# --- try again, later or elsewhere ----------------------------------------------------------------


class TryLater(MeshError):
    """Nothing was done; the same request may succeed later or elsewhere."""

    code = "try_later"
    status = 503
    retryable = True


class Unavailable(TryLater):
    """No instance of the service could be reached in time."""

    code = "unavailable"


class Overloaded(TryLater):
    """The service is at its limit of work; it refuses the request at once."""

    code = "overloaded"


class CircuitOpen(TryLater):
    """The breaker of the method is open: its calls have failed or were slow, and this one was not made."""

    code = "circuit_open"


class RateLimited(TryLater):
    """The caller has sent too many requests; `details["retry_after_s"]` says when the next one is admitted."""

    code = "rate_limited"
    status = 429


class Draining(TryLater):
    """The instance is shutting down and accepts no new work."""

    code = "draining"


class Unwritable(TryLater):
    """The engine's disk is full, read-only or broken. Nothing was written; reads still work."""

    code = "unwritable"
    status = 507


class LockTaken(TryLater):
    """Another owner holds the lock; `details["owner"]` names it."""

    code = "lock_taken"
    status = 423


# --- the work may have been done: check before you repeat it --------------------------------------


class Uncertain(MeshError):
    """The work may have been done; only an idempotent request may be repeated blindly."""

    code = "uncertain"
    status = 502


class LinkLost(Uncertain):
    """The connection broke after the call was sent and before its answer came."""

    code = "link_lost"


class DeadlineExceeded(Uncertain):
    """The caller's deadline has passed."""

    code = "deadline_exceeded"
    status = 504


class Cancelled(Uncertain):
    """The caller cancelled the call, and the callee stopped it."""

    code = "cancelled"
    status = 499


class LeaseLost(Uncertain):
    """This worker no longer holds the lease on a task: another worker runs it, or it has ended. Nothing was written."""

    code = "lease_lost"
    status = 409


class LockLost(Uncertain):
    """This owner no longer holds the lock; another owner may already use the resource that it protects."""

    code = "lock_lost"
    status = 409


# --- the other side failed ------------------------------------------------------------------------


class ServiceError(MeshError):
    """A failure of a handler. Services subclass it to give their errors a code and a status.

    ::

        class OutOfStock(mesh.ServiceError):
            code = "out_of_stock"
            status = 409
    """

    code = "handler_error"
    status = 500


class RemoteError(ServiceError):
    """Raised in the caller when a handler raised: carries the type name, message and code of the original exception.

    The original object never crosses the wire.
    """

    def __init__(
        self,
        message: str = "",
        *,
        type_name: str = "Exception",
        code: str = "handler_error",
        status: int = 500,
        retryable: bool = False,
        details: Details | None = None,
    ) -> None:
        super().__init__(message, details=details)
        self._type_name = type_name
        self.code = code
        self.status = status
        self.retryable = retryable

    @property
    def type_name(self) -> str:
        return self._type_name

    def __str__(self) -> str:
        return f"{self._type_name}: {self.message}"


class JobFailed(ServiceError):
    """A job became a dead letter; message and `details` describe the last attempt."""

    code = "job_failed"


class JobCancelled(ServiceError):
    """A job was cancelled before it completed."""

    code = "job_cancelled"
    status = 409


class BadReply(MeshError):
    """The answer is not of the type that the caller's annotation promises."""

    code = "bad_reply"
    status = 502


class ProtocolViolation(MeshError):
    """A peer sent a message that docs/wire.md does not allow."""

    code = "protocol_violation"
    status = 502


# --- the set-up of this process is wrong ----------------------------------------------------------


class SetupError(MeshError):
    """This process cannot start or continue as configured."""

    code = "setup_error"


class ConfigError(SetupError):
    """A key or value in mesh.toml, the environment or a flag is wrong; the message names the line."""

    code = "config_error"


class NotOffered(SetupError):
    """An engine does not support what was requested; the message names the engines that do.

    `details` has "capability", "engine" and "offered_by"; at the start of a worker also "service" and "method".
    """

    code = "not_offered"
    status = 501


class AddressInUse(SetupError):
    """Another live process listens on this endpoint."""

    code = "address_in_use"


class BadEndpoint(SetupError):
    """An endpoint is malformed, or an ipc path is longer than the operating system allows."""

    code = "bad_endpoint"


def _tree(root: type[MeshError]) -> dict[str, type[MeshError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found.update(_tree(child))
    return found


#: Framework errors by code: the caller gets the class that the callee raised. Any other code becomes a RemoteError.
BY_CODE: dict[str, type[MeshError]] = {
    code: cls
    for code, cls in _tree(MeshError).items()
    if not issubclass(cls, (ServiceError, SetupError)) and cls is not MeshError
}


def from_wire(wire: Mapping[str, Any]) -> MeshError:
    """The exception for an error map that a peer sent; unknown fields are ignored, missing fields get defaults."""
    code = str(wire.get("code") or "handler_error")
    message = str(wire.get("message") or "")
    details = wire.get("details")
    details = details if isinstance(details, Mapping) else None
    known = BY_CODE.get(code)
    status = wire.get("status")
    error = (
        known(message, details=details)
        if known is not None
        else RemoteError(
            message,
            type_name=str(wire.get("type") or "Exception"),
            code=code,
            status=status if isinstance(status, int) and 400 <= status <= 599 else 500,
            retryable=wire.get("retry") is True,
            details=details,
        )
    )
    error.from_call = True
    return error
