"""Changing a directory of keys: making, rotating, revoking.

Owns: the order in which files change, so that whoever reads them at any moment, or after a crash at any point, finds
something that works; and that no secret can be read by others, not even for a moment.
Leaves to others: the files' form (curve_files), who follows them (curve_ring), the words around it (cli.keys).
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Collection, Iterator, Sequence
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
    Known,
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
    """A key for a name that has none. Errors as `make_each`."""
    (pair,) = make_each(directory, [name])
    return pair


def make_each(directory: Path, names: Sequence[str]) -> Iterator[KeyPair]:
    """A key for each name: all names are looked at before the first key is made, and each is told when it is made.

    Raises:
        BadKeys: a name is none or has a key already, or the directory is not fit for keys.
    """
    names = [check_name(name) for name in dict.fromkeys(names)]
    with _changing(directory):
        for name in names:
            if (directory / f"{name}{PUBLIC}").exists():
                raise BadKeys(f"{name!r} has a key in {directory} already: `mesh keys rotate {name}` gives it another")
        # A `make` that broke off after the secret file is finished.
        begun = {name: read_secret(directory, name) for name in names if (directory / f"{name}{SECRET}").exists()}
        for name in names:
            pair = begun.get(name)
            if pair is None:
                pair = new_pair(name)
                _write_secret(directory, pair, SECRET)
            _write_public(directory, name, [PublicKey(name, pair.public, _now())])
            yield pair


def rotate(directory: Path, name: str) -> KeyPair:
    """Another key for a name; the one that it has stays valid, as retiring. Errors as `rotate_each`."""
    (pair,) = rotate_each(directory, [name])
    return pair


def rotate_each(directory: Path, names: Sequence[str]) -> Iterator[KeyPair]:
    """Another key for each name; the one that it has stays valid, as retiring, until it is revoked. All names are
    looked at before the first is given another, and each is told when it has it.

    Raises:
        BadKeys: one has no key here, or two already.
    """
    names = [check_name(name) for name in dict.fromkeys(names)]
    with _changing(directory):
        before: dict[str, list[PublicKey]] = {}
        for name in names:
            _recover(directory, name)
            now = before[name] = read_public(directory, name)
            if not now:
                raise BadKeys(f"{name!r} has no key in {directory}: `mesh keys make {name}` makes one")
            if any(key.retiring for key in now):
                raise BadKeys(
                    f"{name!r} is being rotated already: restart what uses it, then end the old key with "
                    f"`mesh keys revoke {name} --retiring`"
                )
        for name, now in before.items():
            pair = new_pair(name)
            _write_secret(directory, pair, SECRET + NEXT)
            _write_public(
                directory, name, [PublicKey(name, pair.public, _now()), *(replace(key, retiring=True) for key in now)]
            )
            _recover(directory, name)
            yield pair


def revoke(directory: Path, *which: str, retiring: bool = False) -> list[PublicKey]:
    """End keys, each of `which` being a name, or the first digits of one key: all keys of a name, only its retiring
    one, or that key. What cannot be taken back is done for all of them or for none.

    Returns:
        The keys that were ended.

    Raises:
        BadKeys: nothing is called so, and nothing was ended.
    """
    with _changing(directory):
        known = read_known(directory)
        chosen: dict[bytes, PublicKey] = {}
        for each in which:
            chosen |= {key.public: key for key in _choose(directory, known, each, retiring)}
        ended = [replace(key, revoked=_now()) for key in chosen.values()]
        left: dict[str, list[PublicKey]] = {}
        for name in {key.name for key in ended}:
            _recover(directory, name)
            left[name] = [key for key in read_public(directory, name) if key.public not in chosen]
        revoked = [*read_revoked(directory), *ended]
        # First it is refused, then it is forgotten: between the two it is refused already.
        head = "Keys that are nobody any more. Copy this to every host."
        _write(directory / REVOKED, _text(head, revoked, named=True))
        for name, keys in left.items():
            if keys:
                _write_public(directory, name, keys)
            else:
                (directory / f"{name}{PUBLIC}").unlink()
            if not keys or _holds(directory, name, chosen):
                (directory / f"{name}{SECRET}").unlink(missing_ok=True)
    return ended


def _choose(directory: Path, known: Known, which: str, retiring: bool) -> list[PublicKey]:
    chosen = [key for key in known.valid.values() if key.name == which and (key.retiring or not retiring)]
    if not chosen and len(which) >= 8 and not retiring:
        chosen = [key for key in known.valid.values() if key.public.hex().startswith(which.lower())]
    if not chosen:
        names = sorted({key.name for key in known.valid.values()})
        what = "retiring key" if retiring else "valid key"
        raise BadKeys(
            f"{directory} has no {what} {which[:80]!r}, so nothing was revoked; it knows {', '.join(names) or 'nobody'}"
        )
    return chosen


def _holds(directory: Path, name: str, keys: Collection[bytes]) -> bool:
    """Whether the secret here is that of one of these keys. One that cannot be read is no reason to stop half-way."""
    try:
        return (directory / f"{name}{SECRET}").exists() and read_secret(directory, name).public in keys
    except BadKeys:
        return False


def listed(directory: Path) -> tuple[list[PublicKey], list[tuple[Path, BadKeys]]]:
    """Every key that the directory knows: the valid ones by name, newest first, then the revoked ones; and the files
    that cannot be used, with why.

    Raises:
        BadKeys: there is no directory, or others may write to it.
    """
    broken: list[tuple[Path, BadKeys]] = []
    known = read_known(directory, lambda path, exc: broken.append((path, exc)))
    valid = sorted(known.valid.values(), key=lambda key: (key.name, key.retiring))
    return [*valid, *sorted(known.revoked.values(), key=lambda key: (key.name, key.revoked))], broken


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
