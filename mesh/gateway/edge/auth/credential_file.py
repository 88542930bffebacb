"""Changes a file of credentials: one writer at a time, and readers see the old content or the new one.

Owns: the lock, the mode, and replacing the file.
Leaves to others: the content (api_keys, passwords), reading it in a gateway (watched_file).
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mesh.errors import SetupError


class BadCredentials(SetupError):
    """A file of credentials cannot be read or changed, or a new credential is not acceptable; the message says why."""

    code = "bad_credentials"


def read(path: Path) -> bytes:
    """The content; b"" when there is no such file.

    Raises:
        BadCredentials: it cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as exc:
        raise BadCredentials(f"{path}: {exc.strerror}") from exc


def change(path: Path, edit: Callable[[bytes], bytes]) -> None:
    """Replace the content by `edit(content)`; a missing file counts as empty. The new file has mode 0600.

    Raises:
        BadCredentials: it cannot be read or written. Nothing has changed then.
    """
    try:
        # A link to a place that releases share stays a link.
        path = path.resolve()
        with _locked(path.parent):
            _replace(path, edit(read(path)))
    except OSError as exc:
        raise BadCredentials(f"{path}: {exc.strerror}") from exc


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    # The directory, because the file itself is replaced, and a lock file would be left behind.
    fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _replace(path: Path, data: bytes) -> None:
    new = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        if path.exists():
            # A file that root writes for the gateway's user stays readable for it.
            old = path.stat()
            if (old.st_uid, old.st_gid) != (os.geteuid(), os.getegid()) and os.geteuid() == 0:
                os.chown(new, old.st_uid, old.st_gid)
        os.replace(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
