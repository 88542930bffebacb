"""Changes the number of running copies: new copies must become ready, leaving copies finish their work.

Owns: the order of these steps, and going back when a new copy does not become ready.
Leaves to others: each step (processes), remembering the number (roster), choosing it (people, autoscale).
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from mesh.config import Settings
from mesh.config.settings import cores
from mesh.deploy import deployment_lock
from mesh.deploy.processes import Crew, Interrupted, Tell, at_work, stay
from mesh.errors import MeshError, SetupError, Unavailable
from mesh.suggest import suggest
from mesh.supervisord.control import IDLE, Control
from mesh.supervisord.layout import Layout
from mesh.supervisord.programs import Role
from mesh.supervisord.roster import Roster

#: New copies to start at once, per core: a start uses a core for half a second, and serving processes need it, too.
STARTS_PER_CORE: Final = 2
#: The memory of an idle worker. README.md, "Measured": 27 MB.
WORKER_BYTES: Final = 25_000_000


class NoSuchRole(SetupError):
    """mesh.toml declares nothing with this name."""

    code = "no_such_role"


class Scaled(NamedTuple):
    """The result for one role.

    Attributes:
        before: how many copies ran.
        after: how many run now; when no supervisord runs, how many the next `mesh up` starts.
        running: whether a supervisord runs.
    """

    name: str
    before: int
    after: int
    declared: int
    running: bool = True


async def scale(
    layout: Layout,
    settings: Settings,
    wanted: Mapping[str, int],
    *,
    patience_s: float = 30.0,
    tell: Tell = lambda text: None,
) -> list[Scaled]:
    """Set the number of copies of each role, and record it.

    When no supervisord runs, the numbers are only recorded, for the next one.

    Raises:
        NoSuchRole: mesh.toml declares nothing with that name.
        SetupError: the number is not possible.
        StartFailed: a new copy does not become ready; the number is unchanged.
        Interrupted: the task was cancelled; the number is unchanged.
        Silent: supervisord does not answer.
        LockTaken: another command is changing the processes.
    """
    roster = Roster(layout, settings)
    check(roster, wanted)
    if not _alive(layout):
        with await deployment_lock.entered(layout), roster.lock():
            return [_remember(roster, name, count) for name, count in wanted.items()]
    async with at_work(layout, settings, tell) as crew:
        return [await fit(crew, name, count, patience_s) for name, count in wanted.items()]


async def fit(crew: Crew, name: str, count: int, patience_s: float) -> Scaled:
    """Set the number of copies of one role."""
    roster, role = crew.roster, crew.roster.roles[name]
    earlier = roster.count(name)
    present, known = roster.present(name), crew.processes(role)
    running = {number for number, process in known.items() if process.pid}
    joining = set(range(count)) - running
    # A copy in a crash loop must become ready like a new one; but going back does not stop it, as it was not stopped
    # before.
    looping = {number for number, process in known.items() if not process.pid and process.state not in IDLE}
    leaving = set(known) - set(range(count))
    if joining and not role.single:
        await crew.need_hub()
    text = _text_of_all(role, present, running)
    texts = {number: text or role.text(number) for number in joining}
    texts |= {number: present.get(number) or role.text(number) for number in set(known) - joining}
    roster.choose(name, count)
    if joining:
        waiting = set(joining)
        try:
            for some in _waves(sorted(joining)):
                waiting -= set(some)
                # Keep the copies that supervisord knows in every wave: they may be trying to start.
                there = {number: text for number, text in texts.items() if number not in waiting or number in known}
                crew.keep(role, there)
                crew.start(role, some)
                await crew.ready(role, some, patience_s)
        except (SetupError, Unavailable):
            await _go_back(crew, role, present, joining - looping)
            roster.choose(name, earlier)
            raise
        except asyncio.CancelledError:
            stay()
            await _go_back(crew, role, present, joining - looping)
            roster.choose(name, earlier)
            raise Interrupted(f"interrupted; {name} has {len(running)} processes, as before") from None
    if leaving or set(texts) != set(present):
        await crew.drain(role, leaving)
        crew.keep(role, {number: text for number, text in texts.items() if number < count})
    return Scaled(name, len(running), count, role.declared)


def _waves(numbers: Sequence[int]) -> Iterator[Sequence[int]]:
    size = max(4, STARTS_PER_CORE * cores())
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size]


def _text_of_all(role: Role, present: Mapping[int, str], running: Collection[int]) -> str:
    """The text that a new copy must use when all copies share one text and some run with it; "" otherwise."""
    return next(iter(present.values()), "") if role.socket and running else ""


async def _go_back(crew: Crew, role: Role, present: Mapping[int, str], joining: Collection[int]) -> None:
    """Remove the copies that did not become ready; copies that were stopped before are stopped again."""
    try:
        await crew.drain(role, joining)
        crew.keep(role, present)
    except MeshError:
        pass  # report the original error instead; `mesh up` completes the rest


def _remember(roster: Roster, name: str, count: int) -> Scaled:
    roster.choose(name, count)
    roster.keep(name, roster.wanted(name))
    return Scaled(name, 0, count, roster.roles[name].declared, running=False)


def check(roster: Roster, wanted: Mapping[str, int]) -> None:
    """Raises:
    NoSuchRole: mesh.toml declares nothing with one of these names; the message suggests the most similar name.
    SetupError: a number is not possible.
    """
    check_names(roster, wanted)
    for name, count in wanted.items():
        if not 0 <= count <= roster.roles[name].most:
            raise SetupError(f"{name}={count} is out of range (0–{roster.roles[name].most})")
        more, free = count - roster.count(name), _free_bytes()
        if free is not None and more * WORKER_BYTES > free:
            raise SetupError(
                f"{name}={count}: {more} more workers need {more * WORKER_BYTES // 10**6:,} MB at their start, and "
                f"{free // 10**6:,} MB are free; one worker serves thousands of calls at once"
            )


def _free_bytes() -> int | None:
    """Memory that is available to new processes; None when unknown."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return None


def check_names(roster: Roster, names: Collection[str]) -> None:
    """Raises:
    NoSuchRole: mesh.toml runs nothing of one of these names; the nearest is named.
    """
    for name in names:
        if name in roster.fixed:
            raise NoSuchRole(
                f"{name} is a program of supervisord.conf with one process; `mesh roll {name}` replaces it"
            )
        if name not in roster.roles:
            hint = suggest(name, roster.roles, f"there are {', '.join(roster.roles)}")
            raise NoSuchRole(f"mesh.toml has no [services.{name}] with a class or a command; {hint}")


def _alive(layout: Layout) -> bool:
    control = Control(layout.socket)
    try:
        return control.alive()
    finally:
        control.close()
