"""Mounts of other packages: those that `gateway.mounts` lists.

Owns: finding them, by module and attribute or by the name of an entry point, and the errors for those that cannot be
used.
Leaves to others: the contract (contract), the table (registry), importing files (calls.importing).

An entry of the setting is `"shop.health:mount"`, imported from the project as services are, or the name of an entry
point in the group `mesh.mounts`, which an installed package declares. Installing a package alone mounts nothing: what
a gateway answers to anyone is written in mesh.toml.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.metadata import entry_points
from typing import Any, Final, NamedTuple

from mesh.calls.importing import attribute_of
from mesh.config import Settings
from mesh.errors import SetupError
from mesh.gateway.mounts.contract import BadMount, Mount
from mesh.suggest import suggest

#: The group of the entry points.
GROUP: Final = "mesh.mounts"


class External(NamedTuple):
    """A mount, and the entry of `gateway.mounts` that it comes from."""

    mount: Mount
    origin: str


def load(settings: Settings) -> list[External]:
    """The mounts that the settings list, in order.

    Raises:
        BadMount: an entry cannot be imported, is no mount, or is listed twice; the message names it.
    """
    found: list[External] = []
    seen: set[str] = set()
    for entry in settings.gateway.mounts:
        if entry in seen:
            raise BadMount(f'gateway.mounts: "{entry}" is listed twice')
        seen.add(entry)
        value = _by_module(entry, settings) if ":" in entry else _by_name(entry)
        found += [External(mount, entry) for mount in _mounts(value, entry, settings)]
    return found


def _by_module(entry: str, settings: Settings) -> Any:
    try:
        return attribute_of(entry, f'gateway.mounts: "{entry}"', settings.root)
    except SetupError as exc:
        raise BadMount(exc.message) from exc.__cause__


def _by_name(entry: str) -> Any:
    known = entry_points(group=GROUP)
    points = [point for point in known if point.name == entry]
    if not points:
        names = sorted({point.name for point in known})
        remedy = suggest(
            entry, names, f"installed are {', '.join(names)}" if names else "no installed package provides one"
        )
        raise BadMount(f'gateway.mounts: "{entry}" is neither module:attribute nor an entry point of {GROUP}; {remedy}')
    if len({point.value for point in points}) > 1:
        packages = ", ".join(sorted(point.dist.name if point.dist else point.value for point in points))
        raise BadMount(f'gateway.mounts: "{entry}" is an entry point of several packages: {packages}')
    try:
        return points[0].load()
    except Exception as exc:
        raise _failed(entry, exc) from exc


def _mounts(value: Any, entry: str, settings: Settings) -> Iterator[Mount]:
    """The mounts of an entry: a Mount, several, or a function that takes the settings and returns them."""
    if callable(value) and not isinstance(value, Mount):
        try:
            value = value(settings)
        except BadMount:
            raise
        except Exception as exc:
            raise _failed(entry, exc) from exc
    mounts = (value,) if isinstance(value, Mount) or not isinstance(value, Iterable) else tuple(value)
    for mount in mounts:
        if not isinstance(mount, Mount):
            raise BadMount(f'gateway.mounts: "{entry}" is {mount!r:.100}, not a Mount, nor a function that returns one')
        yield mount


def _failed(entry: str, exc: Exception) -> BadMount:
    return BadMount(f'gateway.mounts: "{entry}" cannot be loaded: {type(exc).__name__}: {exc}'[:1000])
