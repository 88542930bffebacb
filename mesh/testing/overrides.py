"""Settings of a mesh under test: the defaults, engines in memory, and the test's overrides; mesh.toml and environment
are not read.

Owns: dotted keys and maps of them, including those of single services.
Leaves to others: what each key means (config).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from mesh import config
from mesh.config import AccessSettings, ServiceSettings, Settings
from mesh.config.access import read_access
from mesh.config.entries import POLICY
from mesh.errors import ConfigError


def settings_for(overrides: Mapping[str, Any], *, hubs: Sequence[str], run_dir: Path) -> Settings:
    """The settings.

    Args:
        overrides: "calls.timeout": 2.0, "services.mail.concurrency": 1, "services.mail.config.sender": "me"; or maps as
            in mesh.toml, {"calls": {"timeout": 2.0}}; both together. A number has the unit of its attribute: seconds,
            bytes. "access.allow": a list of tables, as [[access.allow]].
        hubs, run_dir: of this mesh; they may be values that are not allowed in mesh.toml.

    Raises:
        ConfigError: a key or value is wrong.
    """
    overrides = _dotted(overrides)
    flags = {"engines.default": "memory"}
    flags |= {key: value for key, value in overrides.items() if not key.startswith(("services.", "access."))}
    # An empty file: a test must not depend on the directory that it is started in.
    settings = config.load(Path(os.devnull), env={}, flags=flags)
    mesh = msgspec.structs.replace(settings.mesh, hubs=list(hubs), run_dir=run_dir, log_dir=run_dir)
    services = _services({key: value for key, value in overrides.items() if key.startswith("services.")}, settings)
    access = _access({key: value for key, value in overrides.items() if key.startswith("access.")})
    return msgspec.structs.replace(settings, mesh=mesh, services=services, access=access, root=run_dir, file=None)


def _dotted(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten maps into dotted keys. Values under a service's `config`, and a fallback, may be maps themselves."""
    found: dict[str, Any] = {}

    def take(key: str, value: Any) -> None:
        parts = key.split(".")
        is_value = len(parts) > 3 and parts[0] == "services" and parts[2] == "config"
        is_value = is_value or (len(parts) > 2 and parts[0] == "policies" and parts[-1] in POLICY)
        if not isinstance(value, Mapping) or is_value:
            found[key] = value
            return
        for name, each in value.items():
            take(f"{key}.{name}", each)

    for key, value in overrides.items():
        take(key, value)
    return found


def _access(overrides: Mapping[str, Any]) -> AccessSettings | None:
    if not overrides:
        return None
    wrong: list[str] = []

    def tell(path: tuple[str, ...], what: str) -> None:
        wrong.append(f"{'.'.join(('access', *path))}: {what}")

    table = {key.removeprefix("access."): value for key, value in overrides.items()}
    access = read_access(table, tell, lambda path: "the test")
    if wrong:
        raise ConfigError("\n".join(wrong))
    return access


def _services(overrides: Mapping[str, Any], settings: Settings) -> dict[str, ServiceSettings]:
    found: dict[str, ServiceSettings] = {}
    for dotted, value in overrides.items():
        match dotted.split(".", 3)[1:]:
            case [name, "concurrency" | "queue" as limit]:
                found[name] = msgspec.structs.replace(found.get(name) or settings.service(name), **{limit: value})
            case [name, "config", key]:
                known = found.get(name) or settings.service(name)
                found[name] = msgspec.structs.replace(known, config={**known.config, key: value})
            case _:
                raise ConfigError(
                    f"{dotted}: no such key; a service has services.NAME.concurrency, .queue and .config.KEY"
                )
    return found
