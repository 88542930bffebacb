"""Secrets: what mesh.toml may refer to and must not hold.

Owns: the two forms of a reference, looking one up, and showing none.
Leaves to others: which keys are secrets (config.settings), what is done with the value.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from mesh.errors import ConfigError

#: What is shown instead of a secret, wherever one could be shown.
HIDDEN: Final = "***"
#: The key of an inline table that stands for a secret among a service's own values: {secret = "env:SMTP_PASSWORD"}.
MARK: Final = "secret"
#: A secret is a word or a line. What is longer is the wrong file.
MOST_BYTES: Final = 64 * 1024


class Secret:
    """Where a secret stands. Its value is looked up when it is used, and is in no `repr`, log line or page.

    Attributes:
        reference: "env:NAME" or "file:/absolute/path".
        place: where the reference was written, for messages: "mesh.toml:7: services.mail.config.password".
    """

    __slots__ = ("place", "reference")

    def __init__(self, reference: str, place: str = "") -> None:
        """Raises:
        ValueError: it is no reference. The message does not repeat it: it may be the secret itself.
        """
        kind, _, rest = reference.strip().partition(":")
        if kind not in ("env", "file") or not rest:
            raise ValueError('it would stand there for everybody to read: write "env:NAME" or "file:/path"')
        if kind == "file" and not Path(rest).expanduser().is_absolute():
            raise ValueError("it names a file whose path is not absolute")
        self.reference = f"{kind}:{rest}"
        self.place = place

    def __repr__(self) -> str:
        return HIDDEN

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other.reference == self.reference

    def __hash__(self) -> int:
        return hash(self.reference)

    def reveal(self, env: Mapping[str, str] | None = None) -> str:
        """The secret itself, without the line end that a file has.

        Raises:
            ConfigError: there is none there, or others may read the file.
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
        # Not to wait for whoever might write into a pipe of that name.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as exc:
        raise ConfigError(f"{where}{path}: {exc.strerror}") from exc
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(f"{where}{path}: is no file")
        # A group may be what gives a service's user the file of root; everybody else is everybody else.
        if found.st_mode & (stat.S_IRWXO | stat.S_IWGRP):
            mode = f"{stat.S_IMODE(found.st_mode):04o}"
            raise ConfigError(f"{where}{path}: others may read or change it (mode {mode}): chmod 600 {path}")
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
    """`value`, a service's own, with each inline table {secret = "…"} made a Secret.

    Raises:
        ValueError: such a table holds no reference.
    """
    if isinstance(value, dict):
        if set(value) == {MARK} and isinstance(value[MARK], str):
            return Secret(value[MARK], place)
        return {key: marked(item, place) for key, item in value.items()}
    if isinstance(value, list):
        return [marked(item, place) for item in value]
    return value


def revealed(value: Any) -> Any:
    """`value` with each Secret in it replaced by what it refers to.

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
    """`value` as it may be shown."""
    if isinstance(value, Secret):
        return HIDDEN
    if isinstance(value, dict):
        return {key: hidden(item) for key, item in value.items()}
    if isinstance(value, list):
        return [hidden(item) for item in value]
    return value
