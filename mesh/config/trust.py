"""Trust in a mesh.toml that was found by searching: it must not be under the control of another user of the machine.

A project file decides what runs: classes to import, programs to start, files to read. A command that finds the file by
searching the current directory and above must not run what another user has put there, least of all as root.
"""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Mapping
from pathlib import Path

from mesh.errors import ConfigError

#: The permission bit that lets every user write.
_WORLD_WRITABLE = stat.S_IWOTH


def check_found(file: Path, named_by: str, env: Mapping[str, str]) -> None:
    """Refuse a project file that was found by searching and that another user controls.

    The file and its directory, from which code would be imported, must belong to this user, to root, or to the user
    who called sudo, and must not be writable by every user.

    Args:
        file: absolute path of the file that was found.
        named_by: how to name the file explicitly instead, for the message.
        env: the environment; `SUDO_UID` in it is the user who called sudo.

    Raises:
        ConfigError: the file is not trusted.
    """
    trusted = _trusted_users(env)
    for path, kind in ((file, "file"), (file.parent, "directory")):
        try:
            status = path.stat()
        except OSError:
            continue  # it was removed or is inaccessible; reading it will report that
        if status.st_uid not in trusted:
            why = f"{path} belongs to {_user(status.st_uid)}"
        elif status.st_mode & _WORLD_WRITABLE:
            why = f"{path} is writable by every user (mode {stat.S_IMODE(status.st_mode):04o})"
        else:
            continue
        raise ConfigError(
            f"{file}: not trusted: {why}, and its code would be imported and run as {_user(os.geteuid())}; "
            f"to use it anyway, name it with {named_by}, or correct the owner and mode of the {kind}",
            details={"file": str(file), "reason": "untrusted"},
        )


def _trusted_users(env: Mapping[str, str]) -> frozenset[int]:
    users = {0, os.geteuid()}
    if env.get("SUDO_UID", "").isdecimal():
        users.add(int(env["SUDO_UID"]))
    return frozenset(users)


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
