"""What the suites of durable events ask of an engine, in a word each."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from engine_rig import T_S, Hand, Rig

from mesh.engines.contract import Engine
from mesh.events.log import NewEvent
from mesh.tasks.contract import Lease, Queue, QueueInfo


async def subscriber(
    rig: Rig, *patterns: str, name: str = "orders.audit", start: str = "new", credit: int = 100, **said: object
) -> Hand:
    """A worker with one durable handler."""
    return await rig.hand(Queue(name, credit, patterns=patterns, start=start, **said))  # type: ignore[arg-type]


async def append(engine: Engine, *events: NewEvent) -> list[int]:
    return await engine.events.append(events, timeout_s=T_S)


async def subscription(engine: Engine, name: str = "orders.audit") -> QueueInfo:
    return next(queue for queue in await engine.leases.queues(timeout_s=T_S) if queue.name == name)


async def outstanding(engine: Engine, name: str = "orders.audit") -> int:
    """Deliveries that are not made, not begun or not over."""
    info = await subscription(engine, name)
    return info.backlog + info.waiting + info.delayed + info.ready + info.running


def topics(leases: Sequence[Lease]) -> list[str]:
    return [lease.topic for lease in leases]


def bodies(leases: Sequence[Lease]) -> list[object]:
    return [msgspec.msgpack.decode(lease.body) for lease in leases]
