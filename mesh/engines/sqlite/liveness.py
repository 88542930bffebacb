"""Whether a process of this host is alive.

Owns: identifying a pid namespace and a process in it, so that another process there can observe it.
Leaves to others: handling a death (mesh.store).
"""

from __future__ import annotations

import os
from pathlib import Path

#: Changes with every boot. Needed because hosts may share a name, and all initial pid namespaces have the same number.
BOOT = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """The unique id of this boot of this host; "" where the system does not provide it."""
    try:
        return BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def pid_space() -> str:
    """The pid namespace of this process, unique over all hosts and boots; "" where the system does not provide it."""
    try:
        return f"{BOOT.read_text(encoding='ascii').strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def born(pid: int) -> str:
    """The kernel's start time of a process of this host, because pids are reused. "" for no such process."""
    state, began = _look(pid)
    return "" if state in ("", "Z", "X", "x") else began


def dead(pid: int, began: str) -> bool:
    """Whether the process with this start time (see `born`) is certainly dead. A zombie counts as dead."""
    if not began:
        return False
    return born(pid) != began


def _look(pid: int) -> tuple[str, str]:
    """(state, start time) of a process; ("", "") when there is none, or no /proc."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return "", ""
    # The name in parentheses may contain anything, even parentheses; the fields after the last one do not.
    fields = text.rpartition(")")[2].split()
    return (fields[0], fields[19]) if len(fields) > 19 else ("", "")
