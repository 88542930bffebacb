"""Names that are made, not chosen: instance ids and epochs.

Owns: their shapes. Leaves to others: what they identify.
"""

from __future__ import annotations

import secrets
import time


def instance_id(service: str) -> str:
    """`greeting-3f9ac2d1`: the service's name and 32 random bits: unique among the living."""
    return f"{service}-{secrets.token_hex(4)}"


def epoch() -> int:
    """Milliseconds since 1970 when a process started: of two claims to one id, the later epoch wins."""
    return time.time_ns() // 1_000_000
