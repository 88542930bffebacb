"""The control methods of every process that answers calls: `$worker.metrics`, `.info` and `.logs`.

Owns: these methods. Leaves to others: serving them (calls.server), calling them (gateway, command line).
"""

from __future__ import annotations

import os
from typing import Any, Protocol

import msgspec

from mesh.calls.client import WORKER, Client
from mesh.calls.method import Method
from mesh.calls.server import Server
from mesh.calls.signature import Signature
from mesh.config import Settings
from mesh.discovery.agent import Agent
from mesh.discovery.http_address import META
from mesh.telemetry import recent_lines
from mesh.telemetry.metrics import Recorder

#: Separate from the limits of services, so that an overloaded worker can still be inspected.
CONTROL_LIMIT = 64


class Described(Protocol):
    """The parts of a node that its control methods show; see mesh.node.node.Node."""

    identity: str
    epoch: int
    settings: Settings
    recorder: Recorder
    client: Client
    agent: Agent
    server: Server | None


class RecentLog(msgspec.Struct, frozen=True):
    """The answer of `$worker.logs`.

    Attributes:
        next: the value of `since` for the next call.
        lines: JSON lines, oldest first; empty for a process that logs to a file.
    """

    next: int
    lines: list[str]


def control_methods(node: Described) -> list[Method]:
    """The control methods, to be hosted with CONTROL_LIMIT."""

    async def metrics() -> dict[str, Any]:
        """The metrics of this process: a mesh.telemetry.snapshot.Snapshot as plain values."""
        return node.recorder.snapshot()

    async def info() -> dict[str, Any]:
        """The identity, current load and hub links of this process."""
        return describe(node)

    async def logs(since: int = 0) -> RecentLog:
        """The last log lines of a process that does not log to a file."""
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


def describe(node: Described) -> dict[str, Any]:
    """The description of a process, as plain values."""
    server = node.server
    return {
        "identity": node.identity,
        "epoch": node.epoch,
        "pid": os.getpid(),
        "host": node.settings.mesh.host,
        "in_hand": server.in_hand if server is not None else 0,
        "callers": server.callers if server is not None else [],
        "waiting": node.client.parked(),
        # A process that asks this one can be sure of these addresses; a record alone may come from any process.
        "http": {record.id: record.meta[META] for record in node.agent.registered() if META in record.meta},
        "leaving": server is not None and server.leaving is not None,
        "hubs": [{"endpoint": hub.endpoint, "link": hub.link, "view": hub.view} for hub in node.agent.hubs_status()],
    }
