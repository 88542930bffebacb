"""Where the keys of tokens come from: a secret, a file, or a provider.

Owns: choosing by the settings. Leaves to others: fetching (remote_keys), reading (keys), files (watched_file).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from mesh.clock import Clock
from mesh.config import Settings
from mesh.errors import ConfigError
from mesh.gateway.edge.auth.jwt.keys import BadKey, KeySet, accepted, read_file, read_secret
from mesh.gateway.edge.auth.jwt.remote_keys import RemoteKeys
from mesh.gateway.edge.auth.watched_file import WatchedFile


class KeySource(Protocol):
    """Gives the keys."""

    def keys(self) -> KeySet:
        """The current keys; the same object as long as they do not change.

        Raises:
            AuthUnavailable: there are none now.
        """

    async def refresh(self) -> None:
        """Look for new keys, because a token names an unknown one."""


class Fixed:
    """Keys that do not change while the gateway runs."""

    def __init__(self, keys: KeySet) -> None:
        self._keys = keys

    def keys(self) -> KeySet:
        return self._keys

    async def refresh(self) -> None:
        """There is nowhere to look."""


class FromFile:
    """Keys of a file, which follow it."""

    def __init__(self, file: WatchedFile[KeySet]) -> None:
        self._file = file

    def keys(self) -> KeySet:
        return self._file.content()

    async def refresh(self) -> None:
        """The file is watched."""


Lifespan = Callable[[Any], AbstractAsyncContextManager[Any]]


def source_of(settings: Settings, clock: Clock) -> tuple[KeySource, Lifespan | None]:
    """The source of keys that the settings name, and what it needs while the gateway runs.

    Raises:
        ConfigError: a key or algorithm cannot be used; the message names the setting.
    """
    jwt = settings.auth.jwt
    allowed = accepted(jwt.algorithms, secret=jwt.secret is not None)
    if jwt.secret is not None:
        try:
            return Fixed(read_secret(jwt.secret.reveal(), allowed)), None
        except (ConfigError, BadKey) as exc:
            raise ConfigError(f"auth.jwt.secret: {exc}") from None
    if jwt.file is not None:
        path = settings.root / jwt.file
        return FromFile(WatchedFile(path, "auth.jwt.file", lambda data: read_file(data, allowed), clock)), None
    remote = RemoteKeys(jwt, allowed, clock)
    return remote, remote.lifespan
