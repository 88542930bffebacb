"""Which engine serves which capability, in one process.

Owns: making the engines of [engines], one object for each name, at first use; errors at start for an engine without
the capability that it is chosen for, and errors at use for capabilities that cannot be committed together.
Leaves to others: what engines do (contract), how each is made (`Makers`), when they are closed (service.node).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NoReturn

from mesh.clock import Clock
from mesh.config import Settings
from mesh.config.settings import EngineSettings
from mesh.engines.capabilities import CAPABILITIES, KEY_OF, REQUIRED, Capability, Key
from mesh.engines.contract import Engine
from mesh.errors import NotOffered
from mesh.events.log import EventLog
from mesh.locks.contract import Locks
from mesh.schedules.contract import Schedules
from mesh.state.contract import StateStore
from mesh.tasks.engine import Jobs, Queues
from mesh.telemetry.logs import get_logger

log = get_logger("mesh.engines")

Makers = Mapping[str, Callable[[], Engine]]

#: The capabilities of each engine, known without importing it or connecting to its server.
OFFERED: Final[Mapping[str, frozenset[Capability]]] = {
    "sqlite": frozenset(CAPABILITIES),
    "memory": frozenset(CAPABILITIES),
}


class Engines:
    """The engines of one process."""

    def __init__(
        self, chosen: EngineSettings, makers: Makers, offered: Mapping[str, frozenset[Capability]] = OFFERED
    ) -> None:
        """Check the choice; nothing is opened.

        Raises:
            NotOffered: an engine lacks a capability that it is chosen for; the message names the engines that have it.
        """
        self._chosen: dict[Key, str] = {
            "tasks": chosen.tasks,
            "events": chosen.events,
            "state": chosen.state,
            "schedules": chosen.schedules,
            "locks": chosen.locks,
        }
        self._makers = makers
        self._offered = offered
        self._made: dict[str, Engine] = {}
        problems = []
        for key, name in self._chosen.items():
            capability = REQUIRED[key]
            if capability not in offered.get(name, frozenset()):
                able = ", ".join(sorted(other for other, offers in offered.items() if capability in offers))
                problems.append(f'engines.{key}: "{name}" offers no {capability}; those that do: {able}')
        if problems:
            raise NotOffered("\n".join(problems))

    def name_of(self, capability: Capability) -> str:
        """The name of the engine that [engines] sets for a capability."""
        return self._chosen[KEY_OF[capability]]

    def offers(self, capability: Capability) -> bool:
        """Whether the engine of this capability offers it."""
        return capability in self._offered[self.name_of(capability)]

    def check(self, capability: Capability) -> None:
        """Raises: NotOffered: the engine of this capability does not offer it."""
        if not self.offers(capability):
            raise NotOffered(f'engines.{KEY_OF[capability]}: "{self.name_of(capability)}" offers no {capability}')

    def of(self, capability: Capability) -> Engine:
        """The engine of a capability; made at first use."""
        name = self._chosen[KEY_OF[capability]]
        engine = self._made.get(name)
        if engine is None:
            engine = self._made[name] = self._makers[name]()
        return engine

    def joint(self, capabilities: Iterable[Capability]) -> Engine:
        """The engine that commits these together.

        Raises:
            NotOffered: there is none; the message gives the reason.
        """
        wanted = sorted(capabilities, key=CAPABILITIES.index)
        names = {KEY_OF[capability]: self.name_of(capability) for capability in wanted}
        if len(set(names.values())) > 1:
            self._refuse(names)
        engine = self.of(wanted[0])
        if not engine.together.issuperset(wanted):
            self._refuse(names)
        return engine

    def _refuse(self, names: Mapping[Key, str]) -> NoReturn:
        listed = ", ".join(f"{key} in {name}" for key, name in names.items())
        raise NotOffered(
            f"these cannot be committed together: {listed}. Choose one engine for all of them in [engines] "
            "(sqlite can), or do them one after the other, outside of atomic"
        )

    @property
    def queues(self) -> Queues:
        return self.of("queues").queues

    @property
    def jobs(self) -> Jobs:
        return self.of("jobs").jobs

    @property
    def events(self) -> EventLog:
        return self.of("events").events

    @property
    def state(self) -> StateStore:
        return self.of("state").state

    @property
    def schedules(self) -> Schedules:
        return self.of("schedules").schedules

    @property
    def locks(self) -> Locks:
        return self.of("locks").locks

    @property
    def made(self) -> tuple[Engine, ...]:
        """The engines in use."""
        return tuple(self._made.values())

    async def close(self) -> None:
        """Close the engines in use. Idempotent."""
        for engine in self._made.values():
            await engine.close()


def makers(settings: Settings, *, client: Any, clock: Clock, rng: random.Random) -> Makers:
    """How the engines of a real process are made; `client` calls the store (mesh.calls.client.Client)."""

    def sqlite() -> Engine:
        from mesh.engines.sqlite.client import StoreEngine

        return StoreEngine(client, clock, rng=rng)

    def memory() -> Engine:
        from mesh.engines.memory import Memory, MemoryEngine

        log.warning("the engine in memory is this process's own, and ends with it: it is for tests")
        own = Memory(
            clock,
            lease_s=settings.store.lease_s,
            unknown_after_s=settings.tasks.unknown_after_s,
            retention_s=settings.events.retention_s,
        )

        class OwnMemoryEngine(MemoryEngine):
            async def close(self) -> None:
                await super().close()
                own.close()

        return OwnMemoryEngine(own)

    return {"sqlite": sqlite, "memory": memory}
