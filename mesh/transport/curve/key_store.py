"""Changes a directory of keys: makes, rotates and revokes them.

Owns: the order in which files change, so that the directory is valid at any moment and after a crash at any point, and
so that other users can never read a secret.
Leaves to others: the format of the files (key_files), following changes (key_ring), the command line (cli.keys).
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
    new_pair,
    read_known,
    read_pair,
    read_public,
    read_revoked,
    read_secret,
    shown,
)

#: Suffix of the new secret in a rotation, until the public file contains its key.
NEXT: Final = ".next"


def make(directory: Path, name: str) -> KeyPair:
    """Make a key for a name that has none. Errors as for `make_each`."""
    (pair,) = make_each(directory, [name])
    return pair


def make_each(directory: Path, names: Sequence[str]) -> Iterator[KeyPair]:
    """Make a key for each name, and yield it. All names are checked before the first key is made.

    Raises:
        BadKeys: a name is invalid or has a key already, or the directory cannot be used for keys.
    """
    names = [check_name(name) for name in dict.fromkeys(names)]
    with _changing(directory):
        for name in names:
            if (directory / f"{name}{PUBLIC}").exists():
                raise BadKeys(f"{name!r} already has a key in {directory}: replace it with `mesh keys rotate {name}`")
        # If an earlier `make` was interrupted after it had written the secret file, use that secret.
        begun = {name: read_secret(directory, name) for name in names if (directory / f"{name}{SECRET}").exists()}
        for name in names:
            pair = begun.get(name)
            if pair is None:
                pair = new_pair(name)
                _write_secret(directory, pair, SECRET)
            _write_public(directory, name, [PublicKey(name, pair.public, _now())])
            yield pair


def rotate(directory: Path, name: str) -> KeyPair:
    """Make a new key for a name; its current key stays valid, as retiring. Errors as for `rotate_each`."""
    (pair,) = rotate_each(directory, [name])
    return pair


def rotate_each(directory: Path, names: Sequence[str]) -> Iterator[KeyPair]:
    """Make a new key for each name, and yield it. The current key stays valid, as retiring, until it is revoked. All
    names are checked before the first key is made.

    Raises:
        BadKeys: a name has no key in the directory, or has two already.
    """
    names = [check_name(name) for name in dict.fromkeys(names)]
    with _changing(directory):
        before: dict[str, list[PublicKey]] = {}
        for name in names:
            _recover(directory, name)
            now = before[name] = read_public(directory, name)
            if not now:
                raise BadKeys(f"{name!r} has no key in {directory}: make one with `mesh keys make {name}`")
            if any(key.retiring for key in now):
                raise BadKeys(
                    f"{name!r} is already being rotated: restart the processes that use it, "
                    f"then revoke the old key with `mesh keys revoke {name} --retiring`"
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
    """Revoke keys, which cannot be undone. All of `which` are revoked, or none.

    Args:
        which: names (all keys of a name are revoked), or the first digits of a key, at least 8.
        retiring: revoke only the retiring keys of the names.

    Returns:
        The revoked keys.

    Raises:
        BadKeys: one of `which` matches no key; nothing was revoked.
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
        # Write the list of revoked keys first, so that the keys are invalid even if this is interrupted afterwards.
        head = "Revoked keys. Copy this to every host."
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
            f"{directory} has no {what} {which[:80]!r}, so nothing was revoked; it has {', '.join(names) or 'no keys'}"
        )
    return chosen


def _holds(directory: Path, name: str, keys: Collection[bytes]) -> bool:
    """Whether the secret in the directory belongs to one of these keys. An unreadable secret does not stop `revoke`."""
    try:
        return (directory / f"{name}{SECRET}").exists() and read_secret(directory, name).public in keys
    except BadKeys:
        return False


def listed(directory: Path) -> tuple[list[PublicKey], list[tuple[Path, BadKeys]]]:
    """Every key in the directory: the valid ones by name, newest first, then the revoked ones; and the unusable files
    with their errors.

    Raises:
        BadKeys: there is no directory, or others may write to it.
    """
    broken: list[tuple[Path, BadKeys]] = []
    known = read_known(directory, lambda path, exc: broken.append((path, exc)))
    valid = sorted(known.valid.values(), key=lambda key: (key.name, key.retiring))
    return [*valid, *sorted(known.revoked.values(), key=lambda key: (key.name, key.revoked))], broken


def has_secret(directory: Path, key: PublicKey) -> bool:
    """Whether the directory contains the secret half of this key.

    Raises:
        BadKeys: it does, but in a state that no process accepts.
    """
    return (directory / f"{key.name}{SECRET}").exists() and read_secret(directory, key.name).public == key.public


# --- inside -----------------------------------------------------------------------------------------


@contextmanager
def _changing(directory: Path) -> Iterator[None]:
    """Lock the directory for one change; it is made when it does not exist."""
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        directory.mkdir(mode=0o700, exist_ok=True)
    except OSError as exc:
        raise BadKeys(f"{directory}: cannot be created: {exc.strerror}: correct keys.dir, or pass --dir") from exc
    check_directory(directory)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
        # A rename is durable only after an fsync of the directory.
        os.fsync(fd)
    except OSError as exc:
        raise BadKeys(f"{directory}: keys cannot be changed in this directory: {exc.strerror}") from exc
    finally:
        os.close(fd)


def _recover(directory: Path, name: str) -> None:
    """Complete a rotation: its new secret replaces the old one as soon as the public file contains its key."""
    waiting = directory / f"{check_name(name)}{SECRET}{NEXT}"
    if not waiting.exists():
        return
    # Files are renamed only when complete, so an unreadable one was changed by others: the error is raised.
    pair = read_pair(waiting, name)
    if any(key.public == pair.public for key in read_public(directory, name)):
        os.replace(waiting, directory / f"{name}{SECRET}")
    else:
        waiting.unlink()  # the rotation was interrupted before its key was published


def _write_secret(directory: Path, pair: KeyPair, suffix: str) -> None:
    text = (
        f"# The secret key of {pair.name}, {shown(pair.public)}. It is for the processes of {pair.name} only.\n"
        f'\n[[key]]\npublic = "{pair.public.hex()}"\nsecret = "{pair.secret.hex()}"\nmade = "{_now()}"\n'
    )
    _write(directory / f"{pair.name}{suffix}", text)


def _write_public(directory: Path, name: str, keys: Sequence[PublicKey]) -> None:
    head = f"A process with the secret half of one of these keys is {name}. Copy this to every host."
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
    """Write the whole file atomically; it is never readable for other users."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with open(fd, "wb") as file:
            os.fchmod(fd, 0o600)  # regardless of the umask
            file.write(text.encode())
            file.flush()
            os.fsync(fd)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
