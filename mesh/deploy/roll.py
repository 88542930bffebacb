"""Replaces running processes with the current mesh.toml, supervisord.conf and code, without reducing their number.

Owns: the order of all parts, and going back with all of them when one part does not become ready.
Leaves to others: workers and gateways (replicas), programs of supervisord.conf (static_programs), the store
(store_handover), each step (processes), releases (deployment).

The processes that others depend on are replaced first: hub, then store. A store or a hub understands clients of the
release before it, as every server does, and a faulty one is detected before anything else is touched. Then services,
gateways and the rest are replaced in parallel: during a roll, old and new processes call each other in any case. Going
back takes the opposite order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AsyncExitStack
from typing import Final, NamedTuple, Protocol, TypeVar

from mesh.config import OPERATOR, Settings
from mesh.config.settings import cores
from mesh.deploy.error_gate import ErrorGate, Limits
from mesh.deploy.halt import Halt, Halted
from mesh.deploy.processes import Crew, Interrupted, Tell, at_work, now, stay
from mesh.deploy.provenance import earlier_settings
from mesh.deploy.replicas import Copies
from mesh.deploy.scale import NoSuchRole
from mesh.deploy.static_programs import Standing, programs
from mesh.deploy.store_handover import StoreRelay
from mesh.errors import MeshError, SetupError, Unavailable
from mesh.node.connect import connect
from mesh.observe.readiness import Readiness
from mesh.suggest import suggest
from mesh.supervisord import layout as layouts
from mesh.supervisord.layout import Layout
from mesh.supervisord.roster import Roster

T = TypeVar("T")

#: At least so many parts are rolled at a time. A start uses a processor for half a second, and serving processes need
#: it, too; then the part settles for a second without using it.
SIDE_BY_SIDE: Final = 4
#: The commands of the processes that others depend on, in the order in which they are replaced.
GROUND: Final = ("hub", "store")


class RollFailed(SetupError):
    """A replacement did not become ready; the message says which, why, and what runs now."""

    code = "roll_failed"


class RollInterrupted(Interrupted):
    """Ctrl-C or SIGTERM; the message says what runs now."""


class Rolled(NamedTuple):
    """One part that was rolled: how many processes were replaced, and how long that took."""

    name: str
    replaced: int
    seconds: float


class Part(Protocol):
    """One part of a roll."""

    name: str
    #: Whether the part is ready when it is in the registry.
    registered: bool

    def hold(self) -> None:
        """Keep the running processes on their release, even if they restart before this part is rolled."""

    async def forward(self) -> int:
        """Replace each running process; returns how many there were."""

    async def back(self, *, sound: bool = False) -> str:
        """Undo `forward`; returns a description of what runs then.

        Args:
            sound: the roll was only interrupted; the new release has not failed.
        """


async def roll(
    layout: Layout,
    settings: Settings,
    names: Sequence[str] = (),
    *,
    patience_s: float = 30.0,
    settle_s: float = 1.0,
    gate: Limits | None = None,
    tell: Tell = lambda text: None,
) -> list[Rolled]:
    """Replace each running process of these services and programs, or of all.

    Args:
        patience_s: how long one replacement may take to become ready.
        settle_s: how long it must then stay up before the next step.
        gate: how many of the calls that the new processes answer may fail; None disables the check.

    Raises:
        NoSuchRole: this project runs nothing with that name.
        RollFailed: a replacement did not become ready; the earlier processes run again.
        RollInterrupted: the task was cancelled; the roll went back, too. (A second cancellation ends going back.)
        Unavailable: no supervisord runs, or a process does not stop.
        LockTaken: another command is changing the processes.
    """
    async with at_work(layout, settings, tell) as crew:
        _check_names(crew.roster, layout, names)
        one = _Roll(crew, layout, settings, patience_s, settle_s, ErrorGate(crew, gate) if gate is not None else None)
        ground, rest = one.parts(names)
        own_hub = any(isinstance(part, Standing) and _is_hub(part) and part.ran for part in ground)
        if not own_hub and any(part.registered for part in (*ground, *rest)):
            await crew.need_hub()
        try:
            if one.gate is not None:
                await one.gate.begin()
            for part in (*ground, *rest):
                part.hold()
            for part in ground:
                await one.forward([part])
            await one.forward(rest)
            await one.stay()
        except asyncio.CancelledError:
            stay()
            tell("interrupted; rolling back")
            raise RollInterrupted(f"interrupted; {await one.go_back(sound=True)}") from None
        if not names:
            await one.dismiss()
        return one.rolled


class _Roll:
    """One `mesh roll`."""

    def __init__(
        self,
        crew: Crew,
        layout: Layout,
        settings: Settings,
        patience_s: float,
        settle_s: float,
        gate: ErrorGate | None,
    ) -> None:
        self.rolled: list[Rolled] = []
        self.gate = gate
        self._crew = crew
        self._layout = layout
        self._settings = settings
        self._limits = (patience_s, settle_s)
        self._halt = Halt()
        self._begun: list[Part] = []
        # The earlier release may have other hubs, keys or addresses than the new one.
        earlier = earlier_settings(layout, crew.control.processes())
        self._earlier = earlier if earlier is not None and _asks_otherwise(earlier, settings) else None
        #: Whether everything went back to its earlier state.
        self._undone = True

    def parts(self, names: Collection[str]) -> tuple[list[Part], list[Part]]:
        """(the parts that others depend on, the rest)."""
        crew, layout = self._crew, self._layout
        ground: dict[str, Part] = {}
        rest: list[Part] = []
        for program in programs(layout):
            if names and program.name not in names and program.group not in names:
                continue
            if program.verb == "store":
                ground["store"] = StoreRelay(crew, layout, self._settings, program, *self._limits, self._halt)
            elif program.verb == "hub":
                ground["hub"] = Standing(crew, layout, program, *self._limits, self._halt)
            else:
                rest.append(Standing(crew, layout, program, *self._limits, self._halt))
        roles = crew.roster.roles.values()
        look = self.gate.check if self.gate is not None else None
        copies = [
            Copies(crew, role, *self._limits, self._halt, look) for role in roles if not names or role.name in names
        ]
        return [ground[verb] for verb in GROUND if verb in ground], [*copies, *rest]

    async def forward(self, parts: Sequence[Part]) -> None:
        """Replace these parts in parallel.

        Raises:
            RollFailed: a part did not become ready; everything went back.
        """
        room = asyncio.Semaphore(max(SIDE_BY_SIDE, cores()))
        failures: list[MeshError] = []

        async def one(part: Part) -> Rolled | None:
            async with room:
                if self._halt.called:
                    return None
                self._begun.append(part)
                began = now()
                try:
                    count = await part.forward()
                except Halted:
                    return None
                except (SetupError, Unavailable) as exc:
                    failures.append(exc)
                    self._halt.call()
                    return None
                return Rolled(part.name, count, now() - began)

        done = await _all(one, parts)
        if failures:
            raise await self._failed(failures[0]) from failures[0]
        self.rolled += [each for each in done if each is not None]

    async def stay(self) -> None:
        """Observe for a while how the new processes answer.

        Raises:
            RollFailed: they answer with errors; everything went back.
        """
        if self.gate is None:
            return
        try:
            await self.gate.stay()
        except SetupError as exc:
            raise await self._failed(exc) from exc

    async def _failed(self, exc: MeshError) -> RollFailed:
        words = f"{exc.message}\nthe roll was aborted; {await self.go_back()}"
        return RollFailed(words, details={**exc.details, "undone": self._undone})

    async def go_back(self, *, sound: bool = False) -> str:
        """Undo everything, the latest first; returns a description of what runs then. `sound`: see Part.back."""
        went = []
        async with AsyncExitStack() as stack:
            parts = self._begun[::-1]
            if self._earlier is not None:
                # The hubs first, since readiness of the others is checked with their registry, using the settings of
                # the earlier release.
                parts.sort(key=lambda part: not _is_hub(part))
                node = await stack.enter_async_context(connect(self._earlier, wait_s=0.0, role=OPERATOR))
                self._crew.look_through(Readiness(node))
            for part in parts:
                try:
                    went.append(await part.back(sound=sound))
                except (SetupError, Unavailable) as exc:
                    self._undone = False
                    went.append(f"{part.name} could not be rolled back: {exc.message}")
        return "; ".join(went) or "nothing was changed"

    async def dismiss(self) -> None:
        """End programs that supervisord.conf does not name any more."""
        layout = layouts.read(self._layout.conf)
        named = {program.group for program in layout.programs}
        for group in {each.program for each in self._crew.control.processes()} - named:
            names = [each.name for each in self._crew.control.processes() if each.program == group]
            await self._crew.end(names, max((each.stop_s for each in self._layout.programs), default=10.0))
            self._crew.control.sync(group)


def _is_hub(part: Part) -> bool:
    return isinstance(part, Standing) and part.program.verb == "hub"


def _asks_otherwise(one: Settings, other: Settings) -> bool:
    """Whether nodes with these settings would use different hubs, or connect to them differently."""
    return any(getattr(one, table) != getattr(other, table) for table in ("mesh", "keys", "discovery", "links"))


async def _all(work: Callable[[Part], Awaitable[T]], parts: Sequence[Part]) -> list[T]:
    async with asyncio.TaskGroup() as tasks:
        begun = [tasks.create_task(_one(work, part), name=f"mesh.roll.{part.name}") for part in parts]
    return [task.result() for task in begun]


async def _one(work: Callable[[Part], Awaitable[T]], part: Part) -> T:
    return await work(part)


def _check_names(roster: Roster, layout: Layout, names: Collection[str]) -> None:
    """Raises:
    NoSuchRole: this project runs nothing with one of these names; the message suggests the most similar name.
    """
    there = [*roster.roles, *(each for program in programs(layout) for each in {program.name, program.group})]
    for name in names:
        if name not in there:
            hint = suggest(name, there, f"there are {', '.join(there)}")
            raise NoSuchRole(
                f"there is neither a [services.{name}] with a class or a command in mesh.toml nor a [program:{name}] "
                f"in supervisord.conf; {hint}"
            )
