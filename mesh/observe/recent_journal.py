"""The log lines of processes without a log file, requested from the processes themselves.

`journal` reads files; `telemetry.recent_lines` keeps lines in memory.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from mesh.discovery.record import Instance
from mesh.errors import MeshError
from mesh.node.control import RecentLog
from mesh.node.node import Node
from mesh.observe import unsupervised
from mesh.supervisord.journal import Line, read_line

#: A process with a blocked loop is skipped once.
ANSWER_S: Final = 1.0


class RecentJournal:
    """The last log lines of this host's registered processes, as one journal."""

    def __init__(self, node: Node, names: Sequence[str]) -> None:
        """
        Args:
            node: a connected node.
            names: services or instance ids to show; none means all.
        """
        self._node = node
        self._names = frozenset(names)
        self._next: dict[str, int] = {}

    def chosen(self) -> list[Instance]:
        """One instance of each process to read lines from."""
        instances = [each for each in self._node.table if not self._names or self._names & {each.service, each.id}]
        pids = {each.pid for each in unsupervised.processes(instances, self._node.settings.mesh.host)}
        return list({each.pid: each for each in instances if each.pid in pids}.values())

    async def new(self) -> list[Line]:
        """The lines since the last call, in the order of time."""
        found = await asyncio.gather(*(self._ask(each.id) for each in self.chosen()))
        return list(heapq.merge(*found, key=lambda line: line.at))

    async def _ask(self, instance: str) -> list[Line]:
        since = self._next.get(instance, 0)
        try:
            answer: Any = await self._node.call("$worker.logs", since, instance=instance, timeout=ANSWER_S)
            log = msgspec.convert(answer, RecentLog)
        except (MeshError, msgspec.ValidationError):
            return []  # it is leaving, or runs an earlier release
        self._next[instance] = log.next
        return [read_line(instance, text) for text in log.lines]
