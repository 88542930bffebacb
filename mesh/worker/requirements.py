"""What the services of a worker need of the engines, and refusing to start when an engine cannot give it.

Owns: the requirements that follow from declarations (tasks, limits, durable handlers, schedules, `uses`).
Leaves to others: which engine offers what (engines.choose), what is used without a declaration (durable, at the use).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mesh.engines.capabilities import CAPABILITIES, JOINABLE, Capability, Key
from mesh.engines.choose import Engines
from mesh.engines.semantics.offering import lacking_for
from mesh.errors import NotOffered
from mesh.service.service import Service
from mesh.worker.workload import Workload

#: What `uses` of a service may name besides capabilities.
ATOMIC = "atomic"


class Requirement(NamedTuple):
    """A need of one service.

    Attributes:
        what: "orders.charge", or "orders" for a whole service.
        reason: what it declares, for the message.
        key: the key of [engines], where it is not that of the capability.
    """

    what: str
    reason: str
    capability: Capability
    key: Key | None = None


def check(services: Sequence[Service], load: Workload, engines: Engines) -> None:
    """Raises:
    NotOffered: an engine cannot give what a service declares; the message has a line for each, with the service and
        method, the capability, and the engines that offer it. `details` are those of the first.
    """
    problems: list[NotOffered] = []
    for need in _requirements(services, load, engines):
        if not engines.offers(need.capability, need.key):
            found = engines.not_offered(need.capability, f"{need.what} {need.reason}", need.key)
            name, _, method = need.what.partition(".")
            found.details |= {"service": name, "method": method}
            problems.append(found)
    for service in services:
        if ATOMIC in type(service).uses:
            problems += _check_atomic(type(service), load, engines)
    if problems:
        raise NotOffered("\n".join(each.message for each in problems), details=problems[0].details)


def _requirements(services: Sequence[Service], load: Workload, engines: Engines) -> Iterator[Requirement]:
    for queue in load.task_queues:
        yield Requirement(queue.name, "is a task", "queues")
        if lacking_for(queue, {"queues"}) == "quotas":
            yield Requirement(queue.name, "declares a rate or concurrency", "quotas")
    for queue in load.subscriptions:
        yield Requirement(queue.name, "handles durable events", "events")
        if lacking_for(queue, {"events"}) == "quotas":
            yield Requirement(queue.name, "declares a rate or concurrency", "quotas", "events")
    for schedule in load.schedules:
        yield Requirement(schedule.name, "has a schedule", "schedules")
        if not engines.commits(("queues", "schedules")):
            # Without one commit of both, the unique key of a due time prevents a second job.
            yield Requirement(schedule.name, "has a schedule that is not committed with its task", "jobs")
    for service in services:
        cls = type(service)
        for capability in CAPABILITIES:
            if capability in cls.uses:
                yield Requirement(cls.name, f"uses {capability}", capability)


def _check_atomic(cls: type[Service], load: Workload, engines: Engines) -> Iterator[NotOffered]:
    """Whether everything that the service declares can be committed together."""
    wanted = {capability for capability in cls.uses if capability in JOINABLE}
    if any(queue.name.startswith(f"{cls.name}.") for queue in load.task_queues):
        wanted.add("queues")
    if any(queue.name.startswith(f"{cls.name}.") for queue in load.subscriptions):
        wanted.add("events")
    wanted.discard("schedules")
    try:
        engines.check_joint(wanted)
    except NotOffered as exc:
        details: dict[str, object] = {**exc.details, "service": cls.name, "method": ""}
        yield NotOffered(f"{cls.name} uses atomic: {exc.message}", details=details)
