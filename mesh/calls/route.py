"""A target, taken apart once for all calls to it.

Owns: which service's instances are meant, what they declare of the method, and its counters on the calling side.
Leaves to others: choosing among the instances (choosing), the call (client).
"""

from __future__ import annotations

from mesh.calls.pool import Group
from mesh.telemetry.metrics import MethodStats


class Route:
    """One "service.method".

    Attributes:
        group: the service's instances.
        stats: what this process counts of its calls.
        idempotent, timeout_s: as declared, by the newest record.
        version: of the group, when these were read.
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
        """Read again what instances declare of the method; of several releases, the newest record decides."""
        self.version = self.group.version
        for handle in reversed(self.group.handles.values()):
            record = handle.instance.methods.get(self.method)
            if record is not None:
                self.idempotent = record.idempotent
                self.timeout_s = record.timeout_s
                return
