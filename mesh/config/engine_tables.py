"""[engines.NAME]: the settings that an engine declares for itself.

Owns: which engines are named, reading their tables, variables and flags by the type in their specs, and the errors for
engines that do not exist or cannot be loaded.
Leaves to others: finding and loading specs (config.engines), single values (config.load), the keys that choose engines
(config.settings).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from mesh.config.complaints import no_such
from mesh.config.engines import BUILT_IN, Spec, source_of, sources
from mesh.config.entries import ENTRIES, Entry, entries_of
from mesh.config.places import Key
from mesh.errors import ConfigError
from mesh.suggest import suggestion

PREFIX = "MESH_ENGINES_"


class Reading(NamedTuple):
    """The parts of one reading of the settings that are used here.

    Attributes:
        root: the project's directory.
        sources: dotted key -> where its value comes from.
        at: the place of a key in the file.
        problem: adds an error: (place, dotted key, what); complain: adds one that has its place already.
        table: reads a table of the file: (prefix, table, entries, into).
        value: reads one value: (dotted key, entry, value, origin, into).
        flag: reads a value that was given in code: as `value`, without the origin.
    """

    root: Path
    sources: Mapping[str, str]
    at: Callable[[Key], str]
    problem: Callable[[str, str, str], None]
    complain: Callable[[str], None]
    table: Callable[[Key, Mapping[str, Any], Mapping[str, Entry], dict[str, Any]], None]
    value: Callable[[str, Entry, Any, str, dict[str, Any]], None]
    flag: Callable[[str, Entry, Any, dict[str, Any]], None]


class EngineTables:
    """The tables, variables and flags of engines, collected first and read when it is known which engines are chosen.

    Attributes:
        file: name -> its table; variables: name -> value; flags: "NAME.KEY" -> value.
        failed: after `read`: the names of engines that do not exist or cannot be loaded.
    """

    def __init__(self) -> None:
        self.file: dict[str, Mapping[str, Any]] = {}
        self.variables: dict[str, str] = {}
        self.flags: dict[str, Any] = {}
        self.failed: set[str] = set()

    def read(self, reading: Reading, chosen: Mapping[str, str]) -> dict[str, msgspec.Struct]:
        """The settings of each engine that has some: the name in its spec -> its settings.

        Args:
            chosen: key of [engines] -> the name that it has.
        """
        specs = self._specs(reading, chosen)
        entries = {name: entries_of(spec.settings) for name, spec in specs.items() if spec.settings is not None}
        values: dict[str, dict[str, Any]] = {name: {} for name in entries}
        for name, table in self.file.items():
            if name in entries:
                reading.table(("engines", name), table, entries[name], values[name])
            elif name in specs:
                # The embedded engine has its settings in [store], as the process that owns its files has.
                advice = "; those of the store are in [store]" if name == "sqlite" else ""
                reading.problem(reading.at(("engines", name)), f"engines.{name}", f"has no settings of its own{advice}")
        self._variables(reading, entries, values)
        self._flags(reading, entries, values)
        found = {}
        for name in entries:
            made = _made(reading, name, specs[name], self._given(name, entries[name]), values[name])
            if made is not None:
                found[name] = made
        return found

    def _specs(self, reading: Reading, chosen: Mapping[str, str]) -> dict[str, Spec]:
        """The specs of the engines that are chosen or have a table, by the names in them."""
        wanted: dict[str, tuple[str, str]] = {}
        for key, name in chosen.items():
            wanted.setdefault(name, (reading.sources.get(f"engines.{key}", "default"), f"engines.{key}"))
        specs: dict[str, Spec] = {}
        for name, (place, dotted) in wanted.items():
            # The specs of built-in engines import what a process that uses none does not need.
            if name not in BUILT_IN or name in self.file or self._mentions(name):
                self._load(reading, name, place, dotted, specs)
        for name in (*self.file, *dict.fromkeys(key.rpartition(".")[0] for key in self.flags)):
            if name not in specs and name not in chosen.values():
                self._load(reading, name, reading.at(("engines", name)), f"engines.{name}", specs)
        return specs

    def _load(self, reading: Reading, name: str, place: str, dotted: str, into: dict[str, Spec]) -> None:
        try:
            spec = source_of(name).load(reading.root)
        except ConfigError as exc:
            self.failed.add(name)
            reading.problem(place, dotted, exc.message)
            return
        if into.setdefault(spec.name, spec) is not spec:
            self.failed.add(name)
            reading.problem(place, dotted, f'the engine "{name}" has the same name as another one: "{spec.name}"')

    def _given(self, name: str, entries: Mapping[str, Entry]) -> dict[str, bool]:
        """The keys of an engine: whether a value was given, right or wrong."""
        return {
            key: key in self.file.get(name, {})
            or _variable(name) + key.upper() in self.variables
            or not {f"{name}.{key}", f"{name}.{entry.attribute}"}.isdisjoint(self.flags)
            for key, entry in entries.items()
        }

    def _mentions(self, name: str) -> bool:
        return any(each.startswith(_variable(name)) for each in self.variables)

    def _variables(
        self, reading: Reading, entries: Mapping[str, Mapping[str, Entry]], values: Mapping[str, dict[str, Any]]
    ) -> None:
        known = {
            _variable(name) + key.upper(): (name, key, entry)
            for name, its in entries.items()
            for key, entry in its.items()
        }
        unknown = []
        for variable, value in self.variables.items():
            if variable in known:
                name, key, entry = known[variable]
                reading.value(f"engines.{name}.{key}", entry, value, variable, values[name])
            else:
                unknown.append(variable)
        if not unknown:
            return
        others = [_variable(name) for name in sources() if name not in entries and name not in BUILT_IN]
        all_known = [*known, *(f"{PREFIX}{key.upper()}" for key in ENTRIES["engines"])]
        for variable in unknown:
            # A variable for an engine that is installed and not chosen is for another project on this machine.
            if not variable.startswith(tuple(others)):
                reading.complain(f"{variable}: no key has this name{suggestion(variable, all_known)}")

    def _flags(
        self, reading: Reading, entries: Mapping[str, Mapping[str, Entry]], values: Mapping[str, dict[str, Any]]
    ) -> None:
        for dotted, value in self.flags.items():
            name, _, key = dotted.rpartition(".")
            its = entries.get(name, {})
            key = next((k for k, entry in its.items() if entry.attribute == key), key)
            if key in its:
                reading.flag(f"engines.{name}.{key}", its[key], value, values[name])
            else:
                reading.problem(f"--{key.replace('_', '-')}", f"engines.{dotted}", no_such("key", key, its))


def _made(
    reading: Reading, name: str, spec: Spec, given: Mapping[str, bool], values: dict[str, Any]
) -> msgspec.Struct | None:
    place = reading.at(("engines", name))
    missing = [each for each in msgspec.structs.fields(spec.settings) if each.required and each.name not in values]
    for key in (each.encode_name for each in missing):
        # A wrong value was reported already.
        if not given[key]:
            what = f"is missing: set it in [engines.{name}], or {_variable(name)}{key.upper()}"
            reading.problem(place, f"engines.{name}.{key}", what)
    if missing:
        return None
    rooted = {key: reading.root / value if isinstance(value, Path) else value for key, value in values.items()}
    try:
        made: msgspec.Struct = spec.settings(**rooted)
    except (TypeError, ValueError) as exc:
        reading.problem(place, f"engines.{name}", str(exc))
        return None
    return made


def _variable(name: str) -> str:
    """How the variables of an engine begin."""
    return f"{PREFIX}{name.upper().replace('-', '_')}_"
