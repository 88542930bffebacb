"""Names that are made, not chosen: instance ids, epochs, job ids and etags.

Owns: their shapes. Leaves to others: what they identify.
"""

from __future__ import annotations

import os
import secrets
import time
from typing import Final

#: Random halves of job ids, drawn ahead: asking the kernel for each cost an eighth of deferring a task.
_DRAWN: Final[list[str]] = []
_DRAW: Final = 256
# Two processes must not draw from one heap.
os.register_at_fork(after_in_child=_DRAWN.clear)


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
    try:
        # Atomic, so any thread may ask.
        half = _DRAWN.pop()
    except IndexError:
        drawn = os.urandom(8 * _DRAW).hex()
        # Descending, to be taken from the end: ids of one millisecond go to the end of an index, too, mostly.
        _DRAWN.extend(sorted((drawn[at : at + 16] for at in range(0, len(drawn), 16)), reverse=True))
        half = secrets.token_hex(8)
    return f"{time.time_ns() // 1_000_000:012x}{half}"


def etag() -> str:
    """16 random hexadecimal digits for one version of a value."""
    return secrets.token_hex(8)
