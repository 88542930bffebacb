"""Which operating-system processes belong to a supervisord, even after it is gone.

Owns: finding them by what supervisord writes into each child's environment; whether a process lives, and where.
Leaves to others: ending them (down).
"""

from __future__ import annotations

import os
import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mesh.telemetry import heartbeats


class Member(NamedTuple):
    """A living process that a supervisord (or one of its children) started."""

    pid: int
    command: str


def members(server_url: str) -> list[Member]:
    """Everything alive whose SUPERVISOR_SERVER_URL is `server_url`: children and theirs. Empty without /proc."""
    mark = b"SUPERVISOR_SERVER_URL=" + os.fsencode(server_url)
    found = []
    for pid in pids():
        try:
            if mark not in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                continue
        except OSError:
            continue  # it ended meanwhile, or belongs to somebody else
        if pid != os.getpid() and alive(pid):
            found.append(Member(pid, command(pid)))
    return found


def alive(pid: int) -> bool:
    """Whether a process runs. One that ended and was not yet reaped (in a container, it may never be) does not."""
    if pid <= 0:
        return False
    if Path("/proc/self/stat").exists():
        return bool(fields := _stat(pid)) and fields[0] not in ("Z", "X")
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def recorded(pidfile: Path) -> int:
    """The pid in a supervisord's pid file, if one lives by it; 0 otherwise, for an old number may be anybody's."""
    try:
        pid = int(pidfile.read_text())
    except (OSError, ValueError):
        return 0
    return pid if alive(pid) and is_supervisord(pid) else 0


def supervisord_of(server_url: str, root: Path) -> int:
    """The supervisord of a project whose pid file is gone: the parent of its children, or one that works in `root`.

    0 when there is none.
    """
    parents = {parent(member.pid) for member in members(server_url)}
    here = root.resolve()
    for pid in pids():
        if is_supervisord(pid) and alive(pid) and (pid in parents or directory(pid) == here):
            return pid
    return 0


def is_supervisord(pid: int) -> bool:
    """Whether a process runs supervisord, and does not merely have its name in an argument, as an editor may."""
    program, *arguments = command(pid).split(" ")
    if os.path.basename(program) == "supervisord":
        return True
    names = {os.path.basename(each) for each in arguments[:2]}
    return os.path.basename(program).startswith("python") and bool(names & {"supervisord", "supervisor.supervisord"})


def command(pid: int) -> str:
    """Its command line, words separated by a space; "" when there is none."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    return " ".join(os.fsdecode(word) for word in words if word)


def environment(pid: int) -> dict[str, str]:
    """What it was started with; empty when nobody tells."""
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    pairs = (os.fsdecode(entry).partition("=") for entry in entries if entry)
    return {name: value for name, equals, value in pairs if equals}


def variables(pid: int) -> set[bytes]:
    """NAME=value of what it was started with; empty when it is another user's, or has ended."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return set(file.read().split(b"\0"))
    except OSError:
        return set()


def process_group(pid: int) -> int:
    """The number of its process group; 0 when unknown."""
    fields = _stat(pid)
    return int(fields[2]) if fields else 0


def kill(pid: int, started: int | None) -> bool:
    """SIGKILL for a process, unless its number has gone to another one; whether it was sent.

    Args:
        started: when it started, as `telemetry.heartbeats.started` tells.
    """
    try:
        descriptor = os.pidfd_open(pid)
    except AttributeError:
        descriptor = -1  # not Linux
    except OSError:
        return False
    try:
        if heartbeats.started(pid) not in (started, None):
            return False
        if descriptor >= 0:
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGKILL)
    except OSError:
        return False
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    return True


def directory(pid: int) -> Path | None:
    """Where it works, with no link in the path; None when nobody tells."""
    try:
        return Path(os.readlink(f"/proc/{pid}/cwd"))
    except OSError:
        return None


def parent(pid: int) -> int:
    """The process that started it (1 when that ended); 0 when unknown."""
    fields = _stat(pid)
    return int(fields[1]) if fields else 0


def _stat(pid: int) -> list[str]:
    """State, parent, … of a process; empty when there is none, or no /proc."""
    try:
        # "pid (name) state ppid …"; the name may hold spaces and brackets.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def dead_sockets(directory: Path) -> tuple[list[Path], list[Path]]:
    """(dead, live): the unix sockets in `directory` on which nobody, or somebody, listens."""
    dead: list[Path] = []
    live: list[Path] = []
    try:
        entries = sorted(directory.iterdir())
    except OSError:
        return [], []
    for path in entries:
        try:
            if stat.S_ISSOCK(path.lstat().st_mode):
                (live if _listens(path) else dead).append(path)
        except FileNotFoundError:
            continue
    return dead, live


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(0.5)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True  # busy, of another kind, or not ours to judge: leave it alone
    return True


def pids() -> Iterator[int]:
    """All processes of this host; none without /proc."""
    try:
        names = os.listdir("/proc")
    except OSError:
        return
    for name in names:
        if name.isdigit():
            yield int(name)
