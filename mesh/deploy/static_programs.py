"""Rolls the programs that are defined in supervisord.conf itself, like hub and store.

Owns: replacing each of them in place, and going back to the release that it ran from.
Leaves to others: the order of all parts (roll), workers and gateways (replicas), the store (store_handover).

Such a program has no file of its own that names its release: its section contains `directory=%(here)s`, and where
releases are installed side by side that is a link, which points to the new release before a roll begins. So a roll
first pins each program to the release that it runs from: a file in the directory of program files has the same section
as that release's own supervisord.conf, with the release's directory and command, and overrides the current section. A
hub that dies in the middle of a roll restarts from its earlier release. The pin is removed when the program is rolled,
and is written again when the roll goes back.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection
from pathlib import Path
from typing import Final

from mesh.deploy.halt import Halt
from mesh.deploy.processes import Crew
from mesh.errors import ConfigError
from mesh.supervisord import layout as layouts
from mesh.supervisord import process_tree
from mesh.supervisord.control import STOPPED
from mesh.supervisord.layout import Layout, Program
from mesh.supervisord.programs import SIGN

_HERE: Final = "%(here)s"


class Standing:
    """The roll of one program of supervisord.conf, with all its processes.

    Attributes:
        name: of the program.
        registered: it is ready when it is in the registry.
    """

    def __init__(
        self, crew: Crew, layout: Layout, program: Program, patience_s: float, settle_s: float, halt: Halt
    ) -> None:
        self.name = program.name
        self.registered = program.verb in layouts.REGISTERED
        self.program = program
        self.crew = crew
        self.patience_s = patience_s
        self.settle_s = settle_s
        self.halt = halt
        processes = {each.name: each for each in crew.control.processes()}
        known = [processes[name] for name in program.processes if name in processes]
        self.known = bool(known)
        #: The processes that ran, or tried to start, when the roll began: name -> pid.
        self.ran = {each.name: each.pid for each in known if each.state != STOPPED}
        self.pinned = _pin(layout, program, list(filter(None, self.ran.values())))
        self._replaced: list[str] = []
        self._failed = ""
        #: The processes that run from the new release: process -> pid.
        self._pids: dict[str, int] = {}
        #: The hubs that must answer again.
        self._hubs: set[str] = set()

    def hold(self) -> None:
        """Pin the running processes to their release, in case they restart before this part is rolled."""
        if self.pinned:
            self._take(self.pinned)

    async def forward(self) -> int:
        """Replace each running process; returns how many there were."""
        if not self.known:
            await self._join()
        for name in self.ran:
            self.halt.check()
            self._failed = name
            await self.replace(name)
            self._failed = ""
            self._replaced.append(name)
            await self.crew.running(self._pids, self.settle_s)
        self.let_go()
        return len(self._replaced)

    async def back(self, *, sound: bool = False) -> str:
        """Run the replaced processes from their earlier release again; returns a description of what runs then.

        Args:
            sound: the roll was only interrupted: a process may start with the current contents of its directory.
        """
        touched = [*self._replaced, *([self._failed] if self._failed else [])]
        self.halt = Halt()
        # Some hubs of the failed release may not be hubs of the earlier one.
        self._hubs &= self.crew.hubs()
        if not self.known:
            await self.crew.end(self.program.processes, self.program.stop_s)
            return f"{self.name} is new, and was stopped"
        if touched and not self.pinned:
            if sound and self._failed:
                await self._restart(self._failed)
                self._failed = ""
            return self._cannot()
        self.hold()
        self._pids.clear()
        for name in touched:
            await self._restart(name)
        await self.crew.running(self._pids)
        return f"{self.name} runs as before"

    async def replace(self, name: str) -> None:
        """Stop one process, and start it with the current supervisord.conf."""
        await self._end(name)
        self.let_go()
        await self._start(name)

    def let_go(self) -> None:
        """Remove the pin, so that supervisord.conf applies."""
        self.crew.roster.unpin(self.name)
        self.crew.control.sync(self.program.group)

    # --- inside -------------------------------------------------------------------------------------------

    async def _join(self) -> None:
        """Start a program that is new in supervisord.conf."""
        self.let_go()
        self._pids = await self.answer(self.program.processes)

    async def _restart(self, name: str) -> None:
        await self._end(name)
        await self._start(name)

    async def _end(self, name: str) -> None:
        before = self.crew.answering_hubs()
        await self.crew.end([name], self.program.stop_s)
        # Hubs of other hosts keep answering.
        self._hubs |= before - self.crew.answering_hubs()

    async def _start(self, name: str) -> None:
        self.crew.begin([name])
        self._pids |= await self.answer([name])

    async def answer(self, names: Collection[str]) -> dict[str, int]:
        """Wait until these processes are ready; returns their pids."""
        if self.program.verb != "hub":
            return await self.crew.answering(names, self.patience_s, registered=self.registered)

        async def missing(pids: Collection[int]) -> Collection[int]:
            answering = self.crew.answering_hubs()
            return () if answering and self._hubs <= answering else pids

        return await self.crew.until(names, self.patience_s, missing, lambda pid: "it does not answer as a hub")

    def _take(self, text: str) -> None:
        self.crew.roster.pin(self.name, text)
        self.crew.control.sync(self.program.group)

    def _cannot(self) -> str:
        """The message for code that was changed in place: there is no earlier release to go back to."""
        if self._failed:
            return f"{self._failed} does not run; `mesh logs {self.name}` shows why"
        return f"{self.name} was replaced already, and runs the current contents of its directory"


def programs(layout: Layout) -> list[Program]:
    """The programs that are defined in the file itself, in the order in which they start."""
    return [program for program in layout.programs if not program.included]


def current(layout: Layout, program: Program) -> Path:
    """The program's directory in supervisord.conf, without links in the path."""
    return Path(program.keys.get("directory", str(layout.root)).replace(_HERE, str(layout.root))).resolve()


def release_of(text: str) -> str:
    """The release directory in the text of a pin."""
    return next((line.partition("=")[2] for line in text.splitlines() if line.startswith("directory=")), "")


async def loosen(crew: Crew, layout: Layout) -> tuple[list[str], list[str]]:
    """Remove the pins that a failed or interrupted roll has left, if no process needs them.

    Returns:
        The names of the removed pins, and of those that a process of an earlier release still needs.
    """
    pins = crew.roster.pins()
    there = {program.name: program for program in programs(layout)}
    running = {each.program for each in crew.control.processes() if each.pid}
    gone, held = [], []
    for name, text in pins.items():
        program = there.get(name)
        if program is not None and program.group in running and release_of(text) != str(current(layout, program)):
            held.append(name)
            continue
        if program is None:
            # The pin of a spare process.
            own = [each for each in layout.programs if each.group == name]
            await crew.end(
                {process for each in own for process in each.processes}, max((each.stop_s for each in own), default=0.0)
            )
        crew.roster.unpin(name)
        crew.control.sync(program.group if program is not None else name)
        gone.append(name)
    return gone, held


def _pin(layout: Layout, program: Program, pids: Collection[int]) -> str:
    """The pin of a program to the release that it runs from; "" when that is the current one, or unknown."""
    release = next((process_tree.directory(pid) for pid in pids), None)
    if release is None or release == current(layout, program) or not release.is_dir():
        return ""
    try:
        earlier = layouts.read(release / layout.conf.name)
    except ConfigError:
        return ""
    found = next((each for each in programs(earlier) if each.name == program.name), None)
    return section(found, release) if found is not None else ""


def section(program: Program, release: Path, **keys: str) -> str:
    """A program's section with `release` for `%(here)s`, for a file that supervisord.conf includes.

    Args:
        keys: override those in the section; `name`: another name.
    """
    name = keys.pop("name", program.name)
    here = str(release).replace("%", "%%")
    own = {key: value.replace(_HERE, here) for key, value in program.keys.items()}
    own.setdefault("directory", here)
    own["command"] = command(program, release)
    lines = [f"{key}={value}".replace("\n", "\n  ") for key, value in {**own, **keys}.items()]
    head = f"{SIGN}{release / 'supervisord.conf'}. `mesh roll {program.name}` removes it.\n"
    return head + f"[{program.kind}:{name}]\n" + "\n".join(lines) + "\n"


def command(program: Program, release: Path) -> str:
    """The program's command, from that release."""
    first, _, rest = program.keys.get("command", "").replace(_HERE, str(release)).partition(" ")
    own = release / ".venv" / "bin" / "mesh"
    if first == "mesh" and own.exists():
        first = shlex.quote(os.fspath(own)).replace("%", "%%")
    return f"{first} {rest}".rstrip()
