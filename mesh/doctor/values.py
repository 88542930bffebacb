"""Whether the things that mesh.toml names exist: keys, secrets, users.

Owns: these checks, and the title of a finding about one value.
Leaves to others: invalid values (config.load), checks that only a worker can make (services).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mesh.config import OPERATOR, Usable
from mesh.config.env_file import read_env_file
from mesh.config.secrets import Secret
from mesh.doctor.finding import BAD, GOOD, Finding
from mesh.errors import ConfigError, MeshError
from mesh.transport.curve.key_ring import ring_for

Env = Mapping[str, str]


def about(found: Usable, key: str) -> str:
    """The place and the key of a value: "mesh.toml:14: gateway.port"."""
    return f"{found.place(key)}: {key}"


def values(found: Usable, env: Env, roles: Iterable[str]) -> Iterator[Finding]:
    """Make all checks.

    Args:
        env: the environment that supervisord has, or would have.
        roles: the roles of this host's processes, which need keys.
    """
    settings = found.settings
    secret = settings.keys.secret
    if secret is not None and (told := _unknown(secret, env)):
        mend = "set it where supervisord is started, and for commands"
        yield Finding(BAD, about(found, "keys.secret"), told, mend)
    elif settings.keys.dir is not None:
        yield from _keys(found, roles)
    for name, service in settings.services.items():
        own = {**env, **service.environment, **_in_file(found, name)}
        for key, value in service.config.items():
            for each in _secrets(value):
                if told := _unknown(each, own):
                    mend = f"set it in [services.{name}] env_file, or where supervisord is started"
                    yield Finding(BAD, about(found, f"services.{name}.config.{key}"), told, mend)
        if service.user and not _is_user(service.user):
            mend = "create that user, or remove the key"
            yield Finding(BAD, about(found, f"services.{name}.user"), f"there is no user {service.user}", mend)


def _keys(found: Usable, roles: Iterable[str]) -> Iterator[Finding]:
    settings = found.settings
    told: set[str] = set()
    # Include the operator: every command has this role.
    for role in (OPERATOR, *roles):
        try:
            ring_for(settings.keys, role, settings.mesh.host)
        except MeshError as exc:
            if exc.message not in told:
                told.add(exc.message)
                yield Finding(BAD, about(found, "keys.dir"), exc.message, "`mesh keys list` shows the existing keys")
    if not told:
        yield Finding(GOOD, "keys", str(settings.keys.dir))


def _in_file(found: Usable, service: str) -> Env:
    name = found.settings.services[service].env_file
    try:
        return read_env_file(found.settings.root / name) if name else {}
    except ConfigError:
        return {}  # already reported for the key itself


def _secrets(value: Any) -> Iterator[Secret]:
    if isinstance(value, Secret):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _secrets(item)
    elif isinstance(value, list):
        for item in value:
            yield from _secrets(item)


def _unknown(secret: Secret, env: Env) -> str:
    """Why the secret cannot be looked up; "" when it can."""
    try:
        secret.reveal(env)
    except ConfigError as exc:
        return exc.message.removeprefix(f"{secret.place}: ").removesuffix(": set it for this process")
    return ""


def _is_user(name: str) -> bool:
    try:
        import pwd

        pwd.getpwuid(int(name)) if name.isdigit() else pwd.getpwnam(name)
    except ImportError:
        return True
    except KeyError:
        return False
    return True
