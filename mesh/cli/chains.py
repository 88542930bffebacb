"""The interceptor chains of a project, as `mesh config` lists them.

Owns: finding the classes of each service of mesh.toml, and one row for each chain.
Leaves to others: the chains themselves (service.interceptors), importing classes (loading), writing rows (config).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from mesh.errors import MeshError

if TYPE_CHECKING:
    from mesh.calls.interceptors import Point
    from mesh.config import Settings
    from mesh.service.interceptors import Declared, Interceptors
    from mesh.service.service import Service


class Chain(NamedTuple):
    """One chain.

    Attributes:
        where: "gateway", "shop", or "shop.buy" for a method with interceptors of its own.
        point: "outgoing", "incoming", "delivery" or "http".
        names: of its interceptors, the outermost first, each with the place of its declaration.
    """

    where: str
    point: str
    names: list[str]


def chains(settings: Settings) -> tuple[list[Chain], list[str]]:
    """(the chains that are not empty, one line for each service that cannot be imported)."""
    from mesh.calls.interceptors import POINTS
    from mesh.service.interceptors import Interceptors

    try:
        found = Interceptors(settings)
    except MeshError as exc:
        return [], [exc.message]
    rows = [Chain("gateway", "http", _names(found.chain("http")))]
    problems: list[str] = []
    for name, words in _services(settings).items():
        try:
            classes = _classes(words)
        # The import runs the user's code.
        except (Exception, SystemExit) as exc:
            problems.append(f"{name}: {type(exc).__name__}: {exc}")
            continue
        for cls in classes:
            for point in POINTS:
                if point != "http":
                    rows += _of_class(found, cls, name or cls.name, point)
    return [row for row in rows if row.names], problems


def _of_class(found: Interceptors, cls: type[Service], name: str, point: Point) -> list[Chain]:
    from mesh.calls.interceptors import hooks
    from mesh.service.members import members

    return [
        Chain(name, point, _names(found.chain(point, cls))),
        *(
            Chain(f"{name}.{member.name}", point, _names(found.chain(point, cls, member)))
            for member in members(cls)
            if hooks(member.marks.interceptors, point)
        ),
    ]


def _services(settings: Settings) -> dict[str, Sequence[str]]:
    """The words that name classes, by service; "" for those of [mesh] services."""
    found: dict[str, Sequence[str]] = {
        name: service.classes for name, service in settings.services.items() if service.classes
    }
    if settings.mesh.services:
        found[""] = settings.mesh.services
    return found


def _classes(words: Sequence[str]) -> list[type[Service]]:
    from mesh.cli.loading import load

    return load(words)


def _names(declared: Sequence[Declared]) -> list[str]:
    from mesh.calls.interceptors import name_of

    return [f"{name_of(each.interceptor)} ({each.place})" for each in declared]
