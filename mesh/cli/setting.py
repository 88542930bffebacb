"""How a command gets its settings and its project.

Owns: which supervisord.conf is meant. Leaves to others: reading it (supervision.layout) and mesh.toml (config).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mesh.config import Settings, Usable
    from mesh.supervision.layout import Layout

CONF = "supervisord.conf"


def settings(**flags: Any) -> Settings:
    """The settings of the project here or above; a flag is given as `gateway__port=8080`, None when it was not.

    Raises:
        ConfigError: something in them is wrong.
    """
    from mesh.config import load

    return load(flags={name.replace("__", ".", 1): value for name, value in flags.items()})


def usable() -> Usable:
    """As much of them as can be read, and what is wrong: for commands that look, and that clean up."""
    from mesh.config import usable as read

    return read()


def conf_file(conf: str | None) -> Path:
    """Where the supervisord.conf is that `--conf` names, or the project's; mesh.toml need not be right for that.

    Raises:
        ConfigError: another user of the machine controls the one that was found.
    """
    from mesh.config import FILE_VARIABLE, check_found, project_root

    if conf:
        return Path(conf)
    found = project_root() / CONF
    if found.exists() and not os.environ.get(FILE_VARIABLE):
        check_found(found, "--conf FILE", os.environ)
    return found


def layout(conf: str | None) -> Layout:
    """The supervisord.conf that `--conf` names, or the project's.

    Raises:
        ConfigError: it is missing or wrong.
    """
    from mesh.supervision import layout as layouts

    return layouts.read(conf_file(conf))


def layout_if_any(conf: str | None) -> Layout | None:
    """As `layout`; None where `--conf` names none and the project has none: services may well run without supervisor.

    Raises:
        ConfigError: there is one, and it is wrong.
    """
    file = conf_file(conf)
    if conf is None and not file.exists():
        return None
    from mesh.supervision import layout as layouts

    return layouts.read(file)
