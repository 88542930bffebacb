"""The child processes that a supervised process left behind when it ended.

Owns: finding such processes, and ending them.
Leaves to others: noticing that the process ended (plugin).

supervisord makes each process that it starts the leader of a process group, so most children are in that group. A child
that left the group (`setsid`) still has the environment that supervisord gave to the process, unless it was started
with another one. Reused numbers do no harm: the number of a group is not given to a new process while the group has
members, and a process is killed through a descriptor that was opened before the check.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Collection, Mapping
from typing import Final

from mesh.supervisord import process_tree

#: The maximum number of passes: while one process is ended, another may fork.
MOST_PASSES: Final = 50


def end(group: int, marks: Mapping[str, str], spare: Collection[int] = ()) -> list[int]:
    """End every process that an ended process left behind; returns their pids.

    Args:
        group: the pid of the ended process, which led its process group.
        marks: the environment variables that supervisord set for this process only.
        spare: pids to leave alone: the processes that supervisord runs now.
    """
    wanted = {f"{name}={value}".encode() for name, value in marks.items()}
    ended: list[int] = []
    for _ in range(MOST_PASSES):
        found = [
            pid for pid in process_tree.pids() if pid != os.getpid() and pid not in spare and _end(pid, group, wanted)
        ]
        if not found:
            break
        ended += [pid for pid in found if pid not in ended]
    return ended


def _end(pid: int, group: int, wanted: set[bytes]) -> bool:
    """End this process if it was left behind."""
    if not _is_left(pid, group, wanted):
        return False
    try:
        descriptor = os.pidfd_open(pid)
    except AttributeError:
        return _kill(pid)  # not Linux
    except OSError:
        return False
    try:
        # Check again: before the descriptor was opened, the pid may have been reused.
        if not _is_left(pid, group, wanted):
            return False
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _is_left(pid: int, group: int, wanted: set[bytes]) -> bool:
    if not process_tree.alive(pid):
        return False
    if process_tree.process_group(pid) == group:
        return True
    return bool(wanted) and wanted <= process_tree.variables(pid)


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError:
        return False
    return True
