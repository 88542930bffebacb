"""The operating-system processes that belong to a supervisord, even after it has ended.

Owns: finding them by the variables that supervisord sets for each child; whether a process runs, and where.
Leaves to others: ending them (down).
"""

from __future__ import annotations

import os
import signal
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mesh.telemetry import heartbeats


class Member(NamedTuple):
    """A running process that a supervisord (or one of its children) started."""

    pid: int
    command: str


def members(server_url: str) -> list[Member]:
    """All running processes with SUPERVISOR_SERVER_URL `server_url`: all descendants. Empty without /proc."""
    mark = b"SUPERVISOR_SERVER_URL=" + os.fsencode(server_url)
    found = []
    for pid in pids():
        try:
            if mark not in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                continue
        except OSError:
            continue  # it has ended meanwhile, or belongs to another user
        if pid != os.getpid() and alive(pid):
            found.append(Member(pid, command(pid)))
    return found


def alive(pid: int) -> bool:
    """Whether a process runs. A zombie (in a container, it may never be reaped) does not."""
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


def started_at(pid: int) -> float | None:
    """When a process started, by the wall clock; None when there is none, or no /proc. Exact to a clock tick."""
    if not (fields := _stat(pid)):
        return None
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - age_s


def recorded(pidfile: Path) -> int:
    """The pid in a supervisord's pid file, if it is that of a running supervisord; 0 otherwise, as pids are reused."""
    try:
        pid = int(pidfile.read_text())
    except (OSError, ValueError):
        return 0
    return pid if alive(pid) and is_supervisord(pid) else 0


def supervisord_of(server_url: str, root: Path) -> int:
    """The supervisord of a project without a pid file: the parent of its children, or a supervisord running in `root`.

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
    """The command line of a process, words separated by a space; "" when there is none."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    return " ".join(os.fsdecode(word) for word in words if word)


def environment(pid: int) -> dict[str, str]:
    """The initial environment of a process; empty when unknown."""
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    pairs = (os.fsdecode(entry).partition("=") for entry in entries if entry)
    return {name: value for name, equals, value in pairs if equals}


def variables(pid: int) -> set[bytes]:
    """The initial environment as NAME=value; empty for a process of another user, or one that has ended."""
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
    """Send SIGKILL to a process, unless its pid has been reused; whether it was sent.

    Args:
        started: its start time, from `telemetry.heartbeats.started`.
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
    """The working directory of a process, without links in the path; None when unknown."""
    try:
        return Path(os.readlink(f"/proc/{pid}/cwd"))
    except OSError:
        return None


def parent(pid: int) -> int:
    """The parent of a process (1 when the parent has ended); 0 when unknown."""
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
    """(dead, live): the Unix sockets in `directory` without and with a listening process."""
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
            return True  # busy, of another kind, or not accessible: leave it alone
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
