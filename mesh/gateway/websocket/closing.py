"""How a WebSocket ends: the code and the reason of its close frame.

Owns: the table of codes. Pure. Leaves to others: sending it (session).

The reason is the error's code, such as `forbidden`; the texts of errors may be long, and are for the log. For a client
that should connect again it continues with the number of milliseconds to wait: `draining;retry_ms=1250`. The waits
differ, so that the clients of a gateway that restarts do not all come back at once.

Source: RFC 6455, section 7.4.1, and the registry of close codes that it defines.
"""

from __future__ import annotations

from typing import Final

from mesh.errors import MeshError

NORMAL: Final = 1000
UNSUPPORTED: Final = 1003
INVALID: Final = 1007
POLICY: Final = 1008
TOO_BIG: Final = 1009
INTERNAL: Final = 1011
RESTART: Final = 1012
LATER: Final = 1013

#: By the code of the error.
_BY_CODE: Final = {
    "bad_arguments": INVALID,
    "too_large": TOO_BIG,
    "draining": RESTART,
    "link_lost": RESTART,
    "deadline_exceeded": RESTART,
    "unavailable": LATER,
    "overloaded": LATER,
    "circuit_open": LATER,
    "slow_reader": LATER,
}
#: The waits are spread over this many milliseconds.
SPREAD_MS: Final = 2000


def close_of(error: MeshError, random: float) -> tuple[int, bytes]:
    """The code and the reason for an error.

    Args:
        random: from 0.0 to 1.0, for the wait.
    """
    code = _BY_CODE.get(error.code, POLICY if 400 <= error.status < 500 else INTERNAL)
    reason = error.code[:80]
    if code in (RESTART, LATER):
        reason = f"{reason};retry_ms={int(SPREAD_MS * random)}"
    return code, reason.encode("ascii", "replace")
