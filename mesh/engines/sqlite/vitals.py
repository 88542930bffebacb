"""Whether a process of this host still lives.

Owns: naming a place (host, pid namespace) and a process in it, so that another process there can look.
Leaves to others: what follows from a death (mesh.store).
"""

from __future__ import annotations

import os
from pathlib import Path

#: The one that changes with every boot: hosts may share their names, and all first pid namespaces their number.
BOOT = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """What this boot of this host is known by, unlike any other; "" where the system does not tell."""
    try:
        return BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def pid_space() -> str:
    """The pid namespace of this process, unlike that of any other host or boot; "" where the system does not tell."""
    try:
        return f"{BOOT.read_text(encoding='ascii').strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def born(pid: int) -> str:
    """When a process of this host began, as the kernel tells it: a pid may be given to another. "" for none."""
    state, began = _look(pid)
    return "" if state in ("", "Z", "X", "x") else began


def dead(pid: int, began: str) -> bool:
    """Whether the process that was `born` then surely runs no more (what waits to be reaped does not run)."""
    if not began:
        return False
    return born(pid) != began


def _look(pid: int) -> tuple[str, str]:
    """(state, start time) of a process; ("", "") when there is none, or no /proc."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return "", ""
    # The name in parentheses may hold anything, parentheses too; what follows the last one does not.
    fields = text.rpartition(")")[2].split()
    return (fields[0], fields[19]) if len(fields) > 19 else ("", "")
