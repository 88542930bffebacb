"""Key files: their format, and reading them safely (owner and mode are checked).

Owns: names of keys, `NAME.secret`, `NAME.public` and `revoked.keys`, and which files are refused.
Leaves to others: making and changing them (key_store), the use of keys in a process (key_ring).

A directory of keys has one pair of files for each name:

    orders.public   the public keys of "orders": one, or two during a rotation
    orders.secret   the secret key of "orders", only on hosts where "orders" runs, mode 0600
    revoked.keys    public keys that are invalid, whatever the other files contain

All are TOML with an array `key`. Keys are 32 bytes, written in 64 hexadecimal digits.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import zmq
from zmq.utils import z85

from mesh.errors import SetupError

SECRET: Final = ".secret"
PUBLIC: Final = ".public"
REVOKED: Final = "revoked.keys"
KEY_BYTES: Final = 32
#: The digits of a key that are displayed: their 64 random bits distinguish all keys of a mesh.
SHOWN_DIGITS: Final = 16
#: The largest file of keys, in bytes; larger files are refused.
MOST_BYTES: Final = 1 << 20

#: The advice in errors about keys.
ADVICE: Final = (
    "`mesh keys list` shows the keys here and what is wrong with them; docs/security.md lists which files belong where"
)

# A name is part of file names, logs and metrics; "@" separates role and host.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}(?:@[A-Za-z0-9][A-Za-z0-9._-]{0,63})?")
_HEX: Final = re.compile(r"[0-9a-f]{64}")


class BadKeys(SetupError):
    """A key is missing, malformed or revoked, or other users can read or write its file."""

    code = "bad_keys"
    advice = ADVICE


@dataclass(frozen=True, slots=True)
class KeyPair:
    """One identity: its name, and the key that proves it."""

    name: str
    public: bytes
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class PublicKey:
    """One public key of a name.

    Attributes:
        made: when it was made, as ISO 8601 in UTC; "" when the file does not contain it.
        retiring: the name has a newer key; this one is valid until it is revoked.
        revoked: when it was revoked; "" while it is valid.
    """

    name: str
    public: bytes
    made: str = ""
    retiring: bool = False
    revoked: str = ""


@dataclass(frozen=True, slots=True)
class Known:
    """The public keys in a directory: valid and revoked ones."""

    valid: dict[bytes, PublicKey]
    revoked: dict[bytes, PublicKey]


def check_name(name: str) -> str:
    """Return `name`; raise BadKeys when it cannot be the name of a key."""
    if not _NAME.fullmatch(name):
        raise BadKeys(
            f"{name[:80]!r} is not a valid name of a key: use letters, digits, . _ -, as in orders or orders@host-1"
        )
    return name


def role_of(name: str) -> str:
    """ "orders" of "orders@host-1" and of "orders"."""
    return name.partition("@")[0]


def shown(public: bytes) -> str:
    """A public key for display: its first digits."""
    return public.hex()[:SHOWN_DIGITS]


def from_hex(text: str, what: str) -> bytes:
    """Decode a key from 64 hexadecimal digits.

    Raises:
        BadKeys: the text is not a key. The message names it by `what`, and does not repeat the text.
    """
    if not isinstance(text, str) or not _HEX.fullmatch(text.strip().lower()):
        raise BadKeys(f"{what} is not 64 hexadecimal digits")
    return bytes.fromhex(text.strip())


def public_of(secret: bytes) -> bytes:
    """The public half of a secret key."""
    return z85.decode(zmq.curve_public(z85.encode(secret)))


def new_pair(name: str) -> KeyPair:
    """A fresh key for `name`, from the operating system's randomness."""
    public, secret = zmq.curve_keypair()
    return KeyPair(check_name(name), z85.decode(public), z85.decode(secret))


def read_secret(directory: Path, name: str) -> KeyPair:
    """The key of `name`.

    Raises:
        BadKeys: there is none in the directory, it is malformed, or others may read it.
    """
    check_directory(directory)
    path = directory / f"{check_name(name)}{SECRET}"
    if not path.exists():
        here = ", ".join(sorted(each.name.removesuffix(SECRET) for each in directory.glob(f"*{SECRET}"))) or "none"
        raise BadKeys(
            f"{path}: there is no secret key of {name!r} here (there are: {here}): "
            f"make one with `mesh keys make {name}`, or set keys.name to an existing one"
        )
    return read_pair(path, name)


def read_pair(path: Path, name: str) -> KeyPair:
    """The key of `name` in one secret file. Errors as for `read_secret`."""
    entries = _read(path, private=True)
    if len(entries) != 1:
        raise BadKeys(f"{path}: contains {len(entries)} keys; a secret file contains one")
    secret = from_hex(entries[0].get("secret", ""), f"{path}: secret")
    public = public_of(secret)
    if from_hex(entries[0].get("public", ""), f"{path}: public") != public:
        raise BadKeys(f"{path}: the public key does not match the secret key: the file is damaged; make a new key")
    return KeyPair(name, public, secret)


def read_public(directory: Path, name: str) -> list[PublicKey]:
    """The public keys of `name`, including revoked ones. Errors as for `read_known`."""
    path = directory / f"{check_name(name)}{PUBLIC}"
    return [_public(path, name, entry) for entry in _read(path)] if path.exists() else []


def read_known(directory: Path, tell: Callable[[Path, BadKeys], None] | None = None) -> Known:
    """All public keys in the directory.

    Args:
        tell: called for each unusable file, while the others are read. No process accepts such a directory; this is for
            displaying it. None raises the first error instead.

    Raises:
        BadKeys: a file is malformed, has a key that another file has too, or others may write it.
    """
    check_directory(directory)

    def wrong(path: Path, exc: BadKeys) -> None:
        if tell is None:
            raise exc
        tell(path, exc)

    revoked: dict[bytes, PublicKey] = {}
    try:
        revoked = {key.public: key for key in read_revoked(directory)}
    except BadKeys as exc:
        wrong(directory / REVOKED, exc)
    valid: dict[bytes, PublicKey] = {}
    for path in sorted(directory.glob(f"*{PUBLIC}")):
        try:
            keys = read_public(directory, path.name.removesuffix(PUBLIC))
        except BadKeys as exc:
            wrong(path, exc)
            continue
        for key in keys:
            other = valid.get(key.public)
            if other is not None:
                wrong(
                    path,
                    BadKeys(
                        f"{path}: the key {shown(key.public)} already belongs to {other.name!r}: use one name per key"
                    ),
                )
            elif key.public not in revoked:
                valid[key.public] = key
    return Known(valid, revoked)


def read_revoked(directory: Path) -> list[PublicKey]:
    """The revoked keys. Errors as for `read_known`."""
    path = directory / REVOKED
    if not path.exists():
        return []
    return [_public(path, str(entry.get("name", "")), entry) for entry in _read(path)]


def check_directory(directory: Path) -> None:
    """Raise BadKeys for a directory to which others could add their own keys."""
    try:
        found = directory.stat()
    except OSError as exc:
        raise BadKeys(
            f"{directory}: {exc.strerror}: make keys there with `mesh keys make`, or correct keys.dir"
        ) from exc
    if not stat.S_ISDIR(found.st_mode):
        raise BadKeys(f"{directory}: is not a directory: correct keys.dir")
    _check_owner(directory, found)
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise BadKeys(f"{directory}: other users can write to it (mode {_mode(found)}): chmod 700 {directory}")


def _check_owner(path: Path, found: os.stat_result) -> None:
    if found.st_uid not in (os.geteuid(), 0):
        raise BadKeys(f"{path} belongs to user {found.st_uid}, this process to user {os.geteuid()}: chown it")


def _mode(found: os.stat_result) -> str:
    return f"{stat.S_IMODE(found.st_mode):04o}"


def _read(path: Path, *, private: bool = False) -> list[dict[str, Any]]:
    """The entries of one file. Errors do not repeat its content."""
    try:
        # O_NONBLOCK: if the path is a named pipe, opening it must not wait for a writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as exc:
        raise BadKeys(f"{path}: cannot be read: {exc.strerror}") from exc
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_size > MOST_BYTES:
            raise BadKeys(f"{path}: is not a key file")
        _check_owner(path, found)
        if private and found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise BadKeys(
                f"{path}: other users can read this secret key (mode {_mode(found)}): chmod 600 it, "
                f"and if it may have been read, run `mesh keys rotate {path.name.removesuffix(SECRET)}`"
            )
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise BadKeys(f"{path}: other users can write to it (mode {_mode(found)}): chmod 600 {path}")
        with open(fd, "rb", closefd=False) as file:
            raw = file.read()
    finally:
        os.close(fd)
    try:
        tree = tomllib.loads(raw.decode("utf-8-sig"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError):
        raise BadKeys(f"{path}: is not a key file (not valid TOML)") from None
    entries = tree.get("key")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise BadKeys(f"{path}: contains no [[key]]")
    return entries


def _public(path: Path, name: str, entry: dict[str, Any]) -> PublicKey:
    return PublicKey(
        name=name,
        public=from_hex(entry.get("public", ""), f"{path}: public"),
        made=str(entry.get("made", "")),
        retiring=entry.get("retiring") is True,
        revoked=str(entry.get("revoked", "")),
    )
