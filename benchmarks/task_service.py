"""The service whose tasks are measured."""

from __future__ import annotations

import mesh
from benchmarks import tally


class Bench(mesh.Service):
    """Runs tasks that do nothing."""

    name = "bench"

    @mesh.task
    async def nothing(self) -> None:
        """Counted like the tasks of the other contestants."""
        tally.add()
