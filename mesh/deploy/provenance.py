"""The mesh.toml and the release that a process was started with, when they differ from the project's current ones.

A process reads mesh.toml once, in its working directory. Where releases are installed side by side, that directory
identifies the release; where files are changed in place, only modification times can be compared.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from mesh.config import Settings, load
from mesh.errors import ConfigError
from mesh.supervisord import process_tree
from mesh.supervisord.control import Process
from mesh.supervisord.layout import Layout


def stale(layout: Layout, settings: Settings, process: Process) -> str:
    """A description of the mesh.toml that a process runs with, when it differs from the project's; "" otherwise."""
    if release := elsewhere(layout, process.pid):
        return f"runs with {release / 'mesh.toml'}, but {layout.root.resolve().name} is the current release"
    if settings.file is None or not process.pid:
        return ""
    try:
        changed_at = settings.file.stat().st_mtime
    except OSError:
        return ""
    # supervisord tells whole seconds, as of when it was asked.
    started_at = process_tree.started_at(process.pid) or time.time() - process.up_s
    return f"started before {settings.file} was changed" if started_at < changed_at else ""


def elsewhere(layout: Layout, pid: int) -> Path | None:
    """The release that a process runs from, when releases are installed side by side and it is not the current one."""
    root = layout.root.resolve()
    place = process_tree.directory(pid) if pid else None
    if place is None or place == root or place.parent != root.parent or not (place / layout.conf.name).exists():
        return None
    return place


def earlier_settings(layout: Layout, processes: Iterable[Process]) -> Settings | None:
    """The settings of the release that processes run from, when that is not the current one, and it can be read."""
    releases = [release for process in processes if (release := elsewhere(layout, process.pid)) is not None]
    # Prefer the release of most processes: a few may be left from a roll before this one.
    for release in sorted(set(releases), key=releases.count, reverse=True):
        try:
            return load(release / "mesh.toml")
        except ConfigError:
            continue
    return None
