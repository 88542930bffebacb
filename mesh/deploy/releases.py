"""The releases of a host that the playbooks deploy to: their list, the current one, and the result of each deployment.

Owns: reading them. The playbooks write them (playbooks/module_utils/mesh_place.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, NamedTuple

from mesh.errors import SetupError
from mesh.supervisord.layout import Layout

GOOD: Final = ".good"
UNFINISHED: Final = ".unfinished"
HISTORY: Final = "history.jsonl"


class NotDeployed(SetupError):
    """The project is not in a directory of releases."""

    code = "not_deployed"


class Release(NamedTuple):
    """One release.

    Attributes:
        good_at: when it passed its gates, by the wall clock; None when it did not.
    """

    name: str
    current: bool
    good_at: float | None


class Releases(NamedTuple):
    """The releases of a host.

    Attributes:
        releases: the release that became good last comes first.
        unfinished: the release before a deployment that was cut off; None when there is no such deployment.
        turns: `at`, `result`, `release` and more of each deployment on this host, the latest first.
    """

    releases: list[Release]
    unfinished: str | None
    turns: list[dict[str, Any]]


def read(layout: Layout, most: int) -> Releases:
    """The releases of this project's host, with the last `most` deployments.

    Raises:
        NotDeployed: the project is not in a directory of releases.
    """
    root = layout.root.resolve()
    place = root.parent
    if place.name != "releases":
        raise NotDeployed(f"{root} is not a release: `mesh releases` works on hosts that the playbooks deploy to")
    found = [
        Release(each.name, each == (place.parent / "current").resolve(), _when(each / GOOD))
        for each in place.iterdir()
        if each.is_dir()
    ]
    found.sort(key=lambda each: (each.good_at or 0.0, each.name), reverse=True)
    try:
        unfinished: str | None = (place / UNFINISHED).read_text(encoding="utf-8").strip()
    except OSError:
        unfinished = None
    return Releases(found, unfinished, _turns(place.parent / HISTORY, most))


def _when(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _turns(path: Path, most: int) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-most:]
    except OSError:
        return []
    found = []
    for line in reversed(lines):
        try:
            found.append(json.loads(line))
        except ValueError:
            continue  # a line that was truncated by a power failure
    return found
