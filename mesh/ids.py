"""Generated identifiers: instance ids, epochs, job ids and etags.

Owns: their formats. Leaves to others: what they identify.
"""

from __future__ import annotations

import os
import secrets
import time
from typing import Final

#: Random halves of job ids, drawn in advance: one system call for each took an eighth of the time to defer a task.
_DRAWN: Final[list[str]] = []
_DRAW: Final = 256
#: The latest millisecond and its digits: a busy process makes many ids in one.
_stamp: tuple[int, str] = (0, "")
# A forked child must not use the halves that its parent has drawn.
os.register_at_fork(after_in_child=_DRAWN.clear)


def instance_id(service: str) -> str:
    """`greeting-3f9ac2d1`: the service's name and 32 random bits; unique among running instances."""
    return f"{service}-{secrets.token_hex(4)}"


def epoch() -> int:
    """Start time of a process in milliseconds since 1970. When two processes claim one id, the later epoch wins."""
    return time.time_ns() // 1_000_000


def job_id() -> str:
    """28 hexadecimal digits for a job, event or unit: 48 bits of milliseconds, so that later ones sort later and
    neighbours stay together in an index, and 64 random bits.
    """
    global _stamp
    try:
        # list.pop is atomic, so any thread may call this.
        half = _DRAWN.pop()
    except IndexError:
        drawn = os.urandom(8 * _DRAW).hex()
        # Descending, as `pop` takes from the end: most ids of one millisecond then also go to the end of an index.
        _DRAWN.extend(sorted((drawn[at : at + 16] for at in range(0, len(drawn), 16)), reverse=True))
        half = secrets.token_hex(8)
    now_ms = time.time_ns() // 1_000_000
    stamp = _stamp
    if stamp[0] != now_ms:
        # One tuple, so that no thread sees the digits of another millisecond.
        stamp = _stamp = now_ms, f"{now_ms:012x}"
    return stamp[1] + half


def etag() -> str:
    """16 random hexadecimal digits for one version of a value."""
    return secrets.token_hex(8)
