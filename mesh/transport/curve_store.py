"""Changing a directory of keys: making, rotating, revoking.

Owns: the order in which files change, so that whoever reads them at any moment, or after a crash at any point, finds
something that works; and that no secret can be read by others, not even for a moment.
Leaves to others: the files' form (curve_files), who follows them (curve_ring), the words around it (cli.keys).
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from mesh.transport.curve_files import (
    PUBLIC,
    REVOKED,
    SECRET,
    BadKeys,
    KeyPair,
    PublicKey,
    check_directory,
    check_name,
    new_pair,
    read_known,
    read_pair,
    read_public,
    read_revoked,
    read_secret,
    shown,
)

#: A rotation's new secret, until the public file names it.
NEXT: Final = ".next"


def make(directory: Path, name: str) -> KeyPair:
    """A key for a name that has none.

    Raises:
        BadKeys: the name is none, it has a key already, or the directory is not fit for keys.
    """
    pair = new_pair(name)
    with _changing(directory):
        if (directory / f"{name}{PUBLIC}").exists():
            raise BadKeys(f"{name!r} has a key in {directory} already: `mesh keys rotate {name}` gives it another")
        if (directory / f"{name}{SECRET}").exists():
            pair = read_secret(directory, name)  # a `make` that broke off here is finished
        else:
            _write_secret(directory, pair, SECRET)
        _write_public(directory, name, [PublicKey(name, pair.public, _now())])
    return pair


def rotate(directory: Path, name: str) -> KeyPair:
    """Another key for a name; the one that it has stays valid, as retiring, until it is revoked.

    Raises:
        BadKeys: it has no key here, or two already.
    """
    with _changing(directory):
        _recover(directory, name)
        now = read_public(directory, name)
        if not now:
            raise BadKeys(f"{name!r} has no key in {directory}: `mesh keys make {name}` makes one")
        if any(key.retiring for key in now):
            raise BadKeys(
                f"{name!r} is being rotated already: restart what uses it, then end the old key with "
                f"`mesh keys revoke {name} --retiring`"
            )
        pair = new_pair(name)
        _write_secret(directory, pair, SECRET + NEXT)
        _write_public(
            directory, name, [PublicKey(name, pair.public, _now()), *(replace(key, retiring=True) for key in now)]
        )
        _recover(directory, name)
    return pair


def revoke(directory: Path, which: str, *, retiring: bool = False) -> list[PublicKey]:
    """End keys: all of a name, only its retiring one, or the one whose digits begin like `which`.

    Returns:
        The keys that were ended.

    Raises:
        BadKeys: nothing is called so.
    """
    with _changing(directory):
        known = read_known(directory)
        chosen = [key for key in known.valid.values() if key.name == which and (key.retiring or not retiring)]
        if not chosen and len(which) >= 8 and not retiring:
            chosen = [key for key in known.valid.values() if key.public.hex().startswith(which.lower())]
        if not chosen:
            names = sorted({key.name for key in known.valid.values()})
            what = "retiring key" if retiring else "valid key"
            raise BadKeys(f"{directory} has no {what} {which[:80]!r}; it knows {', '.join(names) or 'nobody'}")
        ended = [replace(key, revoked=_now()) for key in chosen]
        # First it is refused, then it is forgotten: between the two it is refused already.
        _write(
            directory / REVOKED,
            _text(
                "Keys that are nobody any more. Copy this to every host.",
                [*read_revoked(directory), *ended],
                named=True,
            ),
        )
        for name in {key.name for key in ended}:
            _recover(directory, name)
            left = [key for key in read_public(directory, name) if key.public not in {each.public for each in ended}]
            if left:
                _write_public(directory, name, left)
            else:
                (directory / f"{name}{PUBLIC}").unlink()
            secret = directory / f"{name}{SECRET}"
            if secret.exists() and read_secret(directory, name).public in {key.public for key in ended}:
                secret.unlink()
    return ended


def listed(directory: Path) -> list[PublicKey]:
    """Every key that the directory knows: the valid ones by name, newest first, then the revoked ones."""
    known = read_known(directory)
    valid = sorted(known.valid.values(), key=lambda key: (key.name, key.retiring))
    return [*valid, *sorted(known.revoked.values(), key=lambda key: (key.name, key.revoked))]


def has_secret(directory: Path, key: PublicKey) -> bool:
    """Whether the secret half of this key is here.

    Raises:
        BadKeys: it is, in a state that no process accepts.
    """
    return (directory / f"{key.name}{SECRET}").exists() and read_secret(directory, key.name).public == key.public


# --- inside -----------------------------------------------------------------------------------------


@contextmanager
def _changing(directory: Path) -> Iterator[None]:
    """One change at a time; the directory is made when it is not there."""
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        directory.mkdir(mode=0o700, exist_ok=True)
    except OSError as exc:
        raise BadKeys(f"{directory}: cannot be made: {exc.strerror}: mend keys.dir, or give --dir") from exc
    check_directory(directory)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
        # Names are in the directory: what was renamed is durable when it is.
        os.fsync(fd)
    except OSError as exc:
        raise BadKeys(f"{directory}: keys cannot be changed there: {exc.strerror}") from exc
    finally:
        os.close(fd)


def _recover(directory: Path, name: str) -> None:
    """End a rotation: its new secret takes the old one's place as soon as the public file names it."""
    waiting = directory / f"{check_name(name)}{SECRET}{NEXT}"
    if not waiting.exists():
        return
    # Only whole files get their names, so it can be read, or somebody else has been at it: then it is told.
    pair = read_pair(waiting, name)
    if any(key.public == pair.public for key in read_public(directory, name)):
        os.replace(waiting, directory / f"{name}{SECRET}")
    else:
        waiting.unlink()  # it broke off before anybody was told of the key


def _write_secret(directory: Path, pair: KeyPair, suffix: str) -> None:
    text = (
        f"# The secret key of {pair.name}, {shown(pair.public)}. It is for the processes of {pair.name} alone.\n"
        f'\n[[key]]\npublic = "{pair.public.hex()}"\nsecret = "{pair.secret.hex()}"\nmade = "{_now()}"\n'
    )
    _write(directory / f"{pair.name}{suffix}", text)


def _write_public(directory: Path, name: str, keys: Sequence[PublicKey]) -> None:
    head = f"Whoever has the secret half of one of these is {name}. Copy this to every host."
    _write(directory / f"{name}{PUBLIC}", _text(head, keys))


def _text(head: str, keys: Sequence[PublicKey], *, named: bool = False) -> str:
    lines = [f"# {head}"]
    for key in keys:
        lines += ["", "[[key]]", f'public = "{key.public.hex()}"', f'made = "{key.made}"']
        if named:
            lines += [f'name = "{key.name}"', f'revoked = "{key.revoked}"']
        if key.retiring:
            lines.append("retiring = true")
    return "\n".join(lines) + "\n"


def _write(path: Path, text: str) -> None:
    """Put the whole file there at once, readable for its owner alone from its first byte on."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with open(fd, "wb") as file:
            os.fchmod(fd, 0o600)  # whatever the umask took away
            file.write(text.encode())
            file.flush()
            os.fsync(fd)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
