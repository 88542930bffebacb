"""Which engines there are: built in, from installed packages, from the project; and loading the spec of one.

Owns: finding a spec by the name that mesh.toml uses, importing it, and errors that name package and remedy.
Leaves to others: what a spec contains (mesh.engines.registry), reading the engine's own settings
(config.engine_tables).

A spec is loaded when its engine is chosen, or when all engines are listed; until then only names are known. A package
adds an engine by an entry point of the group `mesh.engines`; a project names "module:attribute" instead.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, runtime_checkable

from mesh.errors import ConfigError
from mesh.suggest import suggest

#: The group of entry points by which packages add engines.
GROUP: Final = "mesh.engines"
#: The engines of mesh itself: name -> "module:attribute" of the spec. See mesh.engines.registry.
BUILT_IN: Final[Mapping[str, str]] = {
    "sqlite": "mesh.engines.sqlite.spec:spec",
    "memory": "mesh.engines.memory.spec:spec",
}
#: Words that are keys of [engines], and so cannot be names of engines.
RESERVED: Final = frozenset(("default", "tasks", "events", "state", "schedules", "locks"))

_NAME: Final = re.compile(r"[a-z][a-z0-9_-]*")
_REFERENCE: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def is_engine_name(name: str) -> bool:
    """Whether an engine may have this name."""
    return _NAME.fullmatch(name) is not None and name not in RESERVED


@runtime_checkable
class Spec(Protocol):
    """The part of mesh.engines.registry.EngineSpec that the configuration uses."""

    @property
    def name(self) -> str: ...
    @property
    def settings(self) -> Any: ...
    @property
    def capabilities(self) -> Any: ...


class Source(NamedTuple):
    """Where an engine comes from.

    Attributes:
        name: of the engine, or the reference by which the project names it.
        reference: "module:attribute" of its spec.
        package: the distribution that provides it; "" for the project's own.
        version: of that distribution.
        rivals: other distributions that provide an engine of this name: then none of them can be chosen.
    """

    name: str
    reference: str
    package: str = ""
    version: str = ""
    rivals: tuple[str, ...] = ()

    @property
    def shown(self) -> str:
        """In words: "built in", "mesh-rabbit 1.2" or "project"."""
        if self.name in BUILT_IN:
            return "built in"
        return f"{self.package} {self.version}".strip() or "project"

    def load(self, root: Path) -> Spec:
        """Import the spec. A project's own is looked for in `root` first.

        Raises:
            ConfigError: it cannot be imported, or is not a spec; the message names the package and the remedy. It has
                neither a place nor a key at its beginning.
        """
        if self.rivals:
            raise ConfigError(
                f'the engine "{self.name}" is provided by {self.shown} and by {", ".join(self.rivals)}: uninstall all '
                "but one of them, or choose another engine"
            )
        module, _, attribute = self.reference.partition(":")
        if not self.package:
            _make_importable(module.partition(".")[0], root)
        try:
            found: Any = importlib.import_module(module)
            for part in attribute.split("."):
                found = getattr(found, part)
        # An entry point of another project may raise anything, SystemExit included.
        except (Exception, SystemExit) as exc:
            raise self._broken(f"{type(exc).__name__}: {exc}") from exc
        if not isinstance(found, Spec):
            raise self._broken(f"{self.reference} is not an EngineSpec (mesh.engines.registry)")
        if self.package and found.name != self.name:
            raise self._broken(f'the name in its spec is "{found.name}"')
        if not self.package and self.name not in BUILT_IN and found.name in BUILT_IN:
            raise self._broken(f'the name in its spec, "{found.name}", is the name of a built-in engine')
        return found

    def _broken(self, why: str) -> ConfigError:
        if self.package:
            remedy = f"reinstall or update {self.package}, uninstall it, or choose another engine"
            return ConfigError(
                f'the engine "{self.name}" of the package {self.shown} cannot be loaded: {why}; {remedy}'
            )
        return ConfigError(f'the engine "{self.name}" cannot be loaded: {why}')


def _make_importable(module: str, root: Path) -> None:
    """Let a module of the project be imported, as `mesh run` does for services."""
    here = (root / f"{module}.py").is_file() or (root / module).is_dir()
    if here and str(root) not in sys.path:
        sys.path.insert(0, str(root))


def sources() -> dict[str, Source]:
    """The engines that can be chosen by name, by that name. Nothing is imported.

    A package cannot replace a built-in engine.
    """
    found = {name: Source(name, reference, "zeromesh") for name, reference in BUILT_IN.items()}
    for point in entry_points(group=GROUP):
        dist = point.dist
        package, version = (dist.name, dist.version) if dist is not None else (point.module, "")
        source = Source(point.name, f"{point.module}:{point.attr}", package, version)
        known = found.setdefault(point.name, source)
        # A distribution that is found twice on sys.path is one.
        if known.name not in BUILT_IN and known.package != package:
            found[point.name] = known._replace(rivals=(*known.rivals, source.shown))
    return found


def source_of(name: str) -> Source:
    """The source of an engine that mesh.toml names.

    Raises:
        ConfigError: there is none; the message lists those that there are.
    """
    # Entry points are read from disk, which takes longer than all the rest: not for engines that are built in.
    if name in BUILT_IN:
        return Source(name, BUILT_IN[name], "zeromesh")
    if ":" in name:
        if not _REFERENCE.fullmatch(name):
            raise ConfigError(f'"{name}" is not a reference like "shop.engine:spec"')
        return Source(name, name)
    known = sources()
    if name not in known:
        advice = f'known are {", ".join(sorted(known))}; or "module:attribute" of an engine of your own'
        raise ConfigError(f'there is no engine "{name}"; {suggest(name, known, advice)}')
    if not is_engine_name(name):
        raise known[name]._broken(
            "its name is not allowed: lower-case letters, digits, - and _, and no key of [engines]"
        )
    return known[name]
