"""What a supervised process has started and left behind when it ended.

Owns: finding such processes, and ending them.
Leaves to others: seeing that the process ended (plugin).

supervisord makes each process that it starts the leader of a process group, so most of what the process forked is in
that group. What left the group (`setsid`) still has the environment that supervisord gave to the process, unless it was
started with another one. Neither is taken from a number alone: a group's number is not given to a new process while the
group has members, and a process is ended through a descriptor that was opened before it was looked at.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Collection, Mapping
from typing import Final

from mesh.supervision import family

#: Ending one process gives another the time to fork: so many passes are made at most.
MOST_PASSES: Final = 50


def end(group: int, marks: Mapping[str, str], spare: Collection[int] = ()) -> list[int]:
    """End every process that is left of one that has ended; their pids.

    Args:
        group: the pid of the process, which led its process group.
        marks: the variables that supervisord put into its environment, and into no other's.
        spare: pids that are none of its own: what supervisord runs now.
    """
    wanted = {f"{name}={value}".encode() for name, value in marks.items()}
    ended: list[int] = []
    for _ in range(MOST_PASSES):
        found = [pid for pid in family.pids() if pid != os.getpid() and pid not in spare and _end(pid, group, wanted)]
        if not found:
            break
        ended += [pid for pid in found if pid not in ended]
    return ended


def _end(pid: int, group: int, wanted: set[bytes]) -> bool:
    """End this process if it is one of them."""
    if not _is_left(pid, group, wanted):
        return False
    try:
        descriptor = os.pidfd_open(pid)
    except AttributeError:
        return _kill(pid)  # not Linux
    except OSError:
        return False
    try:
        # Looked at again: between the first look and the opening, its number may have gone to another process.
        if not _is_left(pid, group, wanted):
            return False
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _is_left(pid: int, group: int, wanted: set[bytes]) -> bool:
    if not family.alive(pid):
        return False
    if family.process_group(pid) == group:
        return True
    return bool(wanted) and wanted <= family.variables(pid)


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError:
        return False
    return True
