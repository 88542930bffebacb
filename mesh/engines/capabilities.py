"""The capabilities of engines, and the keys of [engines] that choose an engine for them. Pure.

Owns: the names, which key serves which capability, and what each key requires of its engine.
Leaves to others: the contracts of the capabilities (tasks.engine, events.log, state, schedules, locks).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

#: queues: enqueue, lease with prefetch, ack, nack with delay, dead letters · jobs: status, result, cancel and requeue
#: by id, unique keys · flows: chains, groups, ordering keys · quotas: rate and concurrency over the whole mesh ·
#: events: durable log per topic, positions, replay · state, schedules, locks: see their contracts.
Capability = Literal["queues", "jobs", "flows", "quotas", "events", "state", "schedules", "locks"]
CAPABILITIES: Final[tuple[Capability, ...]] = (
    "queues",
    "jobs",
    "flows",
    "quotas",
    "events",
    "state",
    "schedules",
    "locks",
)

#: A key of [engines].
Key = Literal["tasks", "events", "state", "schedules", "locks"]
KEYS: Final[tuple[Key, ...]] = ("tasks", "events", "state", "schedules", "locks")

#: Which key chooses the engine of a capability. `quotas` of a durable subscription are those of the engine of events.
KEY_OF: Final[Mapping[Capability, Key]] = {
    "queues": "tasks",
    "jobs": "tasks",
    "flows": "tasks",
    "quotas": "tasks",
    "events": "events",
    "state": "state",
    "schedules": "schedules",
    "locks": "locks",
}
#: What an engine must offer to be chosen for a key.
REQUIRED: Final[Mapping[Key, Capability]] = {
    "tasks": "queues",
    "events": "events",
    "state": "state",
    "schedules": "schedules",
    "locks": "locks",
}
#: What can be in one Unit; the other capabilities of an engine have no operation that is committed.
JOINABLE: Final[frozenset[Capability]] = frozenset(("queues", "events", "state", "schedules"))
