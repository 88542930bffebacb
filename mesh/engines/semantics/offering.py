"""Which capability a task or a queue needs of its engine. Pure.

Owns: the rule that maps the fields of a task and of a queue to capabilities.
Leaves to others: refusing (engines, node.durable, worker.requirements), the capabilities themselves.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from mesh.engines.capabilities import Capability
from mesh.engines.contract import not_offered
from mesh.tasks.contract import NewTask, Queue


def lacking(task: NewTask, offered: Collection[Capability]) -> Capability | None:
    """The capability that a task needs and its engine does not offer; None when it offers all."""
    if "queues" not in offered:
        return "queues"
    if task.key and "jobs" not in offered:
        return "jobs"
    if (task.order or task.waits or task.feeds) and "flows" not in offered:
        return "flows"
    return None


def lacking_for(queue: Queue, offered: Collection[Capability]) -> Capability | None:
    """The capability that a subscription to a queue needs and its engine does not offer."""
    source: Capability = "events" if queue.patterns else "queues"
    if source not in offered:
        return source
    if (queue.rate_per_s or queue.concurrency) and "quotas" not in offered:
        return "quotas"
    return None


def check_tasks_offered(tasks: Iterable[NewTask], engine: str, offered: Collection[Capability]) -> None:
    """Raises: NotOffered: the engine lacks a capability that a task needs."""
    for task in tasks:
        if missing := lacking(task, offered):
            raise not_offered(engine, missing)


def check_queues_offered(queues: Iterable[Queue], engine: str, offered: Collection[Capability]) -> None:
    """Raises: NotOffered: the engine lacks a capability that a subscription needs."""
    for queue in queues:
        if missing := lacking_for(queue, offered):
            raise not_offered(engine, missing)
