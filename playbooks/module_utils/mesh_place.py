"""The installation of a mesh on a host: its releases, the current release, and whether it runs.

Owns: reading the directories below the prefix, and running the commands in its bin.
Leaves to others: changes (the modules in library/).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence

#: Marker files in a release. Complete: the release is complete; contains what its virtual environment was made from.
#: Good: the release has passed its gates, at the time of the file.
COMPLETE = ".complete"
GOOD = ".good"
#: Marks a release in which `mesh roll` supports the gate; its services have been tried.
TRIED = ".tried"
#: The hosts that run a store: every host records them, to detect a store host that has lost its data.
STORES = ".stores"
#: In a release: secrets that only its user can read. In the prefix: a link to the file of the current release.
SECRETS = "secrets.env"
#: Beside the releases: the history of deployments, one per line.
HISTORY = "history.jsonl"

#: A command's own messages are short; a log that it quotes may be longer.
TOLD_CHARACTERS = 6000
#: With --json the whole output is in one line.
JSON_CHARACTERS = 200_000


class Refused(Exception):
    """A command failed; the message is its output."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


class Place:
    """The installation directory of a mesh on a host."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.releases = os.path.join(prefix, "releases")
        self._link = os.path.join(prefix, "current")
        self._history = os.path.join(prefix, HISTORY)
        self._mark = os.path.join(self.releases, ".unfinished")

    @property
    def current(self) -> str:
        """The current release, running or not; "" when there is none."""
        try:
            return os.path.basename(os.readlink(self._link))
        except OSError:
            return ""

    def lead(self, release: str) -> None:
        """Make a release the current one, atomically; "" removes the link."""
        if not release:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._link)
            _sync(self.prefix)
            return
        new = self._link + ".new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
        os.symlink(os.path.join("releases", release), new)
        os.replace(new, self._link)
        _sync(self.prefix)

    @property
    def unfinished(self) -> str | None:
        """The release before an interrupted switch (by a power failure, for example); None when there was none."""
        try:
            with open(self._mark, encoding="utf-8") as file:
                return file.read().strip()
        except OSError:
            return None

    def begin(self, before: str) -> None:
        """Record that a switch begins, during which processes run from two releases."""
        with open(self._mark, "w", encoding="utf-8") as file:
            file.write(f"{before}\n")
            file.flush()
            os.fsync(file.fileno())
        _sync(self.releases)

    def done(self) -> None:
        """Record that all processes run from the current release."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._mark)

    def remember(self, entry: dict[str, object]) -> None:
        """Add a line to the history of this host."""
        with open(self._history, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def history(self, most: int) -> list[dict[str, object]]:
        """The last lines of it, the latest last."""
        try:
            with open(self._history, encoding="utf-8", errors="replace") as file:
                lines = file.readlines()[-most:]
        except OSError:
            return []
        found = []
        for line in lines:
            with contextlib.suppress(ValueError):  # a line that was truncated by a power failure
                found.append(json.loads(line))
        return found

    def stores(self) -> list[str]:
        """The hosts with a store, according to the records of this host."""
        try:
            with open(os.path.join(self.prefix, STORES), encoding="utf-8") as file:
                return [str(name) for name in json.load(file)]
        except (OSError, ValueError, TypeError):
            return []

    def link_secrets(self) -> None:
        """Make the prefix's secrets.env a link to that of the current release.

        A regular file there is from a version in which releases had no secrets of their own; such releases get a copy.
        """
        link = os.path.join(self.prefix, SECRETS)
        if os.path.isfile(link) and not os.path.islink(link):
            for name in self.complete():
                if not os.path.exists(self.path(name, SECRETS)) and not os.path.exists(self.path(name, TRIED)):
                    shutil.copy2(link, self.path(name, SECRETS))
                    os.chown(self.path(name, SECRETS), os.stat(link).st_uid, os.stat(link).st_gid)
        if not os.path.exists(os.path.join(self._link, SECRETS)):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(link)
        elif not os.path.islink(link):
            new = f"{link}.new"
            with contextlib.suppress(FileNotFoundError):
                os.unlink(new)
            os.symlink(os.path.join("current", SECRETS), new)
            os.replace(new, link)

    def path(self, release: str, name: str = "") -> str:
        return os.path.join(self.releases, release, name)

    def all(self) -> list[str]:
        """Every release that was begun."""
        try:
            return sorted(entry.name for entry in os.scandir(self.releases) if entry.is_dir(follow_symlinks=False))
        except OSError:
            return []

    def complete(self) -> list[str]:
        return [name for name in self.all() if os.path.exists(self.path(name, COMPLETE))]

    def made_from(self) -> dict[str, str]:
        """What the virtual environment of each complete release was made from, by release."""
        found = {}
        for name in self.complete():
            with open(self.path(name, COMPLETE), encoding="utf-8") as file:
                found[name] = file.read().strip()
        return found

    def good(self) -> list[str]:
        """The releases that have passed their gates; the last to do so comes first."""
        marked = [name for name in self.complete() if os.path.exists(self.path(name, GOOD))]
        return sorted(marked, key=lambda name: (os.stat(self.path(name, GOOD)).st_mtime_ns, name), reverse=True)

    def in_use(self) -> set[str]:
        """The releases that are the working directory of a process: supervisord stays where it was started."""
        found = set()
        for entry in os.scandir("/proc"):
            try:
                where = os.readlink(f"/proc/{entry.name}/cwd") if entry.name.isdigit() else ""
            except OSError:
                continue  # it has ended, or belongs to another user
            if where.startswith(self.releases + os.sep):
                found.add(where[len(self.releases) + 1 :].split(os.sep)[0])
        return found

    @property
    def runs(self) -> bool:
        """Whether supervisord runs: it listens as long as it runs."""
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(5)
            try:
                probe.connect(os.path.join(self.prefix, "run/supervisor.sock"))
            except OSError:
                return False
            return True

    def do(self, command: str, *words: str) -> str:
        """Run one of the commands in bin, which run as the mesh's own user; returns its output.

        Raises:
            Refused: it failed.
        """
        return do([os.path.join(self.prefix, "bin", command), *words])


def _sync(directory: str) -> None:
    """Sync a directory, so that renames in it survive a power failure."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def do(words: Sequence[str], cwd: str | None = None, more: Mapping[str, str] | None = None) -> str:
    """Run a command; returns its output.

    Raises:
        Refused: it failed; the message is the end of its output.
    """
    # Without stdin: with pipelining it contains this module's own text. C.UTF-8 because output quotes logs.
    done = subprocess.run(
        words,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        env={**os.environ, "LC_ALL": "C.UTF-8", **(more or {})},
    )
    out, err = (text.decode("utf-8", "replace") for text in (done.stdout, done.stderr))
    if done.returncode != 0:
        said = (err.strip() or out.strip())[-(JSON_CHARACTERS if "--json" in words else TOLD_CHARACTERS) :]
        raise Refused(said or f"{os.path.basename(words[0])} ended with {done.returncode}", done.returncode)
    return out
