"""/metrics for the whole host: one address for Prometheus, whichever gateway answers.

Owns: asking every worker of this host at once, not waiting for the one that hangs, and taking in what processes that
answer no calls have published.
Leaves to others: counting (telemetry.metrics), the text format (telemetry.exposition).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from mesh.errors import MeshError
from mesh.gateway.ports import Node
from mesh.gateway.reply import Reply
from mesh.telemetry import restarts
from mesh.telemetry.metrics import render
from mesh.telemetry.published import published

#: Prometheus gives up after 10 s by default; a worker whose loop is stuck for a second is news by itself.
ANSWER_S: Final = 1.0

#: Rendering takes some 5 µs a line: beyond this many processes it leaves the loop to its requests.
RENDER_HERE: Final = 16

Labels = dict[str, str]


def workers_of(node: Node, host: str) -> dict[str, tuple[str, Labels]]:
    """The workers of this host, by worker id: the instance to ask, and the labels of its metrics."""
    found: dict[str, tuple[str, set[str]]] = {}
    for service in node.table.services():
        for instance in node.table.instances(service):
            if instance.host == host and instance.endpoint:
                worker = instance.worker or instance.id
                found.setdefault(worker, (instance.id, set()))[1].add(service)
    return {
        worker: (asked, {"host": host, "worker": worker, "service": "+".join(sorted(services))})
        for worker, (asked, services) in found.items()
    }


async def metrics_reply(node: Node, host: str, run_dir: Path | None = None) -> Reply:
    """The page. A worker that does not answer in time is left out and counted; `mesh_worker_up` says 0 for it.

    Args:
        run_dir: where processes that answer no calls (hub, supervisor's watch) publish their metrics, and where
            restarts are counted; None shows neither.
    """
    workers = workers_of(node, host)
    _, own = workers.pop(node.identity, ("", {"host": host, "worker": node.identity, "service": "gateway"}))
    others = sorted(workers.items())
    snapshots = await asyncio.gather(*(_ask(node, instance) for _, (instance, _) in others))
    own_snapshot: dict[str, Any] = {**node.recorder.snapshot()}
    if run_dir is not None:
        own_snapshot["counters"] = [*own_snapshot["counters"], *_restarts(run_dir)]
    pages: list[tuple[Mapping[str, str], Mapping[str, Any] | None]] = [(own, own_snapshot)]
    for (worker, (_, labels)), snapshot in zip(others, snapshots, strict=True):
        pages.append((_named(worker, labels, snapshot), snapshot))
    if run_dir is not None:
        pages += [
            ({"host": host, "worker": each.identity, "service": each.role}, each.snapshot)
            for each in published(run_dir)
        ]
    _forget(workers)
    if len(pages) > RENDER_HERE:
        body, content_type = await asyncio.to_thread(render, pages)
    else:
        body, content_type = render(pages)
    return Reply(body, content_type)


#: The process names of workers that have answered once: one that hangs is shown under the name that it had.
_names: Final[dict[str, str]] = {}


def _named(worker: str, labels: Labels, snapshot: Mapping[str, Any] | None) -> Labels:
    if snapshot is None:
        return {**labels, "process": _names.get(worker, "")}
    identity = snapshot.get("identity")
    name = identity.get("name") if isinstance(identity, Mapping) else ""
    if isinstance(name, str) and name:
        _names[worker] = name
    return labels


def _forget(workers: Mapping[str, Any]) -> None:
    for gone in set(_names).difference(workers):
        del _names[gone]


def _restarts(run_dir: Path) -> list[dict[str, Any]]:
    """A worker that ended cannot count that itself: `mesh watch` does, in a file of the host."""
    return [
        {
            "name": restarts.NAME,
            "value": count,
            "labels": {"service": service, "reason": reason, "worker": "", "process": ""},
            "help": restarts.HELP,
        }
        for service, reasons in sorted(restarts.read(run_dir).items())
        for reason, count in sorted(reasons.items())
    ]


async def _ask(node: Node, instance: str) -> Mapping[str, Any] | None:
    try:
        told = await node.call("$worker.metrics", instance=instance, timeout=ANSWER_S)
    except MeshError as exc:
        node.recorder.count("metrics_unanswered", reason=exc.code)
        return None
    return told if isinstance(told, Mapping) else None
