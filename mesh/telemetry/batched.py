"""Log lines of one kind that come by the thousand, such as those of an access log: rendered and written in batches.

Owns: rendering such a line without the general machinery, and one write for all lines of a moment.
Leaves to others: the form of lines and the sink (logs).

A line costs a third of what other lines cost. When the process is killed, those of the last FLUSH_S are lost.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from mesh.telemetry import logs

#: How long a line may wait.
FLUSH_S: Final = 0.05


class BatchedLines:
    """Lines at level info of one logger. It belongs to one event loop.

    Args:
        name: of the logger.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._log = logs.get_logger(name)
        self._lines: list[str] = []

    def info(self, event: str, fields: dict[str, Any]) -> None:
        """Log one line."""
        line = logs.json_line(self._name, "info", event, fields)
        if line is None:
            # Another form than JSON, or a level above: as every other line.
            self._log.info(event, **fields)
            return
        if not self._lines:
            asyncio.get_running_loop().call_later(FLUSH_S, self.flush)
        self._lines.append(line)

    def flush(self) -> None:
        """Write what waits."""
        lines, self._lines = self._lines, []
        if lines:
            logs.write("\n".join(lines))
