"""How much idle traffic one peer may cause: messages that are legal and ask for nothing.

Owns: the rule. Leaves to others: which messages count (caller, callee, discovery.hub), cutting the link (transport).

Calls are bounded by the credit of a link. Pings, empty messages, and messages about calls that are over are not, and
reading them costs the reader more than sending them costs the sender.
"""

from __future__ import annotations

from typing import Final

from mesh.errors import ProtocolViolation

#: So many at once. A link with 4,096 calls that are all cancelled as their answers arrive needs half of it.
BURST: Final = 20_000
#: So many a second, for ever. mesh's own peers send a few.
RATE: Final = 2_000.0
#: What a ZeroMQ message counts that holds nothing else: to read it costs as much as many messages inside of one. 4,096
#: calls are cancelled in 256 of them, which is within BURST.
FRAME: Final = 40


class Flood(ProtocolViolation):
    """A peer sent more than its allowance: it is cut without last words, as each moment lets more of it in."""


class Allowance:
    """A leaky bucket: filled by messages, emptied by time."""

    __slots__ = ("_at", "_level")

    def __init__(self) -> None:
        self._level = 0.0
        self._at = 0.0

    def take(self, count: int, now: float) -> bool:
        """Count so many messages; whether that is still within the allowance."""
        self._level = max(0.0, self._level - (now - self._at) * RATE) + count
        self._at = now
        return self._level <= BURST
