"""Whether this process has run out of memory: set by whatever runs handlers, read by the watchdog.

Owns: that one flag. Leaves to others: what follows (policy.liveness).
"""

from __future__ import annotations

import threading
from typing import Final

#: A handler has raised MemoryError.
exhausted: Final = threading.Event()


def note(exc: BaseException) -> None:
    """Note what a handler raised."""
    if isinstance(exc, MemoryError):
        exhausted.set()
