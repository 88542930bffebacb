"""Replacing what runs by what mesh.toml and the code now say, one by one, without a moment in which fewer answer.

Owns: the order (a spare one first, then each in its place), and going back when one does not become ready.
Leaves to others: each step (crew), what a copy is to be (programs), what a release is (deployment).

Going back means that every copy replaced so far gets its earlier program file again. That file names the release's
directory and command; so where releases stand side by side, what runs afterwards is the earlier release, whole. Where
the code was changed in its place, the earlier code is gone: then the copies that were not yet replaced simply run on,
and the spare one stays in the place of the one that failed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mesh.config import Settings
from mesh.errors import MeshError, SetupError, Unavailable
from mesh.supervision.crew import Crew, Tell, at_work, now
from mesh.supervision.layout import Layout
from mesh.supervision.programs import Role
from mesh.supervision.scale import check_names


class RollFailed(SetupError):
    """A replacement did not become ready; the message says which, why, and what runs now."""

    code = "roll_failed"


class Rolled(NamedTuple):
    """One role that was rolled: how many copies were replaced, and how long that took."""

    name: str
    replaced: int
    seconds: float


async def roll(
    layout: Layout,
    settings: Settings,
    names: Sequence[str] = (),
    *,
    patience_s: float = 30.0,
    settle_s: float = 1.0,
    tell: Tell = lambda text: None,
) -> list[Rolled]:
    """Replace each running copy of these roles, or of all.

    Args:
        patience_s: how long one replacement may take to become ready.
        settle_s: how long it must then go on before the next step.

    Raises:
        NoSuchRole: mesh.toml runs nothing of that name.
        RollFailed: a replacement did not become ready; what ran before runs again.
        Unavailable: no supervisord runs, or a copy does not leave.
        LockTaken: another command is changing what runs.
    """
    async with at_work(layout, settings, tell) as crew:
        check_names(crew.roster, names)
        done: list[_Roll] = []
        rolled = []
        for name in names or tuple(crew.roster.roles):
            one = _Roll(crew, crew.roster.roles[name], patience_s, settle_s)
            done.append(one)
            began = now()
            try:
                count = await one.forward()
            except (SetupError, Unavailable) as exc:
                raise await _go_back(done, exc) from exc
            rolled.append(Rolled(name, count, now() - began))
        return rolled


async def _go_back(done: list[_Roll], exc: MeshError) -> RollFailed:
    """Undo everything, the latest first; what to tell of it."""
    went = []
    for one in reversed(done):
        try:
            went.append(await one.back())
        except (SetupError, Unavailable) as further:
            went.append(f"{one.role.name} could not go back: {further.message}")
    return RollFailed(f"{exc.message}\nthe roll was stopped; {'; '.join(went)}", details=exc.details)


class _Roll:
    """One role's copies on their way from their earlier program files to new ones."""

    def __init__(self, crew: Crew, role: Role, patience_s: float, settle_s: float) -> None:
        self.role = role
        self._crew = crew
        self._patience_s = patience_s
        self._settle_s = settle_s
        known = crew.processes(role)
        self._before: dict[int, str] = {n: role.text(n) for n in known} | crew.roster.present(role.name)
        #: What the program files say at this moment.
        self._texts = dict(self._before)
        self._numbers = sorted(number for number, process in known.items() if process.pid)
        self._spare = max([*known, crew.roster.count(role.name) - 1], default=-1) + 1
        #: Those that run by their new file: process -> pid.
        self._new: dict[str, int] = {}
        self._replaced: list[int] = []
        self._failed: int | None = None

    async def forward(self) -> int:
        """Replace all; how many that were."""
        crew, role = self._crew, self.role
        after = {number: role.text(number) for number in range(crew.roster.count(role.name))}
        self._check_socket()
        if role.single:
            for number in self._numbers:
                await self._replace(number, after[number])
        elif self._numbers:
            await self._place(self._spare, role.text(self._spare))
            await self._settle()
            for number in self._numbers:
                if number in after:
                    await self._replace(number, after[number])
        # A new service, or more copies than there were. What stands still was stopped by hand: it gets its new file and
        # stays so.
        if self._numbers or not self._before:
            for number in sorted(set(after) - set(self._before)):
                await self._place(number, after[number])
                await self._settle()
        # The spare one and any other surplus.
        await self._leave(set(self._texts) - set(after))
        self._texts = after
        crew.keep(role, after)
        return len(self._replaced)

    async def back(self) -> str:
        """Give every replaced copy its earlier file again, one by one; what runs then, in words."""
        crew, role = self._crew, self.role
        name = role.name
        touched = [*self._replaced, *([] if self._failed is None else [self._failed])]
        undone = [number for number in touched if self._before[number] != self._texts[number]]
        if self._failed is not None and not undone and role.single:
            return f"{name} does not run; `mesh logs {name}` shows why"
        if self._failed is not None and not undone:
            # The same file would start the same code again. The spare one, which is ready, stays in its place.
            await crew.drain(role, [self._failed])
            return f"{role.process(self._failed)} is stopped, {role.process(self._spare)} runs in its place"
        # From here on it is the earlier release that has to hold.
        self._new.clear()
        if undone and role.single:
            await self._replace(0, self._before[0])
        elif undone:
            old = role.renumbered(self._before[undone[0]], undone[0], self._spare)
            await self._replace(self._spare, old)
            for number in reversed(undone):
                await self._replace(number, self._before[number])
        await self._leave(set(self._texts) - set(self._before))
        gone = [number for number in self._numbers if number not in self._texts]
        self._texts = {number: text for number, text in self._texts.items() if number in self._before}
        for number in gone:
            await self._place(number, self._before[number])
        self._texts = dict(self._before)
        crew.keep(role, self._before)
        if self._replaced and not undone:
            return f"{name} was replaced already, and runs what its directory now holds"
        return f"{name} runs as before" if self._before else f"{name} is not there, as before"

    async def _place(self, number: int, text: str) -> None:
        """Add a copy, and wait until it is ready."""
        crew, role = self._crew, self.role
        self._texts[number] = text
        crew.keep(role, self._texts)
        crew.start(role, [number])
        self._new |= await crew.ready(role, [number], self._patience_s)

    async def _replace(self, number: int, text: str) -> None:
        """Let one copy leave, and start it by another file."""
        self._failed = number
        await self._leave({number})
        await self._place(number, text)
        self._failed = None
        self._replaced.append(number)
        await self._settle()

    async def _leave(self, numbers: set[int]) -> None:
        for number in numbers:
            self._new.pop(self.role.process(number), None)
        await self._crew.drain(self.role, numbers)

    async def _settle(self) -> None:
        """What was ready must go on."""
        until = now() + self._settle_s
        while True:
            self._crew.check(self._new)
            if now() >= until:
                return
            await asyncio.sleep(min(0.2, max(0.0, until - now())))

    def _check_socket(self) -> None:
        if self.role.socket and self._numbers and not _listens(self._before, self.role.socket):
            raise SetupError(
                f"mesh.toml now lets the gateways listen on {self.role.socket.removeprefix('tcp://')}: a socket cannot "
                "move while it is served; `mesh down && mesh up` opens the new one"
            )


def _listens(texts: Mapping[int, str], socket: str) -> bool:
    return any(f"socket={socket}\n" in text for text in texts.values())
