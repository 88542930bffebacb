"""The timeout and the id of a request, from its headers.

Owns: reading X-Request-Timeout and X-Request-Id. Pure.
Leaves to others: what a deadline does (node), reading and making a traceparent (telemetry.traces).
"""

from __future__ import annotations

import re
from typing import Final

from mesh.errors import BadRequest

#: The longest timeout that a request may ask for.
LONGEST_S: Final = 86_400.0

_DURATION: Final = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)\s*(ms|s|m|)\Z")
_UNIT_S: Final = {"": 1.0, "s": 1.0, "ms": 0.001, "m": 60.0}

_REQUEST_ID: Final = re.compile(r"[!-~]{1,128}\Z")


def read_timeout(value: str) -> float:
    """The value of X-Request-Timeout in seconds: `2`, `0.5`, `250ms`, `2s`, `1m`.

    Raises:
        BadRequest: it is malformed, zero, or longer than a day.
    """
    found = _DURATION.match(value.strip())
    seconds = float(found[1]) * _UNIT_S[found[2]] if found else 0.0
    if not 0.0 < seconds <= LONGEST_S:
        raise BadRequest(
            f'X-Request-Timeout: "{value[:40]}" is not a time; write seconds or a unit, such as 2, 0.5, 250ms or 2s',
            details={"path": "header.X-Request-Timeout"},
        )
    return seconds


def read_request_id(value: str) -> bytes:
    """The header line that returns X-Request-Id; empty when the id is not 1 to 128 visible ASCII characters."""
    return f"X-Request-Id: {value}\r\n".encode() if _REQUEST_ID.match(value) else b""
