"""Finds the settings and the project of a command.

Owns: choosing the supervisord.conf. Leaves to others: reading it (supervisord.layout) and mesh.toml (config).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mesh.config import Settings, Usable
    from mesh.supervisord.layout import Layout

CONF = "supervisord.conf"


def settings(**flags: Any) -> Settings:
    """The settings of the project here or above; a flag has the form `gateway__port=8080`, None if not set.

    Raises:
        ConfigError: the settings are invalid.
    """
    from mesh.config import load

    return load(flags={name.replace("__", ".", 1): value for name, value in flags.items()})


def usable() -> Usable:
    """The settings as far as they can be read, and the errors: for commands that inspect or clean up."""
    from mesh.config import usable as read

    return read()


def conf_file(conf: str | None) -> Path:
    """The path of the supervisord.conf: that of `--conf`, or the project's. Does not require a valid mesh.toml.

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
    """The supervisord.conf of `--conf`, or the project's.

    Raises:
        ConfigError: it is missing or invalid.
    """
    from mesh.supervisord import layout as layouts

    return layouts.read(conf_file(conf))


def layout_if_any(conf: str | None) -> Layout | None:
    """As `layout`; None without `--conf` in a project without one: services may run without supervisor.

    Raises:
        ConfigError: the file exists and is invalid.
    """
    file = conf_file(conf)
    if conf is None and not file.exists():
        return None
    from mesh.supervisord import layout as layouts

    return layouts.read(file)
