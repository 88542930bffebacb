"""Changing how many copies run: new ones are ready before it is said, those that leave finish what they have.

Owns: the order of these steps, and going back when a new one does not become ready.
Leaves to others: each step (crew), remembering the number (roster), choosing it (people, autoscale).
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import NamedTuple

from mesh.config import Settings
from mesh.errors import MeshError, SetupError, Unavailable
from mesh.supervision.control import Control
from mesh.supervision.crew import Crew, Tell, at_work
from mesh.supervision.layout import Layout
from mesh.supervision.programs import Role
from mesh.supervision.roster import Roster


class NoSuchRole(SetupError):
    """mesh.toml runs nothing of this name."""

    code = "no_such_role"


class Scaled(NamedTuple):
    """What was done to one role.

    Attributes:
        before: how many copies ran.
        after: how many run now; when nothing runs, how many the next `mesh up` starts.
    """

    name: str
    before: int
    after: int
    declared: int


async def scale(
    layout: Layout,
    settings: Settings,
    wanted: Mapping[str, int],
    *,
    patience_s: float = 30.0,
    tell: Tell = lambda text: None,
) -> list[Scaled]:
    """Make each role have so many copies, and remember it.

    When no supervisord runs, it is remembered for the next one.

    Raises:
        NoSuchRole: mesh.toml runs nothing of that name.
        StartFailed: a new copy does not become ready; the number is what it was before.
        LockTaken: another command is changing what runs.
    """
    roster = Roster(layout, settings)
    check(roster, wanted)
    if not _alive(layout):
        with roster.lock():
            return [_remember(roster, name, count) for name, count in wanted.items()]
    async with at_work(layout, settings, tell) as crew:
        return [await fit(crew, name, count, patience_s) for name, count in wanted.items()]


async def fit(crew: Crew, name: str, count: int, patience_s: float) -> Scaled:
    """Make one role have so many copies."""
    roster, role = crew.roster, crew.roster.roles[name]
    earlier = roster.count(name)
    present, known = roster.present(name), crew.processes(role)
    running = {number for number, process in known.items() if process.pid}
    joining = set(range(count)) - running
    leaving = set(known) - set(range(count))
    if joining and not role.single:
        await crew.need_hub()
    text = _text_of_all(role, present, running)
    texts = {number: text or role.text(number) for number in joining}
    texts |= {number: present.get(number) or role.text(number) for number in set(known) - joining}
    roster.choose(name, count)
    if joining:
        try:
            crew.keep(role, texts)
            crew.start(role, joining)
            await crew.ready(role, joining, patience_s)
        except (SetupError, Unavailable):
            await _go_back(crew, role, present, joining)
            roster.choose(name, earlier)
            raise
    if leaving or set(texts) != set(present):
        await crew.drain(role, leaving)
        crew.keep(role, {number: text for number, text in texts.items() if number < count})
    return Scaled(name, len(running), count, role.declared)


def _text_of_all(role: Role, present: Mapping[int, str], running: Collection[int]) -> str:
    """The text that a new copy must have, because it is one for all and some run by it; "" otherwise."""
    return next(iter(present.values()), "") if role.socket and running else ""


async def _go_back(crew: Crew, role: Role, present: Mapping[int, str], joining: Collection[int]) -> None:
    """Take what did not become ready away again; what stood still before stands still again."""
    try:
        await crew.drain(role, joining)
        crew.keep(role, present)
    except MeshError:
        pass  # what led here is what there is to tell; `mesh up` brings the rest in line


def _remember(roster: Roster, name: str, count: int) -> Scaled:
    roster.choose(name, count)
    roster.keep(name, roster.wanted(name))
    return Scaled(name, 0, count, roster.roles[name].declared)


def check(roster: Roster, wanted: Mapping[str, int]) -> None:
    """Raises:
    NoSuchRole: mesh.toml runs nothing of one of these names; the nearest is named.
    SetupError: there cannot be so many of it.
    """
    check_names(roster, wanted)
    for name, count in wanted.items():
        if not 0 <= count <= roster.roles[name].most:
            raise SetupError(f"{name}={count}: there can be 0 to {roster.roles[name].most} of it")


def check_names(roster: Roster, names: Collection[str]) -> None:
    """Raises:
    NoSuchRole: mesh.toml runs nothing of one of these names; the nearest is named.
    """
    for name in names:
        if name in roster.fixed:
            raise NoSuchRole(
                f"{name} stands in supervisord.conf itself, and there is one of it; `mesh roll {name}` replaces it"
            )
        if name not in roster.roles:
            near = difflib.get_close_matches(name, roster.roles, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(roster.roles)}"
            raise NoSuchRole(
                f"mesh.toml has no [services.{name}] with a class, so nothing of it runs from here; {hint}"
            )


def _alive(layout: Layout) -> bool:
    control = Control(layout.socket)
    try:
        return control.alive()
    finally:
        control.close()
