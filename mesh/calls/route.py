"""A parsed target, shared by all calls to it.

Owns: the group of the service's instances, what they declare about the method, and its metrics on the calling side.
Leaves to others: choosing among the instances (choosing), the call (client).
"""

from __future__ import annotations

from mesh.calls.pool import Group
from mesh.telemetry.metrics import MethodStats


class Route:
    """One "service.method".

    Attributes:
        group: the service's instances.
        stats: metrics of this process's calls to the method.
        idempotent, timeout_s: as the newest record declares them.
        version: the group's version when they were read.
    """

    __slots__ = ("group", "idempotent", "method", "stats", "target", "timeout_s", "version")

    def __init__(self, target: str, method: str, group: Group, stats: MethodStats) -> None:
        self.target = target
        self.method = method
        self.group = group
        self.stats = stats
        self.idempotent = False
        self.timeout_s: float | None = None
        self.version = -1

    def refresh(self) -> None:
        """Read again what the instances declare about the method; the newest record decides between releases."""
        self.version = self.group.version
        # What a canary declares does not apply to the calls of the regular release.
        for canary in (False, True):
            for handle in reversed(self.group.handles.values()):
                record = handle.instance.methods.get(self.method)
                if record is not None and (handle.share is not None) is canary:
                    self.idempotent = record.idempotent
                    self.timeout_s = record.timeout_s
                    return
