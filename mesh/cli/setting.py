"""How a command gets its settings and its project.

Owns: which supervisord.conf is meant. Leaves to others: reading it (supervision.layout) and mesh.toml (config).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mesh.config import Settings
    from mesh.supervision.layout import Layout

CONF = "supervisord.conf"


def settings(**flags: Any) -> Settings:
    """The settings of the project here or above; a flag is given as `gateway__port=8080`, None when it was not.

    Raises:
        ConfigError: something in them is wrong.
    """
    from mesh.config import load

    return load(flags={name.replace("__", ".", 1): value for name, value in flags.items()})


def layout(conf: str | None) -> Layout:
    """The supervisord.conf that `--conf` names, or the project's.

    Raises:
        ConfigError: it is missing or wrong.
    """
    from mesh.supervision import layout as layouts

    return layouts.read(Path(conf) if conf else settings().root / CONF)
