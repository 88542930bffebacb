"""/metrics for the whole host: one address for Prometheus, whichever gateway answers.

Owns: asking all workers of this host concurrently, with a time limit, and adding the published metrics of processes
that answer no calls.
Leaves to others: counting (telemetry.metrics), the text format (telemetry.exposition).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from mesh.errors import MeshError
from mesh.gateway.front import Front
from mesh.gateway.mounts.contract import Mount
from mesh.gateway.ports import Node
from mesh.gateway.reply import Reply
from mesh.gateway.request import Request
from mesh.telemetry import heartbeats, restarts
from mesh.telemetry.metrics import render
from mesh.telemetry.published import published

#: Prometheus gives up after 10 s by default; a worker with a loop that is blocked for a second counts as down.
ANSWER_S: Final = 1.0

#: Rendering takes some 5 µs a line: with more processes than this it runs in a thread.
RENDER_HERE: Final = 16

Labels = dict[str, str]


def mount(front: Front) -> Mount:
    """/metrics."""
    where = front.settings.mesh

    async def metrics(_: Request) -> Reply:
        return await metrics_reply(front.node, where.host, where.run_dir)

    return Mount(prefix="/metrics", handler=metrics, exact=True)


class Worker(NamedTuple):
    """One process of this host: the instance to ask, its pid (0 when unknown), and the labels of its metrics."""

    instance: str
    pid: int
    labels: Labels


def workers_of(node: Node, host: str) -> dict[str, Worker]:
    """The workers of this host, by worker id."""
    found: dict[str, tuple[str, int, set[str]]] = {}
    for service in node.table.services():
        for instance in node.table.instances(service):
            if instance.host == host and instance.endpoint:
                worker = instance.worker or instance.id
                found.setdefault(worker, (instance.id, instance.pid, set()))[2].add(service)
    return {
        worker: Worker(asked, pid, {"host": host, "worker": worker, "service": "+".join(sorted(services))})
        for worker, (asked, pid, services) in found.items()
    }


async def metrics_reply(node: Node, host: str, run_dir: Path | None = None) -> Reply:
    """The page. A worker that does not answer in time is left out and counted; its `mesh_worker_up` is 0.

    A worker is not on the page when its process has ended, although the registry still has it for the rest of its
    lease: under supervisor the next process of that name is there already.

    Args:
        run_dir: where processes that answer no calls (hub, supervisor's watch) publish their metrics, and where
            restarts are counted; None shows neither.
    """
    workers = workers_of(node, host)
    me = Worker("", 0, {"host": host, "worker": node.identity, "service": "gateway"})
    own = workers.pop(node.identity, me).labels
    others = sorted(workers.items())
    snapshots = await asyncio.gather(*(_ask(node, each.instance) for _, each in others))
    own_snapshot: dict[str, Any] = {**node.recorder.snapshot()}
    if run_dir is not None:
        own_snapshot["counters"] = [*own_snapshot["counters"], *_restarts(run_dir)]
    pages: list[tuple[Mapping[str, str], Mapping[str, Any] | None]] = [(own, own_snapshot)]
    names = _names_by_pid(run_dir) if None in snapshots else {}
    for (worker, each), snapshot in zip(others, snapshots, strict=True):
        if snapshot is not None or not _has_ended(each.pid):
            pages.append((_named(worker, each.labels, snapshot, names.get(each.pid, "")), snapshot))
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


#: The process names of workers that have answered once: a worker that hangs later is shown under this name.
_names: Final[dict[str, str]] = {}


def _has_ended(pid: int) -> bool:
    return pid > 0 and heartbeats.started(pid) == -1


def _names_by_pid(run_dir: Path | None) -> dict[int, str]:
    return {each.pid: each.process for each in heartbeats.read(run_dir)} if run_dir is not None else {}


def _named(worker: str, labels: Labels, snapshot: Mapping[str, Any] | None, name: str) -> Labels:
    if snapshot is None:
        return {**labels, "process": _names.get(worker, name)}
    identity = snapshot.get("identity")
    told = identity.get("name") if isinstance(identity, Mapping) else ""
    if isinstance(told, str) and told:
        _names[worker] = told
    return labels


def _forget(workers: Mapping[str, Any]) -> None:
    for gone in set(_names).difference(workers):
        del _names[gone]


def _restarts(run_dir: Path) -> list[dict[str, Any]]:
    """The restarts of workers, which `mesh watch` counts in a file of the host: an ended worker cannot."""
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
