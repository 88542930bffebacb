"""What an engine is to mesh: its name, its capabilities, its settings, and how to make it.

Owns: EngineSpec, the context that a spec makes its engine from, and asking all engines for a capability.
Leaves to others: finding specs by name (config.engines), the contracts (contract), which engine serves what (choose).

An engine is added by one object, in a package that declares an entry point of the group `mesh.engines`, or in a module
of the project; no file of mesh is edited. See docs/engines.md, "Write an engine".

    spec = EngineSpec(
        name="rabbit",
        capabilities=("queues",),
        settings=RabbitSettings,
        make=lambda context: RabbitEngine(context.settings.url, context.clock),
    )
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from mesh.clock import Clock
from mesh.config import Settings
from mesh.config.engines import Source, is_engine_name, source_of, sources
from mesh.config.entries import entries_of
from mesh.engines.capabilities import CAPABILITIES, JOINABLE, Capability
from mesh.engines.contract import Engine
from mesh.errors import ConfigError, SetupError
from mesh.telemetry.metrics import Recorder


class EngineContext(NamedTuple):
    """What an engine is made from, in one process.

    Attributes:
        settings: the engine's own, of the type in its spec; None when it has none.
        mesh: all settings.
        client: makes calls (mesh.calls.client.Client); the embedded engine calls its store by it.
        clock, rng: all time and randomness come from these, so that tests can turn the one and repeat the other.
        recorder: the metrics of this process.
    """

    settings: Any
    mesh: Settings
    client: Any
    clock: Clock
    rng: random.Random
    recorder: Recorder


class EngineSpec(msgspec.Struct, frozen=True, kw_only=True):
    """An engine that can be chosen in [engines].

    Attributes:
        name: in mesh.toml, in messages and metrics: lower-case letters, digits, - and _.
        capabilities: what it offers.
        together: those of "queues", "events", "state" and "schedules" that one unit may mix (Engine.commit).
        settings: the type of [engines.NAME]: a frozen msgspec.Struct, each attribute with
            `Annotated[type, kind, "description"]` and a kind of mesh.config.values.
        make: makes the engine for one process, without connecting to anything: called at its first use.
        about: one line for `mesh engines`.

    Raises:
        SetupError: a value is not allowed.
    """

    name: str
    capabilities: Collection[Capability]
    make: Callable[[EngineContext], Engine]
    together: Collection[Capability] = ()
    settings: type[msgspec.Struct] | None = None
    about: str = ""

    def __post_init__(self) -> None:
        offered = set(self.capabilities)
        if not is_engine_name(self.name):
            self._refuse(
                "its name may have lower-case letters, digits, - and _ only, and must not be a key of [engines]"
            )
        if unknown := sorted(offered - set(CAPABILITIES)):
            self._refuse(f"unknown capability {unknown[0]!r}; the capabilities are {', '.join(CAPABILITIES)}")
        if not offered:
            self._refuse("it offers no capability")
        if offered & {"jobs", "flows"} and "queues" not in offered:
            self._refuse("jobs and flows require the capability queues")
        if "quotas" in offered and not offered & {"queues", "events"}:
            self._refuse("quotas require the capability queues or events")
        if not set(self.together) <= offered & JOINABLE:
            self._refuse(
                f"together may contain only those of its capabilities that are among {', '.join(sorted(JOINABLE))}"
            )
        if self.settings is not None:
            unread = {field.name for field in msgspec.structs.fields(self.settings)}
            unread -= {entry.attribute for entry in entries_of(self.settings).values()}
            if unread:
                self._refuse(f'the setting {min(unread)!r} is not Annotated[type, kind, "description"]')

    def _refuse(self, why: str) -> None:
        raise SetupError(f"the engine {self.name!r}: {why}")

    def engine(self, context: EngineContext) -> Engine:
        """Make the engine, with its own settings (or their defaults) in place of those of the context.

        Raises:
            ConfigError: a setting without a default is missing.
        """
        own = context.mesh.engines.own.get(self.name)
        if own is None and self.settings is not None:
            try:
                own = self.settings()
            except TypeError as exc:
                # Settings that were not read by mesh.config.load.
                raise ConfigError(f"engines.{self.name}: {exc}; set it in [engines.{self.name}]") from exc
        return self.make(context._replace(settings=own))


class Listed(NamedTuple):
    """One engine of the list of all.

    Attributes:
        name: as it can be chosen.
        source: where it comes from.
        spec: None when it cannot be loaded; `error` says why.
    """

    name: str
    source: Source
    spec: EngineSpec | None
    error: str = ""


def find(name: str, root: Path) -> EngineSpec:
    """The spec of an engine that [engines] names.

    Args:
        name: of the engine, or "module:attribute".
        root: the project's directory.

    Raises:
        ConfigError: there is no such engine, or it cannot be loaded.
    """
    source = source_of(name)
    spec = source.load(root)
    if not isinstance(spec, EngineSpec):
        raise ConfigError(f'the engine "{name}": {source.reference} is not an EngineSpec (mesh.engines.registry)')
    return spec


def listed(settings: Settings) -> list[Listed]:
    """All engines: built in, from packages, and those that mesh.toml names by a reference; broken ones with errors."""
    chosen = settings.engines
    named = (chosen.default, chosen.tasks, chosen.events, chosen.state, chosen.schedules, chosen.locks)
    found = {**sources(), **{name: source_of(name) for name in named if ":" in name}}
    rows = []
    for name, source in found.items():
        try:
            rows.append(Listed(name, source, find(name, settings.root)))
        except ConfigError as exc:
            rows.append(Listed(name, source, None, exc.message))
    return rows


def offering(capability: Capability, settings: Settings) -> list[str]:
    """The names of the engines that offer a capability, sorted. Loads all engines: for messages."""
    return sorted(row.name for row in listed(settings) if row.spec and capability in row.spec.capabilities)


#: Replacements of the factories of some engines, by their names: for tests.
Makers = Mapping[str, Callable[[], Engine]]
