"""Limits idle traffic from one peer: legal messages that request no work.

Owns: the rule. Leaves to others: which messages count (caller, callee, discovery.hub), closing the link (transport).

The credit of a link bounds calls. It does not bound pings, empty messages, or messages about calls that have ended,
and reading those costs the reader more than sending them costs the sender.
"""

from __future__ import annotations

from typing import Final

from mesh.errors import ProtocolViolation

#: Messages allowed at once. A link with 4,096 calls that are all cancelled as their answers arrive needs half of it.
BURST: Final = 20_000
#: Messages per second allowed permanently. Peers of mesh send a few.
RATE: Final = 2_000.0
#: The count of a ZeroMQ message without any request: to read it costs as much as many messages inside of one. 4,096
#: calls are cancelled in 256 ZeroMQ messages, which is within BURST.
FRAME: Final = 40


class Flood(ProtocolViolation):
    """A peer sent more than its allowance: its link is closed at once, without a goodbye, to stop the flood."""


class Allowance:
    """A leaky bucket: messages fill it, and it drains at RATE."""

    __slots__ = ("_at", "_level")

    def __init__(self) -> None:
        self._level = 0.0
        self._at = 0.0

    def take(self, count: int, now: float) -> bool:
        """Count `count` messages; returns whether they are within the allowance."""
        self._level = max(0.0, self._level - (now - self._at) * RATE) + count
        self._at = now
        return self._level <= BURST
