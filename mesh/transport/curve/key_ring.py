"""The keys of this process and the keys that it trusts: a directory that is checked for changes every second.

Owns: this process's own key, the names of valid keys, following the directory, and notifying listeners of changes.
Leaves to others: the files (key_files), sockets (curve, guard, zap), closing links with invalid keys
(the owners of the links).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from mesh.clock import Clock, LoopClock, Timer
from mesh.config import OPERATOR, KeySettings
from mesh.errors import ConfigError
from mesh.telemetry.logs import get_logger
from mesh.transport.curve.key_files import (
    PUBLIC,
    REVOKED,
    SECRET,
    BadKeys,
    KeyPair,
    Known,
    PublicKey,
    check_directory,
    check_name,
    from_hex,
    public_of,
    read_known,
    read_revoked,
    read_secret,
    role_of,
    shown,
)

log = get_logger("mesh.keys")

#: Seconds between checks of the directory. A check is one stat per file. A revoked key is accepted for at most so long.
LOOK_S: Final = 1.0

#: An unknown key may be a new one with a file that has just been copied, so the directory is checked at once, but not
#: more often than this, in seconds.
FRESH_S: Final = 0.1

_Signature = tuple[tuple[str, int, int, int], ...]


class Keyring:
    """The keys of one process.

    Attributes:
        own: the key of this process; it does not change while the process runs.
    """

    def __init__(self, directory: Path, own: KeyPair, *, hub: str = "hub", clock: Clock | None = None) -> None:
        """Args:
        hub: the name of the hubs' keys; "hub" includes "hub@host-1".

        Raises:
            BadKeys: the directory cannot be used, or `own` is not a valid key in it.
        """
        self.own = own
        self.directory = directory
        self._hub = hub
        self._clock: Clock = clock or LoopClock()
        self._signature: _Signature | None = _signature(directory)
        self._known = read_known(directory)
        self._last_hub: dict[str, bytes] = {}
        self._listeners: dict[object, Callable[[bool], None]] = {}
        self._timer: Timer | None = None
        self._looked_at = self._clock.now()
        listed = self._known.valid.get(own.public)
        if listed is None or listed.name != own.name:
            raise BadKeys(f"this process's own key {own.name!r} ({shown(own.public)}) {self.why_not(own.public)}")

    # --- valid keys -------------------------------------------------------------------------------------

    def name_of(self, public: bytes) -> str | None:
        """The name of a key; None when the key is not valid."""
        key = self._known.valid.get(public)
        return key.name if key is not None else None

    def name_now(self, public: bytes) -> str | None:
        """`name_of`; an unknown key is looked up again after checking the directory for changes."""
        name = self.name_of(public)
        if name is None and self._clock.now() - self._looked_at >= FRESH_S:
            self.reload()
            name = self.name_of(public)
        return name

    def look_soon(self) -> None:
        """Check the directory for changes in the next turn of the loop, because an unknown key was looked up."""
        now = self._clock.now()
        if now - self._looked_at >= FRESH_S:
            self._looked_at = now
            self._clock.call_at(now, self.reload)

    def why_not(self, public: bytes) -> str:
        """Why a key is not valid, as the end of a sentence: "was revoked …"."""
        revoked = self._known.revoked.get(public)
        if revoked is not None:
            since = f" on {revoked.revoked}" if revoked.revoked else ""
            name = f" (it was {revoked.name!r})" if revoked.name else ""
            return f"was revoked{since}{name}: make a new one with `mesh keys make`"
        other = self._known.valid.get(public)
        if other is not None:
            return f"belongs to {other.name!r}: correct keys.name"
        return f"is not in any file of {self.directory}: copy its NAME{PUBLIC} there"

    def hubs(self, endpoint: str, host: str) -> list[PublicKey]:
        """The keys that a hub at `endpoint` may have, the most likely first: the one that answered there last, then
        one with the name of its host, then newer ones."""
        last = self._last_hub.get(endpoint)

        def unlikely(key: PublicKey) -> tuple[bool, bool, bool]:
            return (key.public != last, key.name != f"{self._hub}@{host}", key.retiring)

        mine = (key for key in self._known.valid.values() if self._hub in (key.name, role_of(key.name)))
        return sorted(mine, key=unlikely)

    def answered(self, endpoint: str, public: bytes) -> None:
        """A hub at `endpoint` has proved that it holds this key."""
        self._last_hub[endpoint] = public

    @property
    def hub(self) -> str:
        """The name of the hubs' keys."""
        return self._hub

    # --- following the directory --------------------------------------------------------------------------

    def on_change(self, callback: Callable[[bool], None]) -> Callable[[], None]:
        """Call `callback` after the directory has changed; its argument is whether a key has become invalid.

        Returns:
            A function that removes the callback.
        """
        key = object()
        self._listeners[key] = callback
        return lambda: self._listeners.pop(key, None) and None

    def watch(self) -> None:
        """Begin to check the directory every second. Harmless when called again."""
        if self._timer is None:
            self._timer = self._clock.call_at(self._clock.now() + LOOK_S, self._look)

    def close(self) -> None:
        """Stop checking the directory."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        try:
            self.reload()
        finally:
            self.watch()

    def reload(self) -> bool:
        """Read the directory if anything in it has changed; returns whether it had.

        If a file cannot be read, this is logged and the keys known before stay valid, as old keys are better than none;
        but keys in a readable `revoked.keys` become invalid nevertheless.
        """
        self._looked_at = self._clock.now()
        signature = _signature(self.directory)
        if signature == self._signature:
            return False
        self._signature = signature
        try:
            known = read_known(self.directory)
        except BadKeys as exc:
            log.error("keys.unreadable", reason=exc.message)
            known = self._less_the_revoked()
        before, self._known = self._known, known
        fewer = self._tell(before)
        for callback in tuple(self._listeners.values()):
            callback(fewer)
        return True

    def _less_the_revoked(self) -> Known:
        try:
            revoked = {key.public: key for key in read_revoked(self.directory)}
        except BadKeys:
            return self._known
        valid = {public: key for public, key in self._known.valid.items() if public not in revoked}
        return Known(valid, self._known.revoked | revoked)

    def _tell(self, before: Known) -> bool:
        """Log the changes; returns whether a key has become invalid, or has another name."""
        came = [key for public, key in self._known.valid.items() if public not in before.valid]
        went = [key for public, key in before.valid.items() if public not in self._known.valid]
        for event, keys in (("key.accepted", came), ("key.withdrawn", went)):
            for key in keys:
                log.info(event, name=key.name, key=shown(key.public))
        if any(key.public == self.own.public for key in went):
            log.error("key.own_invalid", name=self.own.name, remedy="restart this process with a new key")
        return any(self.name_of(public) != key.name for public, key in before.valid.items())


def _signature(directory: Path) -> _Signature | None:
    """A value that changes when files are added, removed or replaced; None when the directory cannot be read."""
    found = []
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.name.endswith(PUBLIC) or entry.name == REVOKED:
                    seen = entry.stat(follow_symlinks=False)
                    found.append((entry.name, seen.st_mtime_ns, seen.st_size, seen.st_ino))
    except OSError:
        return None
    return tuple(sorted(found))


def ring_for(settings: KeySettings, role: str, host: str) -> Keyring | None:
    """The keys of a process of this role, by the configuration. The name of its own key is keys.name, or else
    "role@host", or else the role. None without keys.dir.

    The operator's commands fall back to the key of "client", for sets of keys that are older than the role "operator".

    Raises:
        BadKeys, ConfigError: its key is missing, or cannot be used.
    """
    if settings.dir is None:
        return None
    return Keyring(settings.dir, _own(settings, settings.dir, role, host), hub=settings.hub)


def _own(settings: KeySettings, directory: Path, role: str, host: str) -> KeyPair:
    roles = (OPERATOR, "client") if role == OPERATOR else (role,)
    names: Sequence[str] = (
        [settings.name] if settings.name else [name for one in roles for name in (f"{one}@{host}", one)]
    )
    if settings.secret is not None:
        try:
            secret = from_hex(settings.secret.reveal(), "keys.secret")
        except ConfigError as exc:
            raise BadKeys(f"keys.secret: {exc.message}") from exc
        public = public_of(secret)
        # The public files decide which of the names the key has.
        known = read_known(directory).valid.get(public)
        name = known.name if known is not None and known.name in names else names[-1]
        return KeyPair(check_name(name), public, secret)
    for name in names[:-1]:
        if (directory / f"{check_name(name)}{SECRET}").exists():
            return read_secret(directory, name)
    check_directory(directory)
    if names[0] == f"{OPERATOR}@{host}" and not (directory / f"{names[-1]}{SECRET}").exists():
        raise BadKeys(
            f"{directory}: there is no secret key of {OPERATOR!r} here, and none of 'client', which commands use "
            f"instead: make one with `mesh keys make {OPERATOR}`, or set keys.name to an existing one"
        )
    return read_secret(directory, names[-1])
