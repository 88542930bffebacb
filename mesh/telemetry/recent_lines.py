"""The last log lines of a process without a log file; `mesh logs` requests them.

Under supervisor each process has a log file. A process that was started by hand writes to its terminal, where no other
command can read it; it also keeps its last lines in memory.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import Final

#: At 200 bytes a line some 100 KB.
MAX_LINES: Final = 500
#: A longer line (a deep traceback) is cut, so that MAX_LINES also limits the memory.
MAX_LINE_CHARACTERS: Final = 16_384


class RecentLines:
    """A bounded buffer of numbered lines, oldest first."""

    __slots__ = ("_lines", "_next")

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=MAX_LINES)
        self._next = 0

    def add(self, line: str) -> None:
        """Add a line; the oldest line is dropped when there are MAX_LINES."""
        self._lines.append(line[:MAX_LINE_CHARACTERS])
        self._next += 1

    def since(self, number: int) -> tuple[int, list[str]]:
        """The lines from the `number`-th on that are still kept, and the number of the next line."""
        first = self._next - len(self._lines)
        return self._next, list(islice(self._lines, max(0, number - first), None))


#: The lines of this process; None while it writes to a file.
recent: RecentLines | None = None


def keep() -> None:
    """Keep the lines of this process from now on."""
    global recent
    recent = recent or RecentLines()
