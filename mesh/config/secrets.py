"""Secrets: mesh.toml refers to them but must not contain them.

Owns: the two forms of a reference, looking up a secret, and hiding it in all output.
Leaves to others: which keys are secrets (config.settings), the use of the value.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from mesh.errors import ConfigError

#: Shown in place of every secret.
HIDDEN: Final = "***"
#: The key of an inline table that marks a secret among a service's own values: {secret = "env:SMTP_PASSWORD"}.
MARK: Final = "secret"
#: The largest file of a secret, in bytes: a larger one must be the wrong file.
MOST_BYTES: Final = 64 * 1024


class Secret:
    """A reference to a secret. The secret is read when it is used, and never appears in a `repr`, log line or page.

    Attributes:
        reference: "env:NAME" or "file:/absolute/path".
        place: where the reference is written, for messages: "mesh.toml:7: services.mail.config.password".
    """

    __slots__ = ("place", "reference")

    def __init__(self, reference: str, place: str = "") -> None:
        """Raises:
        ValueError: the text is not a reference. The message does not repeat it, as it may be the secret itself.
        """
        kind, _, rest = reference.strip().partition(":")
        if kind not in ("env", "file") or not rest:
            raise ValueError('a secret must not be in the file itself: write "env:NAME" or "file:/path"')
        if kind == "file" and not Path(rest).expanduser().is_absolute():
            raise ValueError("the path is relative; write an absolute one")
        self.reference = f"{kind}:{rest}"
        self.place = place

    def __repr__(self) -> str:
        return HIDDEN

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other.reference == self.reference

    def __hash__(self) -> int:
        return hash(self.reference)

    def reveal(self, env: Mapping[str, str] | None = None) -> str:
        """The secret itself, without the line end of a file.

        Raises:
            ConfigError: the variable or file is missing, empty or unreadable, or others may read or change the file.
        """
        kind, _, rest = self.reference.partition(":")
        where = f"{self.place}: " if self.place else ""
        if kind == "env":
            value = (os.environ if env is None else env).get(rest, "")
            if not value:
                raise ConfigError(f"{where}the environment has no {rest}: set it for this process")
            return value
        return _read(Path(rest).expanduser(), where)


def _read(path: Path, where: str) -> str:
    try:
        # O_NONBLOCK: if the path is a named pipe, opening it must not wait for a writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as exc:
        raise ConfigError(f"{where}{path}: {exc.strerror}") from exc
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(f"{where}{path}: is not a regular file")
        # The group may read: so can a service's user read a file that root owns. Other users must have no access.
        if found.st_mode & (stat.S_IRWXO | stat.S_IWGRP):
            mode = f"{stat.S_IMODE(found.st_mode):04o}"
            raise ConfigError(f"{where}{path}: other users can read or change it (mode {mode}): chmod 600 {path}")
        with open(fd, "rb", closefd=False) as file:
            raw = file.read(MOST_BYTES + 1)
    finally:
        os.close(fd)
    try:
        value = raw.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise ConfigError(f"{where}{path}: is not UTF-8 text") from None
    if not value or len(raw) > MOST_BYTES:
        raise ConfigError(f"{where}{path}: " + ("is empty" if not value else f"has more than {MOST_BYTES} bytes"))
    return value


def marked(value: Any, place: str = "") -> Any:
    """A service's own `value`, with each inline table {secret = "…"} replaced by a Secret.

    Raises:
        ValueError: such a table does not contain a valid reference.
    """
    if isinstance(value, dict):
        if set(value) == {MARK} and isinstance(value[MARK], str):
            return Secret(value[MARK], place)
        return {key: marked(item, place) for key, item in value.items()}
    if isinstance(value, list):
        return [marked(item, place) for item in value]
    return value


def revealed(value: Any) -> Any:
    """`value` with each Secret in it replaced by the secret itself.

    Raises:
        ConfigError: see Secret.reveal.
    """
    if isinstance(value, Secret):
        return value.reveal()
    if isinstance(value, dict):
        return {key: revealed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [revealed(item) for item in value]
    return value


def hidden(value: Any) -> Any:
    """`value` for display, with each Secret replaced by HIDDEN."""
    if isinstance(value, Secret):
        return HIDDEN
    if isinstance(value, dict):
        return {key: hidden(item) for key, item in value.items()}
    if isinstance(value, list):
        return [hidden(item) for item in value]
    return value
