"""Common start-up of long-running commands: configure the logs, and raise the limit of open files.

Owns: these two. Leaves to others: the command's own work.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from mesh.config import Settings

# With no limit, or an extremely high one, some libraries close a million files one by one.
FILES: Final = 65_536


def prepare(settings: Settings, role: str, muted: Collection[str] = ()) -> None:
    """Make this process ready to serve.

    Args:
        role: names it in each of its log lines.
        muted: loggers that write warnings and worse only; see telemetry.logs.
    """
    from mesh.telemetry import logs, recent_lines

    if "SUPERVISOR_ENABLED" not in os.environ:
        # Without a log file, `mesh logs` asks the process itself.
        recent_lines.keep()
    logs.configure(
        settings.log.level,
        settings.log.format,
        muted=muted,
        role=role,
        process=os.environ.get("SUPERVISOR_PROCESS_NAME", ""),
    )
    _raise_file_limit()


def quiet() -> None:
    """For a command that reports itself what is missing: suppress log lines about hubs that are not reachable yet."""
    from mesh.telemetry import logs

    logs.configure("error")


def _raise_file_limit() -> None:
    """Raise the usual soft limit of 1,024, which is too low: a link takes five files, an HTTP connection one."""
    try:
        import resource
    except ImportError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(hard, FILES)
    if soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (ValueError, OSError):
            pass
