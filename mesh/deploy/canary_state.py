"""The canary roll of a project, as other commands see it: which one runs, and the request to abort it.

Owns: the two files beside the program files. Leaves to others: the processes (canary), the lock (roster).

The files only inform. What is true of a canary is in the registry (its share and lease), and who may change processes
is decided by the lock; so a file that a killed command has left behind is harmless.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec

from mesh.supervisord.roster import Roster

STATE: Final = ".canary.json"
ABORT: Final = ".canary.abort"


class CanaryState(msgspec.Struct, frozen=True):
    """A canary roll.

    Attributes:
        service: its name.
        pid: of the command.
        share: the present share of the canaries, 0.0 to 1.0.
        mirror: the part of the calls that is copied, 0.0 to 1.0.
        began_at: by the wall clock.
    """

    service: str
    pid: int
    share: float
    mirror: float
    began_at: float


class StateFiles:
    """The files of one project."""

    def __init__(self, roster: Roster) -> None:
        self._directory = roster.directory

    def read(self) -> CanaryState | None:
        """The canary roll that a command is running; None when there is none."""
        try:
            found = msgspec.json.decode((self._directory / STATE).read_bytes(), type=CanaryState)
        except (OSError, msgspec.MsgspecError):
            return None
        return found if Path(f"/proc/{found.pid}").exists() or not Path("/proc/self").exists() else None

    def write(self, state: CanaryState) -> None:
        """Show this roll to other commands."""
        new = self._directory / f"{STATE}.new"
        new.touch(mode=0o600)
        new.write_bytes(msgspec.json.encode(state))
        os.replace(new, self._directory / STATE)

    def ask_to_abort(self) -> None:
        """Ask the command of the roll to go back."""
        (self._directory / ABORT).touch(mode=0o600)

    @property
    def abort_asked(self) -> bool:
        """Whether another command asked for it."""
        return (self._directory / ABORT).exists()

    def clear(self) -> None:
        """Remove both files."""
        for name in (STATE, ABORT):
            (self._directory / name).unlink(missing_ok=True)
