"""Operations on single processes of a running supervisord: start, wait until ready, drain, remove.

Owns: these steps, each of which touches no other process; and the definition of "does not become ready".
Leaves to others: their order (up, scale, roll), the files (roster), checking readiness (readiness).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager

from mesh.clock import LoopClock
from mesh.config import OPERATOR, Settings
from mesh.deploy import deployment_lock
from mesh.discovery.record import Instance
from mesh.errors import SetupError, Unavailable
from mesh.node.connect import connect
from mesh.node.node import Node
from mesh.observe.readiness import Readiness
from mesh.supervisord.control import IDLE, RUNNING, Control, Process
from mesh.supervisord.layout import Layout
from mesh.supervisord.programs import Role
from mesh.supervisord.roster import Roster

now = LoopClock.now

# Each poll also wakes supervisord: its own loop otherwise runs once a second.
LOOK_EVERY_S = 0.05
#: supervisord starts a new process at the next iteration of its loop.
SPAWN_S = 2.0
#: A running hub sends the registry within a few milliseconds.
FIRST_WORD_S = 1.0
#: Minimum interval between progress texts: several parts may report at once, and a text must stay long enough to read.
SAY_EVERY_S = 0.5
#: A hub that is being restarted is back in a second, if processors are free.
HUB_S = 5.0
#: After stopwaitsecs supervisor kills a process; this is additional time for reaping it.
GRACE_S = 5.0

Tell = Callable[[str], None]


class StartFailed(SetupError):
    """A process ends as soon as it starts, or never answers; `details` hold its name, its log, and the log's tail."""

    code = "start_failed"


class Interrupted(SetupError):
    """The command was interrupted (Ctrl-C or SIGTERM); the message says what runs now."""

    code = "interrupted"


def stay() -> None:
    """Clear the cancellation of the current task after catching it, so that the remaining steps can be awaited."""
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()


class Crew:
    """The copies of each role on this host.

    Args:
        tell: called with a short text whenever the crew begins to wait for something else.
    """

    def __init__(self, roster: Roster, control: Control, readiness: Readiness, tell: Tell = lambda text: None) -> None:
        self.roster = roster
        self.control = control
        self._readiness = readiness
        self._tell = tell
        self._said_at = -SAY_EVERY_S

    def look_through(self, readiness: Readiness) -> None:
        """Use another node, with other settings, to check readiness from now on."""
        self._readiness = readiness

    def processes(self, role: Role) -> dict[int, Process]:
        """The copies that supervisord knows, by number."""
        return {
            number: process for process in self.control.processes() if (number := role.number(process.name)) is not None
        }

    def keep(self, role: Role, texts: Mapping[int, str]) -> None:
        """Make these the only copies. New copies start; removed copies must have been drained before."""
        self.roster.keep(role.name, texts)
        self.control.sync(role.name)

    def start(self, role: Role, numbers: Collection[int]) -> None:
        """Start the copies that do not run."""
        self.begin({role.process(number) for number in numbers})

    def begin(self, names: Collection[str]) -> None:
        """Start the processes that do not run."""
        for process in self._named(names):
            if process.state in IDLE:
                try:
                    self.control.start(process.name)
                except SetupError:
                    pass  # supervisord was faster, or the process cannot start: `ready` decides by its state

    async def drain(self, role: Role, numbers: Collection[int]) -> None:
        """Stop these copies concurrently; each finishes its work.

        Raises:
            Unavailable: one still runs after its stopwaitsecs.
        """
        await self.end({role.process(number) for number in numbers}, role.stop_s)

    async def end(self, names: Collection[str], stop_s: float) -> None:
        """Stop processes by their names, concurrently.

        Raises:
            Unavailable: one still runs after `stop_s`, when supervisor should have killed it.
        """
        until = now() + stop_s + GRACE_S
        while processes := [each for each in self._named(names) if each.state not in IDLE]:
            left = [each.name for each in processes]
            if now() >= until:
                raise Unavailable(f"still running after {stop_s:g} s: {', '.join(left)}")
            for process in processes:
                if process.state != "STOPPING":
                    try:
                        self.control.stop(process.name, wait=False)
                    except SetupError:
                        pass  # it has just ended by itself; if it is started again, the next poll sees it
            self._say(f"{_some(left)} to finish its work")
            await asyncio.sleep(LOOK_EVERY_S)

    async def ready(self, role: Role, numbers: Collection[int], patience_s: float) -> dict[str, int]:
        """Wait until these copies are ready; returns their pids, by process.

        Raises:
            StartFailed: one of them ended, or was not ready after `patience_s`.
        """
        names = {role.process(number) for number in numbers}
        pids = await self.answering(names, patience_s, registered=not role.single)
        await self.running(pids)
        return pids

    async def answering(self, names: Collection[str], patience_s: float, *, registered: bool) -> dict[str, int]:
        """Wait until these processes answer, or, if they do not register, have started; returns their pids, by process.

        Raises:
            StartFailed: one of them ended, or did not answer after `patience_s`.
        """

        async def missing(pids: Collection[int]) -> Collection[int]:
            return set(pids) - await self._readiness.answering(pids)

        def why(pid: int) -> str:
            return "it does not answer" if pid in self._readiness.instances() else "it is not in the registry"

        # supervisor shows a process as STARTING for its whole first second; a process that answers has started.
        return await self.until(names, patience_s, missing if registered else None, why)

    async def until(
        self,
        names: Collection[str],
        patience_s: float,
        missing: Callable[[Collection[int]], Awaitable[Collection[int]]] | None = None,
        why: Callable[[int], str] = lambda pid: "it does not start",
    ) -> dict[str, int]:
        """Wait until these processes have started and none of them is missing; returns their pids, by process.

        Args:
            missing: returns those of the pids that are not ready yet.
            why: the message for a process that is missing for too long.

        Raises:
            StartFailed: one of them ended, or was missing after `patience_s`.
        """
        begun = now()
        pids: dict[str, int] = {}
        while True:
            processes = self._named(names)
            for process in processes:
                if process.pid:
                    pids.setdefault(process.name, process.pid)
                if process.state in IDLE and process.name not in pids and now() - begun < SPAWN_S:
                    continue  # supervisord is about to start it
                self._check(process, pids.get(process.name, 0))
            lacking = await missing(pids.values()) if missing is not None else ()
            waiting = [each for each in processes if not each.pid or each.pid in lacking]
            if not waiting and len(processes) == len(names):
                return pids
            if waiting and now() >= begun + patience_s:
                raise self.failed(waiting[0].name, f"{why(waiting[0].pid)} after {patience_s:g} s")
            if not waiting and now() >= begun + patience_s:
                unknown = sorted(set(names) - {each.name for each in processes})
                raise SetupError(f"supervisord does not know of {', '.join(unknown)}")
            if waiting:
                self._say(f"{_some([each.name for each in waiting])} to become ready")
            await asyncio.sleep(LOOK_EVERY_S)

    async def running(self, pids: Mapping[str, int], settle_s: float = 0.0) -> None:
        """Wait until supervisor, too, shows these processes as running; and at least `settle_s`.

        Raises:
            StartFailed: one of them has ended.
        """
        until = now() + settle_s
        while True:
            processes = self._named(pids)
            for process in processes:
                self._check(process, pids[process.name])
            if now() >= until and all(process.state == RUNNING for process in processes):
                return
            await asyncio.sleep(LOOK_EVERY_S)

    async def need_hub(self) -> None:
        """Make sure that a hub can report readiness; waits for a hub that is being restarted.

        Raises:
            Unavailable: no hub answers.
        """
        until = now() + HUB_S
        while not self.answering_hubs():
            if now() >= until:
                hubs = ", ".join(hub.endpoint for hub in self._readiness.node.agent.hubs_status())
                raise Unavailable(f"no hub answers at {hubs}: readiness cannot be checked, so nothing was changed")
            self._say("waiting for a hub")
            await asyncio.sleep(LOOK_EVERY_S)

    def answering_hubs(self) -> set[str]:
        """The hubs that currently send the registry."""
        status = self._readiness.node.agent.hubs_status()
        return {hub.endpoint for hub in status if hub.view in ("learning", "learned")}

    @property
    def node(self) -> Node:
        """The node that is used to check readiness."""
        return self._readiness.node

    def instances(self) -> dict[int, list[Instance]]:
        """This host's instances, by process."""
        return self._readiness.instances()

    def hubs(self) -> set[str]:
        """The hubs that the node uses."""
        return {hub.endpoint for hub in self._readiness.node.agent.hubs_status()}

    def _say(self, text: str) -> None:
        if now() - self._said_at >= SAY_EVERY_S:
            self._said_at = now()
            self._tell(text)

    def _check(self, process: Process, pid: int) -> None:
        if process.state in ("BACKOFF", "FATAL") or (process.pid and process.pid != pid):
            raise self.failed(process.name, process.trouble or "it ended")
        if process.state in IDLE:
            raise self.failed(process.name, process.trouble or "it was stopped")

    def _named(self, names: Collection[str]) -> list[Process]:
        return [process for process in self.control.processes() if process.name in names]

    def failed(self, name: str, why: str) -> StartFailed:
        """The error to raise for a process: the reason, and the end of its log."""
        process = next(iter(self._named([name])), None)
        try:
            tail = self.control.tail(name)
        except (SetupError, Unavailable):
            tail = []
        why = why.removesuffix(" (process log may have details)")
        return StartFailed(
            f"{name} does not become ready: {why}",
            details={"process": name, "log": process.log if process is not None else "", "tail": tail},
        )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"waiting for {names[0]}{more}"


@asynccontextmanager
async def at_work(layout: Layout, settings: Settings, tell: Tell = lambda text: None) -> AsyncIterator[Crew]:
    """A crew with the exclusive right to change the processes.

    Raises:
        Unavailable: no supervisord runs.
        LockTaken: another command is changing the processes.
        SetupError: this supervisord lacks the needed methods.
    """
    roster = Roster(layout, settings)
    control = Control(layout.socket)
    try:
        with await deployment_lock.entered(layout), roster.lock():
            control.check_plugin()
            async with connect(settings, wait_s=FIRST_WORD_S, role=OPERATOR) as node:
                yield Crew(roster, control, Readiness(node), tell)
    finally:
        control.close()


async def restart(layout: Layout, name: str, stop_s: float = 60.0) -> None:
    """Stop one process, which finishes its work, and start it again, as `supervisorctl restart` does.

    Raises:
        SetupError: supervisord refuses, or the process does not start.
        Unavailable: it does not stop, or no supervisord runs.
    """
    control = Control(layout.socket)

    def process() -> Process:
        found = next((each for each in control.processes() if each.name == name), None)
        if found is None:
            raise SetupError(f"supervisord does not know of {name}")
        return found

    try:
        if process().state not in IDLE:
            control.stop(name, wait=False)
        until = now() + stop_s
        while process().state not in IDLE:
            if now() >= until:
                raise Unavailable(f"{name} still runs after {stop_s:g} s")
            await asyncio.sleep(LOOK_EVERY_S)
        control.start(name)
    finally:
        control.close()
