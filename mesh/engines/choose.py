"""Which engine serves which capability, in one process.

Owns: making the engines of [engines], one object for each name, at first use; errors at start for an engine without
the capability that it is chosen for, and errors at use for what an engine lacks or cannot commit together.
Leaves to others: what engines do (contract), their specs (registry), what services need (worker.requirements), when
engines are closed (node.node).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from mesh.engines.capabilities import CAPABILITIES, KEY_OF, KEYS, REQUIRED, Capability, Key
from mesh.engines.contract import Engine
from mesh.engines.registry import EngineContext, EngineSpec, Makers, find, listed, offering
from mesh.errors import NotOffered
from mesh.events.log import EventLog
from mesh.locks.contract import Locks
from mesh.schedules.contract import Schedules
from mesh.state.contract import StateStore
from mesh.tasks.engine import Jobs, Queues


class Engines:
    """The engines of one process.

    An engine that is chosen for a key itself must offer what the key stands for. The `default` need not offer
    everything: what it lacks is refused where it is used.
    """

    def __init__(self, context: EngineContext, makers: Makers | None = None) -> None:
        """Check the choice; nothing is opened.

        Args:
            makers: factories that replace those of some engines, by name.

        Raises:
            NotOffered: an engine lacks a capability that it is chosen for; the message names the engines that have it.
            ConfigError: an engine cannot be loaded.
        """
        self._context = context
        self._makers = makers or {}
        self._made: dict[str, Engine] = {}
        self._able: dict[Capability, list[str]] = {}
        self._settings = context.mesh
        chosen = self._settings.engines
        specs: dict[str, EngineSpec] = {}
        self._specs: dict[Key, EngineSpec] = {}
        problems = []
        for key in KEYS:
            name = getattr(chosen, key)
            if name not in specs:
                specs[name] = find(name, self._settings.root)
            self._specs[key] = specs[name]
            needed = REQUIRED[key]
            if name != chosen.default and needed not in specs[name].capabilities:
                problems.append(self.not_offered(needed))
        if problems:
            raise NotOffered("\n".join(each.message for each in problems), details=problems[0].details)

    # --- what is offered ----------------------------------------------------------------------------------

    def name_of(self, capability: Capability, key: Key | None = None) -> str:
        """The name of the engine that [engines] sets for a capability."""
        return self._specs[key or KEY_OF[capability]].name

    def offers(self, capability: Capability, key: Key | None = None) -> bool:
        """Whether the engine that is chosen for a capability offers it.

        Args:
            key: the key of [engines], where it is not that of the capability: the quotas of durable subscriptions are
                those of the engine of events.
        """
        return capability in self._specs[key or KEY_OF[capability]].capabilities

    @property
    def names(self) -> frozenset[str]:
        """The names of the chosen engines."""
        return frozenset(spec.name for spec in self._specs.values())

    def capabilities(self, key: Key) -> frozenset[Capability]:
        """All that the engine of a key offers."""
        return frozenset(self._specs[key].capabilities)

    def check(self, capability: Capability, what: str = "", key: Key | None = None) -> None:
        """Args:
        what: the use, for the message: "orders.charge is a task".
        key: see `offers`.

        Raises:
            NotOffered: the chosen engine does not offer the capability.
        """
        if not self.offers(capability, key):
            raise self.not_offered(capability, what, key)

    def not_offered(self, capability: Capability, what: str = "", key: Key | None = None) -> NotOffered:
        """The error for a capability that the chosen engine lacks; it names the engines that have it."""
        name = self.name_of(capability, key)
        key = key or KEY_OF[capability]
        able = self._able.get(capability)
        if able is None:
            # Once: the list of installed packages is read from disk.
            able = self._able[capability] = offering(capability, self._settings)
        use = f"{what}: " if what else ""
        return NotOffered(
            f'{use}engines.{key}: the engine "{name}" offers no {capability}; engines that do: {", ".join(able)}',
            details={"capability": capability, "engine": name, "key": f"engines.{key}", "offered_by": able},
        )

    def commits(self, capabilities: Collection[Capability]) -> bool:
        """Whether one engine commits these together."""
        specs = {self._specs[KEY_OF[capability]].name: self._specs[KEY_OF[capability]] for capability in capabilities}
        return len(specs) == 1 and set(capabilities) <= set(next(iter(specs.values())).together)

    def check_joint(self, capabilities: Iterable[Capability]) -> None:
        """As `joint`, without making the engine."""
        wanted = list(capabilities)
        if wanted and not self.commits(wanted):
            raise self._apart(wanted)

    # --- the engines --------------------------------------------------------------------------------------

    def of(self, capability: Capability) -> Engine:
        """The engine of a capability; made at first use.

        Raises:
            NotOffered: it does not offer the capability.
        """
        spec = self._specs[KEY_OF[capability]]
        if capability not in spec.capabilities:
            raise self.not_offered(capability)
        engine = self._made.get(spec.name)
        if engine is None:
            make = self._makers.get(spec.name)
            engine = self._made[spec.name] = make() if make is not None else spec.engine(self._context)
        return engine

    def joint(self, capabilities: Iterable[Capability]) -> Engine:
        """The engine that commits these together.

        Raises:
            NotOffered: there is none; the message gives the reason.
        """
        wanted = sorted(capabilities, key=CAPABILITIES.index)
        if len({self.name_of(capability) for capability in wanted}) > 1:
            raise self._apart(wanted)
        engine = self.of(wanted[0])
        if not engine.together.issuperset(wanted):
            raise self._apart(wanted)
        return engine

    def _apart(self, capabilities: Iterable[Capability]) -> NotOffered:
        wanted = sorted(capabilities, key=CAPABILITIES.index)
        names = {str(KEY_OF[capability]): self.name_of(capability) for capability in wanted}
        able = sorted(row.name for row in listed(self._settings) if row.spec and set(wanted) <= set(row.spec.together))
        shown = ", ".join(f"{key} in {name}" for key, name in names.items())
        return NotOffered(
            f"these capabilities cannot be committed together: {shown}. Choose one engine for all of them in [engines] "
            f"({', '.join(able)} can), or do them one after the other, outside of atomic",
            details={"capability": "atomic", "engines": names, "offered_by": able},
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
