"""Whether this process has run out of memory: set by the code that runs handlers, read by the watchdog.

Owns: this flag. Leaves to others: the reaction to it (policy.liveness).
"""

from __future__ import annotations

import threading
from typing import Final

#: A handler has raised MemoryError.
exhausted: Final = threading.Event()


def note(exc: BaseException) -> None:
    """Set the flag if a handler raised MemoryError."""
    if isinstance(exc, MemoryError):
        exhausted.set()
