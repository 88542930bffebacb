"""The log of requests: all of them when `gateway.access_log` is set, slow and failed ones always.

Owns: which request is logged, the fields of its line, and limiting the lines about failures.
Leaves to others: measuring (server), the answer to the client (problems), finding lines by their trace (cli.logs).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

from aiohttp import hdrs

from mesh.config import Settings
from mesh.errors import MeshError
from mesh.gateway.clients import Clients
from mesh.gateway.problems import is_hidden
from mesh.gateway.request import Request
from mesh.telemetry.batched import BatchedLines
from mesh.telemetry.logs import get_logger, json_text

_log = get_logger(__name__)

#: Failures logged per second; of further ones only the number is logged. A line costs some 20 µs, during overload.
MOST_PER_SECOND: Final = 100

#: The maximum length of a path, and of an error's text, in one line.
_LONGEST: Final = 500

#: For texts that come again and again: the addresses of clients, and names of methods.
_known_text: Final = lru_cache(4096)(json_text)


class RequestLog:
    """The request log of one gateway.

    Args:
        now: the monotonic clock, in seconds.
    """

    def __init__(self, settings: Settings, clients: Clients, now: Callable[[], float]) -> None:
        self.slow_s = settings.log.slow_s
        self.form = settings.gateway.access_log
        self.every = self.form != "off"
        self._clients = clients
        self._now = now
        self._answered = BatchedLines(__name__, "request.answered", _members, _fields)
        self._second = 0
        self._lines = 0
        self._suppressed = 0

    def write(
        self, request: Request, status: int, size: int, seconds: float, error: MeshError | None, *, slow: bool
    ) -> None:
        """Log one request, if required.

        Args:
            size: bytes of the answer's body.
            error: why it failed or was rejected.
            slow: it took longer than `log.slow`, and it is not a stream or a request to wait.
        """
        failed = status >= 500 or (error is not None and is_hidden(error))
        if self.form == "combined":
            sys.stdout.write(self._combined(request, status, size))
            sys.stdout.flush()
        if not (failed or slow):
            if self.form == "json":
                self._answered.add(*self._values(request, status, size, seconds))
            return
        second = int(self._now())
        if second != self._second:
            self._second, self._lines = second, 0
        self._lines += 1
        if self._lines > MOST_PER_SECOND:
            self._suppressed += 1
            return
        fields = _fields(*self._values(request, status, size, seconds))
        if error is not None:
            fields["code"] = error.code
            fields["error"] = str(error)[:_LONGEST]
        if self._suppressed:
            fields["suppressed"], self._suppressed = self._suppressed, 0
        # A stream that fails has already sent its head, with another status.
        ended = max(status, error.status) if error is not None and request.failure is error else status
        event = "request.failed" if ended >= 500 else "request.refused" if failed else "request.slow"
        (_log.error if ended == 500 else _log.warning)(event, **fields)

    def flush(self) -> None:
        """Write the lines that wait, before the process ends."""
        self._answered.flush()

    def _values(
        self, request: Request, status: int, size: int, seconds: float
    ) -> tuple[str, str, int, float, str, int, int, str]:
        """The arguments of `_fields`, without references to the request: a line may be rendered later."""
        raw = request.raw
        client = self._clients.of(raw)
        return raw.method, raw.raw_path, status, seconds, client, request.body_bytes, size, request.target

    def _combined(self, request: Request, status: int, size: int) -> str:
        """The line of Apache's "combined" format."""
        headers = request.headers
        version = request.raw.version
        at = datetime.now(UTC).strftime("%d/%b/%Y:%H:%M:%S +0000")
        asked = f"{request.method} {request.raw.raw_path} HTTP/{version.major}.{version.minor}"
        referrer, agent = headers.get(hdrs.REFERER, "-"), headers.get(hdrs.USER_AGENT, "-")
        return (
            f'{self._clients.of(request.raw)} - - [{at}] "{_quoted(asked)}" {status} {size or "-"} '
            f'"{_quoted(referrer)}" "{_quoted(agent)}"\n'
        )


def _fields(
    method: str, target: str, status: int, seconds: float, client: str, bytes_in: int, bytes_out: int, called: str
) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "method": method,
        "path": target.partition("?")[0][:_LONGEST],
        "status": status,
        "duration_ms": round(seconds * 1000, 2),
        "client": client,
        "bytes_in": bytes_in,
        "bytes_out": bytes_out,
    }
    if called:
        fields["target"] = called
    return fields


def _members(
    method: str, target: str, status: int, seconds: float, client: str, bytes_in: int, bytes_out: int, called: str
) -> str:
    """The same as the members of a JSON object."""
    path = json_text(target.partition("?")[0][:_LONGEST])
    called = f',"target":{_known_text(called)}' if called else ""
    return (
        f'"method":"{method}","path":{path},"status":{status},"duration_ms":{seconds * 1000:.2f},'
        f'"client":{_known_text(client)},"bytes_in":{bytes_in},"bytes_out":{bytes_out}{called}'
    )


def _quoted(text: str) -> str:
    """Escape text for a quoted field, so that it cannot end the field or the line."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return escaped.encode("ascii", "backslashreplace").decode() if escaped.isprintable() else ascii(escaped)[1:-1]
