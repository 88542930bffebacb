"""Names that are made, not chosen: instance ids, epochs, job ids and etags.

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


def job_id() -> str:
    """28 hexadecimal digits for a job, event or unit: 48 bits of milliseconds, so that later ones sort later and
    neighbours stay together in an index, and 64 random bits.
    """
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(8)}"


def etag() -> str:
    """16 random hexadecimal digits for one version of a value."""
    return secrets.token_hex(8)
