"""Which of this host's processes are ready: registered, and answering calls.

Owns: this check. supervisor's RUNNING only means that a process has not ended in its first second.
Leaves to others: the registry (discovery), calls (node.node), the list of processes (control).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

from mesh.discovery.record import Instance
from mesh.errors import MeshError
from mesh.node.node import Node

#: A ready worker answers in milliseconds; a worker with a blocked loop is asked again at the next poll.
ANSWER_S: Final = 2.0


class Readiness:
    """The readiness of the processes of this host, as seen by one node."""

    def __init__(self, node: Node) -> None:
        self.node = node
        # One answer is enough: a process that hangs later is a different problem.
        self._answered: set[tuple[str, int]] = set()

    @property
    def heard(self) -> bool:
        """Whether a hub has sent the registry."""
        return self.node.agent.synced

    def instances(self) -> dict[int, list[Instance]]:
        """This host's instances, by process."""
        found: dict[int, list[Instance]] = {}
        for instance in self.node.table:
            if instance.host == self.node.settings.mesh.host:
                found.setdefault(instance.pid, []).append(instance)
        return found

    async def answering(self, pids: Iterable[int]) -> set[int]:
        """Those of `pids` that are in the registry and have answered, now or in an earlier poll."""
        known = self.instances()
        asked = [pid for pid in pids if pid in known]
        answers = await asyncio.gather(*(self._answers(known[pid][0]) for pid in asked))
        return {pid for pid, answered in zip(asked, answers, strict=True) if answered}

    async def _answers(self, instance: Instance) -> bool:
        key = (instance.id, instance.epoch)
        if key not in self._answered:
            try:
                await self.node.call("$worker.info", instance=instance.id, timeout=ANSWER_S)
            except MeshError:
                return False
            self._answered.add(key)
        return True
