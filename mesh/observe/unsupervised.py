"""Processes of this host that no supervisor runs: started by hand, as in the tutorial's three terminals.

The registry names them. They are shown as supervised ones are; only starting, stopping and scaling need supervisor.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable

from mesh.discovery.record import Instance
from mesh.supervisord.control import RUNNING, Process


def processes(instances: Iterable[Instance], host: str, supervised: Collection[int] = ()) -> list[Process]:
    """One for each process of this host that is in the registry and not among `supervised` (pids).

    Its name is the id of its first instance, its program that instance's service.
    """
    found: dict[int, Process] = {}
    for instance in sorted(instances, key=lambda each: (each.service, each.id)):
        if instance.host != host or not instance.pid or instance.pid in supervised or instance.pid in found:
            continue
        found[instance.pid] = Process(
            name=instance.id,
            program=instance.service,
            state=RUNNING,
            pid=instance.pid,
            up_s=max(0.0, time.time() - instance.epoch / 1000),
            trouble="",
            log="",
        )
    return list(found.values())
