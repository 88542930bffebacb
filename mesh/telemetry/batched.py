"""Log lines of one kind that come by the thousand, such as those of an access log: rendered and written in batches.

Owns: rendering such lines without the general machinery, and one write for all lines of a moment.
Leaves to others: the form of lines and the sink (logs).

Rendering a thousand lines in one loop costs half of rendering each when it comes, because the processor's caches are
warm. When the process is killed, those of the last FLUSH_S are lost.
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
        fields: makes the fields of a line from its values, up to FLUSH_S later.
    """

    def __init__(self, name: str, event: str, fields: Callable[[*Values], dict[str, Any]]) -> None:
        self._name = name
        self._event = event
        self._fields = fields
        self._log = logs.get_logger(name)
        self._waiting: list[tuple[tuple[str, str], tuple[*Values]]] = []

    def add(self, *values: *Values) -> None:
        """Log one line."""
        at = logs.moment(self._name, "info")
        if at is None:
            # Another form than JSON, or a level above: as every other line.
            self._log.info(self._event, **self._fields(*values))
            return
        if not self._waiting:
            asyncio.get_running_loop().call_later(FLUSH_S, self.flush)
        self._waiting.append((at, values))

    def flush(self) -> None:
        """Write what waits."""
        waiting, self._waiting = self._waiting, []
        if waiting:
            name, event, fields = self._name, self._event, self._fields
            logs.write("\n".join([logs.json_line(name, "info", event, at, fields(*values)) for at, values in waiting]))
