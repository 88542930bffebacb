"""What every process that answers calls can be asked, whatever it runs: `$worker.metrics`, `.info` and `.logs`.

Owns: these methods. Leaves to others: answering them (calls.server), asking (gateway, command line).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import msgspec

from mesh.calls.client import WORKER
from mesh.calls.method import Method
from mesh.calls.signature import Signature
from mesh.telemetry import recent_lines

if TYPE_CHECKING:
    from mesh.service.node import Node

#: Never limited by a service's gate, so that a full worker can still be seen.
CONTROL_LIMIT = 64


class RecentLog(msgspec.Struct, frozen=True):
    """What `$worker.logs` answers.

    Attributes:
        next: what to ask `since` for next time.
        lines: JSON lines, oldest first; none of a process that writes to a file.
    """

    next: int
    lines: list[str]


def control_methods(node: Node) -> list[Method]:
    """The methods, to be hosted with CONTROL_LIMIT."""

    async def metrics() -> dict[str, Any]:
        """What this process counts: a mesh.telemetry.snapshot.Snapshot as plain values."""
        return node.recorder.snapshot()

    async def info() -> dict[str, Any]:
        """What this process is and has in hand."""
        return describe(node)

    async def logs(since: int = 0) -> RecentLog:
        """The last log lines of a process that writes to no file."""
        recent = recent_lines.recent
        return RecentLog(*recent.since(since)) if recent is not None else RecentLog(0, [])

    methods = []
    for run in (metrics, info, logs):
        target = f"{WORKER}.{run.__name__}"
        signature = Signature(run, target, bound=True)
        methods.append(
            Method(
                target=target,
                service=WORKER,
                name=run.__name__,
                run=run,
                decode_args=signature.decode_args,
                encode_result=signature.encode_result,
                idempotent=True,
            )
        )
    return methods


def describe(node: Node) -> dict[str, Any]:
    """A process as plain values."""
    server = node.server
    return {
        "identity": node.identity,
        "epoch": node.epoch,
        "pid": os.getpid(),
        "host": node.settings.mesh.host,
        "in_hand": server.in_hand if server is not None else 0,
        "callers": server.callers if server is not None else [],
        "waiting": node.client.parked(),
        "leaving": server is not None and server.leaving is not None,
        "hubs": [{"endpoint": hub.endpoint, "link": hub.link, "view": hub.view} for hub in node.agent.hubs_status()],
    }
