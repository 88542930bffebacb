"""Who of this host's processes is ready: it is in the registry, and it answers when it is asked.

Owns: that question. RUNNING, to supervisor, means only that a process has not ended in its first second.
Leaves to others: the registry (discovery), asking (service.node), which processes there are (control).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

from mesh.discovery.record import Instance
from mesh.errors import MeshError
from mesh.service.node import Node

#: A ready worker answers in milliseconds; one whose loop is held up for so long is asked again at the next look.
ANSWER_S: Final = 2.0


class Readiness:
    """What one node sees of the processes of its own host."""

    def __init__(self, node: Node) -> None:
        self.node = node
        # Once is enough: what answered and then hangs is another trouble than not being up.
        self._answered: set[tuple[str, int]] = set()

    @property
    def heard(self) -> bool:
        """Whether a hub has told who lives."""
        return self.node.agent.synced

    def instances(self) -> dict[int, list[Instance]]:
        """This host's instances, by process."""
        found: dict[int, list[Instance]] = {}
        for instance in self.node.table:
            if instance.host == self.node.settings.mesh.host:
                found.setdefault(instance.pid, []).append(instance)
        return found

    async def answering(self, pids: Iterable[int]) -> set[int]:
        """Those of `pids` that are in the registry and have answered, now or at an earlier look."""
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
