"""Log lines of one kind that come by the thousand, such as those of an access log: written in batches.

Owns: rendering such lines without the general machinery, and one write for all lines of a moment.
Leaves to others: the form of lines and the sink (logs).

When the process is killed, the lines of the last FLUSH_S are lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVarTuple

from mesh.telemetry import logs

Values = TypeVarTuple("Values")

#: How long a line may wait.
FLUSH_S: Final = 0.05


class BatchedLines(Generic[*Values]):
    """Lines at level info of one logger. It belongs to one event loop.

    Args:
        name: of the logger.
        event: of every line.
        members: makes the fields of a line from its values, as the members of a JSON object.
        fields: makes the same fields for a form that is not JSON.
    """

    def __init__(
        self,
        name: str,
        event: str,
        members: Callable[[*Values], str],
        fields: Callable[[*Values], dict[str, Any]],
    ) -> None:
        self._name = name
        self._event = event
        self._members = members
        self._fields = fields
        self._log = logs.get_logger(name)
        self._setup = 0
        self._render: Callable[[str], str] | None = None
        self._waiting: list[str] = []

    def add(self, *values: *Values) -> None:
        """Log one line."""
        if self._setup != logs.setup_number():
            self._setup = logs.setup_number()
            self._render = logs.line_of(self._name, "info", self._event)
        if self._render is None:
            # Another form than JSON, or a level above: as every other line.
            self._log.info(self._event, **self._fields(*values))
            return
        if not self._waiting:
            asyncio.get_running_loop().call_later(FLUSH_S, self.flush)
        self._waiting.append(self._render(self._members(*values)))

    def flush(self) -> None:
        """Write what waits."""
        waiting, self._waiting = self._waiting, []
        if waiting:
            logs.write(waiting)
