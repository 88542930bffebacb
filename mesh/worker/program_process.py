"""The process of a program, and everything that it starts.

Owns: starting it in a session of its own, ending it and what it leaves behind, its memory.
Leaves to others: when (program), where it listens (program_place), its limits and its first step (program_shim).

The output of the program goes where that of this process goes, line by line and without passing through this process:
under supervisor, into the log of the worker.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from mesh.errors import SetupError

SHIM: Final = Path(__file__).with_name("program_shim.py")
#: The environment variable with the name of the instance.
MARK: Final = "MESH_INSTANCE"
#: How often to look whether a process that was killed has gone.
_LOOK_EVERY_S: Final = 0.02
#: After SIGKILL; longer takes only a process that the kernel cannot end, such as one that waits for a dead disk.
_REAP_S: Final = 5.0


class ProgramProcess:
    """One running program.

    Attributes:
        pid: of the command itself; also the number of its session and of its process group.
    """

    def __init__(self, process: asyncio.subprocess.Process, mark: str) -> None:
        self._process = process
        #: NAME=value in the environment of this program alone: it finds a child that has left the session.
        self._mark = os.fsencode(mark)
        self.pid = process.pid
        self.ended: asyncio.Task[int] = asyncio.create_task(process.wait(), name="mesh.program")

    @classmethod
    async def start(
        cls, command: Sequence[str], environment: Mapping[str, str], limits: Mapping[str, int]
    ) -> ProgramProcess:
        """Start a command, in the current directory.

        Args:
            environment: all of it; the variable MARK has a value that no other program has.
            limits: "memory" in bytes, "files", "nice"; 0 for none.

        Raises:
            SetupError: the operating system starts no process.
        """
        words = [sys.executable, "-I", "-S", str(SHIM), str(os.getpid())]
        words += [f"{name}={number}" for name, number in limits.items() if number]
        try:
            process = await asyncio.create_subprocess_exec(
                *words, "--", *command, env=dict(environment), stdin=asyncio.subprocess.DEVNULL, start_new_session=True
            )
        except (OSError, ValueError) as exc:
            raise SetupError(f"{command[0]}: cannot be started: {exc}", details={"key": "command"}) from exc
        return cls(process, f"{MARK}={environment[MARK]}")

    @property
    def running(self) -> bool:
        """Whether the command itself runs."""
        return self._process.returncode is None

    @property
    def status(self) -> int:
        """Its exit code, by the convention of shells: 128 plus the number of the signal that ended it."""
        code = self._process.returncode or 0
        return 128 - code if code < 0 else code

    def members(self) -> list[int]:
        """The pids of all its processes: those of its session, and all descendants. The command alone without /proc."""
        parents: dict[int, int] = {}
        found: set[int] = set()
        for pid, fields in _stats():
            parents[pid] = int(fields[1])
            # When the command has ended, its pid may belong to another process.
            if (pid == self.pid and self.running) or (pid != self.pid and fields[3] == str(self.pid)):
                found.add(pid)
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        return sorted(found) or ([self.pid] if self.running else [])

    def memory_bytes(self) -> int:
        """The private memory of all its processes; 0 when unknown."""
        return sum(_anonymous_bytes(pid) for pid in self.members())

    def terminate(self) -> None:
        """Send SIGTERM to its process group."""
        self._signal(signal.SIGTERM)

    async def end(self, patience_s: float) -> bool:
        """Send SIGTERM, and SIGKILL to what is left after `patience_s` seconds; returns whether that was not needed."""
        if self.running:
            self.terminate()
            await asyncio.wait({self.ended}, timeout=patience_s)
        clean = not self.running
        await self.kill()
        return clean

    async def kill(self) -> None:
        """End every process that it has started at once, also those that made a session of their own."""
        if self.running:
            self._signal(signal.SIGKILL)
        for _ in range(int(_REAP_S / _LOOK_EVERY_S)):
            left = {*self.members(), *self._marked()}
            if not left:
                break
            for pid in left:
                # One by one: a child may have made a group of its own.
                self._kill(pid)
            await asyncio.sleep(_LOOK_EVERY_S)
        if self.running:
            await asyncio.wait({self.ended}, timeout=_REAP_S)

    def _marked(self) -> Iterator[int]:
        return (pid for pid, _ in _stats() if pid != os.getpid() and self._has_mark(pid))

    def _has_mark(self, pid: int) -> bool:
        try:
            return self._mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return False  # it has ended, or belongs to another user

    def _kill(self, pid: int) -> None:
        """Send SIGKILL to one of its processes, unless the pid has been reused since it was found."""
        try:
            descriptor = os.pidfd_open(pid)
        except (AttributeError, OSError):
            return  # it has ended; without pidfd_open there is no /proc either, and the group has the signal already
        try:
            if pid in self.members() or self._has_mark(pid):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        except OSError:
            pass  # it has ended, or is now another user's
        finally:
            os.close(descriptor)

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self.pid, number)
        except OSError:
            pass  # it has ended, or is now another user's


def _stats() -> Iterator[tuple[int, list[str]]]:
    """(pid, [state, parent, group, session, …]) of every process that runs. Source: proc(5)."""
    try:
        names = os.listdir("/proc")
    except OSError:
        return
    for name in names:
        if name.isdigit():
            try:
                fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has ended
            if fields[0] not in ("Z", "X"):
                yield int(name), fields


def _anonymous_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as lines:
            return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)
    except (OSError, ValueError, IndexError):
        return 0
