"""Starts the whole project, from nothing or from a partial state, until everything answers.

Owns: starting supervisord, bringing the processes in line with mesh.toml, and the definition of "up": every process
runs, every worker is in the registry and answers, and so does HTTP.
Leaves to others: single processes (processes), keeping them running (supervisord), printing (cli.up), stopping (down).
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

from mesh.config import OPERATOR, Settings
from mesh.deploy import deployment_lock, needs, renewal, static_programs
from mesh.deploy.processes import FIRST_WORD_S, LOOK_EVERY_S, Crew, StartFailed, Tell, now
from mesh.discovery.record import Instance
from mesh.errors import AddressInUse, LockTaken, SetupError, Unavailable
from mesh.node.connect import connect
from mesh.observe import front_door
from mesh.observe.readiness import Readiness
from mesh.supervisord import layout as layouts
from mesh.supervisord import process_tree
from mesh.supervisord.control import IDLE, RUNNING, Control, Process, ShuttingDown, Silent
from mesh.supervisord.layout import Layout
from mesh.supervisord.roster import Roster
from mesh.supervisord.roster import of as roster_of

#: A process that supervisord has to start so often during one `mesh up` counts as failed.
STARTS = 3
#: Processes that are still missing after this time, and run with another mesh.toml, are restarted with the current one.
RENEW_AFTER_S = 3.0
__all__ = ["StartFailed", "Tell", "Up", "bring_up"]


class Up(NamedTuple):
    """The result of `mesh up`.

    Attributes:
        already: everything ran before, nothing was done.
        seconds: how long it took.
        processes: in the order of the file.
        instances: the registered instances of each pid.
        http: the base URL of the gateways, "unix:/path" of a Unix socket, or "".
        path: a path for a GET request, to try the gateways; "" when no service declares one.
        status: the URL of the page that shows what runs; "" when no listener serves it.
        earlier: names of processes that run with an earlier mesh.toml.
    """

    already: bool
    seconds: float
    processes: list[Process]
    instances: dict[int, list[Instance]]
    http: str
    path: str
    status: str
    earlier: list[str]


async def bring_up(
    layout: Layout, settings: Settings, *, patience_s: float = 30.0, tell: Tell = lambda text: None
) -> Up:
    """Start processes that do not run, and wait until everything answers.

    Args:
        tell: called with a short text whenever the command begins to wait for something else.

    Raises:
        AddressInUse: another program holds the HTTP port.
        LockTaken: another command is changing the processes.
        StartFailed: a process ends at its start.
        SetupError: supervisord itself does not start.
        Unavailable: not everything answers within `patience_s`; what is missing is named.
    """
    return await _Rise(layout, settings, patience_s, tell).rise()


class _Rise:
    """One `mesh up`."""

    def __init__(self, layout: Layout, settings: Settings, patience_s: float, tell: Tell) -> None:
        self._began = now()
        self._until = self._began + patience_s
        self._layout = layout
        self._settings = settings
        self._tell = tell
        self._control = Control(layout.socket)
        self._roster = roster_of(layout, settings)
        self._readiness: Readiness | None = None
        self._earlier: list[str] = []

    async def rise(self) -> Up:
        async with AsyncExitStack() as stack:
            stack.callback(self._control.close)
            stack.enter_context(await self._enter())
            if self._roster is not None:
                await self._lock(stack, self._roster)
            already = await self._alive()
            if already:
                already = await self._mend(stack)
            else:
                self._start_supervisord()
            processes, waited = await self._wait(stack)
            readiness = await self._see(stack)
            return Up(
                already=already and not waited,
                seconds=now() - self._began,
                processes=processes,
                instances=readiness.instances(),
                http=self._http(),
                path=_path_to_try(readiness),
                status=front_door.page(self._settings, "/mesh", self._layout.listens) if self._layout.serves else "",
                earlier=self._earlier,
            )

    def _http(self) -> str:
        return front_door.public(self._settings, self._layout.listens).url if self._layout.serves else ""

    async def _see(self, stack: AsyncExitStack) -> Readiness:
        """Connect as late as possible: a node that dials a hub while the hub starts has to dial twice."""
        if self._readiness is None:
            connecting = connect(self._settings, wait_s=FIRST_WORD_S, role=OPERATOR)
            self._readiness = Readiness(await stack.enter_async_context(connecting))
        return self._readiness

    async def _enter(self) -> deployment_lock.Working:
        """Wait for a running deployment to end, and keep the next one from starting."""
        while True:
            try:
                return deployment_lock.enter(self._layout)
            except LockTaken as exc:
                if now() >= self._until:
                    raise
                self._tell(exc.message)
            await asyncio.sleep(LOOK_EVERY_S)

    async def _lock(self, stack: AsyncExitStack, roster: Roster) -> None:
        """Take the exclusive lock for changes; waits for another `mesh up`, or any other command that holds it."""
        while True:
            try:
                stack.enter_context(roster.lock())
                return
            except LockTaken as exc:
                if now() >= self._until:
                    raise
                self._tell(exc.message)
            await asyncio.sleep(LOOK_EVERY_S)

    async def _alive(self) -> bool:
        """Whether a supervisord runs and accepts commands.

        Waits for a supervisord that runs but does not accept commands: it is stopping, or reloading (`supervisorctl
        reload`), or its control socket was deleted and it makes another (see runtime_files).
        """
        pid = process_tree.recorded(self._layout.pidfile)
        pid = pid or process_tree.supervisord_of(self._layout.server_url, self._layout.root)
        while True:
            try:
                self._control.pid()
            except Silent:
                raise
            except Unavailable as exc:
                if not isinstance(exc, ShuttingDown) and not process_tree.alive(pid):
                    return False
            else:
                return True
            if now() >= self._until:
                raise Unavailable(
                    f"the supervisord at {self._layout.socket} (pid {pid}) runs and does not answer; "
                    "`mesh down && mesh up` starts a new one"
                )
            self._tell(f"waiting for supervisord (pid {pid})")
            await asyncio.sleep(LOOK_EVERY_S)

    # --- a supervisord that runs --------------------------------------------------------------------------

    async def _mend(self, stack: AsyncExitStack) -> bool:
        """Bring the processes in line with mesh.toml; whether there was nothing to do."""
        done = True
        if self._roster is not None:
            self._control.check_plugin()
            crew = Crew(self._roster, self._control, await self._see(stack), self._tell)
            done = not [name for name in self._roster.unknown() if await self._dismiss(crew, name)]
            for name in self._roster.roles:
                done = not await self._fit(crew, name) and done
            loosened, held = await static_programs.loosen(crew, self._layout)
            self._earlier += held
            done = done and not loosened
            self._layout = layouts.read(self._layout.conf)
        return self._start_idle() and done

    async def _dismiss(self, crew: Crew, name: str) -> bool:
        """End processes that mesh.toml does not name any more."""
        assert self._roster is not None
        names = {each.name for each in self._control.processes() if each.program == name}
        stop_s = max((each.stop_s for each in self._layout.programs if each.group == name), default=0.0)
        await crew.end(names, stop_s)
        self._roster.forget(name)
        self._control.sync(name)
        return True

    async def _fit(self, crew: Crew, name: str) -> bool:
        """Set a role to its wanted number of copies; whether anything changed.

        Running copies are not changed: new settings are applied by a roll, or by a restart.
        """
        assert self._roster is not None
        role = self._roster.roles[name]
        wanted, present = self._roster.wanted(name), self._roster.present(name)
        known = crew.processes(role)
        running = {number for number, process in known.items() if process.pid}
        texts = {number: present.get(number, text) if number in running else text for number, text in wanted.items()}
        if any(texts[number] != text for number, text in wanted.items()):
            self._earlier.append(name)
            if role.socket:
                # All copies share one text.
                texts = dict.fromkeys(texts, next(iter(present.values())))
        if texts == present and set(known) == set(texts):
            return False
        await crew.drain(role, set(known) - set(texts))
        crew.keep(role, texts)
        return True

    def _start_idle(self) -> bool:
        """Start processes that do not run; whether there was nothing to do."""
        found = False
        for process in self._control.processes():
            found = found or process.state in IDLE or process.state == "BACKOFF"
            try:
                if process.state == "BACKOFF":
                    # It waits for its next try; the reason why it could not start may be fixed by now.
                    self._control.stop(process.name)
                if process.state in IDLE or process.state == "BACKOFF":
                    self._control.start(process.name)
            except SetupError:
                pass  # its state has changed meanwhile; later polls decide
        return not found

    # --- none ---------------------------------------------------------------------------------------------

    def _start_supervisord(self) -> None:
        if orphans := process_tree.members(self._layout.server_url):
            raise SetupError(
                f"supervisord is gone, but {len(orphans)} of its processes still run (pid {orphans[0].pid}: "
                f"{orphans[0].command}), and will not be restarted; `mesh down && mesh up` starts all of them again"
            )
        self._tell("starting supervisord")
        # A deployed release, which its processes cannot write, has both directories elsewhere.
        for name in ("run", "logs") if os.access(self._layout.root, os.W_OK) else ():
            (self._layout.root / name).mkdir(mode=0o700, exist_ok=True)
        if self._roster is not None:
            # The plugin would do the same; but here an error gets a clear message.
            self._roster.refresh()
            self._layout = layouts.read(self._layout.conf)
        layout = self._layout
        _check_port(layout)
        directories = {layout.socket.parent, layout.pidfile.parent, layout.logfile.parent, self._settings.mesh.log_dir}
        for directory in directories:
            # 0700: a user who can open a socket in this directory can control all processes.
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        environment = {key: value for key, value in os.environ.items() if key != deployment_lock.VARIABLE}
        # The commands in the file find the `mesh` of this interpreter, also outside an activated environment.
        path = environment.get("PATH", os.defpath)
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), path])
        started = subprocess.run(
            [sys.executable, "-m", "supervisor.supervisord", "-c", str(layout.conf)],
            env=environment,
            cwd=layout.root,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        # After a second `mesh up` at the same moment, use the supervisord of the first.
        if started.returncode != 0 and not self._control.alive():
            words = [line for line in (started.stdout + started.stderr).splitlines() if line.startswith("Error")]
            why = words[0] if words else (started.stderr or started.stdout).strip()[-400:]
            raise SetupError(f"supervisord did not start: {why}", details={"log": str(layout.logfile)})

    # --- waiting ------------------------------------------------------------------------------------------

    async def _wait(self, stack: AsyncExitStack) -> tuple[list[Process], bool]:
        """Poll until everything answers; also returns whether this took more than one poll."""
        pids: dict[str, set[int]] = {}
        waited, told = False, ""
        renewed: set[str] = set()
        renew_at = now() + RENEW_AFTER_S
        while True:
            try:
                processes = _in_order(self._layout, self._control.processes())
            except Unavailable as exc:
                log = self._layout.logfile
                raise SetupError(
                    f"supervisord ended; the end of its log, {log}, shows why",
                    details={"log": str(log), "tail": _tail(log)},
                ) from exc
            for process in processes:
                pids.setdefault(process.name, set()).add(process.pid)
                self._check(process, pids[process.name])
            missing = [f"{process.name} ({process.state})" for process in processes if process.state != RUNNING]
            if not missing:
                missing = await self._unready(processes, await self._see(stack))
                if missing and now() >= renew_at:
                    renew_at = now() + RENEW_AFTER_S
                    await self._renew(stack, missing, processes, renewed)
            if not missing:
                return processes, waited
            words = f"waiting for {missing[0]}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
            if words != told:
                self._tell(words)
                told = words
            if now() >= self._until:
                there = self._readiness.node.table.services() if self._readiness is not None else ()
                raise self._too_late(await needs.explained(self._settings, missing, set(there)), processes)
            waited = True
            await asyncio.sleep(LOOK_EVERY_S)

    async def _renew(
        self, stack: AsyncExitStack, missing: list[str], processes: list[Process], renewed: set[str]
    ) -> None:
        """Restart missing processes that run with another mesh.toml; each at most once."""
        readiness = await self._see(stack)
        names = {each.split(" ")[0] for each in missing}
        late = renewal.stale_among(self._layout, self._settings, processes, names, hub=not readiness.heard)
        late = [each for each in late if each.name not in renewed]
        renewed |= {each.name for each in late}
        if self._roster is not None and late:
            await renewal.renew(Crew(self._roster, self._control, readiness, self._tell), self._layout, late)

    def _check(self, process: Process, pids: set[int]) -> None:
        if process.state in ("BACKOFF", "FATAL") or len(pids - {0}) >= STARTS:
            why = process.trouble.removesuffix(" (process log may have details)") or "it ends again and again"
            raise StartFailed(
                f"{process.name} does not start: {why}",
                details={"process": process.name, "log": process.log, "tail": self._words_of(process)},
            )

    async def _unready(self, processes: list[Process], readiness: Readiness) -> list[str]:
        """Descriptions of everything that does not answer yet."""
        verbs = {program.group: program.verb for program in self._layout.programs}
        register = [each for each in processes if verbs.get(each.program) in layouts.REGISTERED]
        if register and not readiness.heard:
            return [f"a hub at {', '.join(self._settings.mesh.hubs)}"]
        answering = await readiness.answering(each.pid for each in register)
        known = readiness.instances()
        missing = [
            f"{each.name} ({'it does not answer' if each.pid in known else 'not yet in the registry'})"
            for each in register
            if each.pid not in answering
        ]
        if not missing and self._layout.serves:
            door = front_door.checked(self._settings, self._layout.listens)
            status = await asyncio.to_thread(door.status, "/readyz")
            if status != 200:
                missing = [f"{door.url}/readyz ({status or 'no answer'})"]
        return missing

    def _too_late(self, missing: list[str], processes: list[Process]) -> Unavailable:
        by_name = {process.name: process for process in processes}
        late = by_name.get(missing[0].split(" ")[0])
        details: dict[str, Any] = {"missing": missing}
        if late is not None:
            details |= {"process": late.name, "log": late.log, "tail": self._words_of(late)}
        return Unavailable("not everything answers yet: " + ", ".join(missing), details=details)

    def _words_of(self, process: Process) -> list[str]:
        try:
            return self._control.tail(process.name)
        except (SetupError, Unavailable):
            return []


def _check_port(layout: Layout) -> None:
    # Try it beforehand: supervisord itself ends without any message when it cannot bind.
    host, _, port = layout.listens.rpartition(":")
    if not port:
        return
    own = any(program.listens and not program.included for program in layout.programs)
    where = f"{layout.conf.name}, [fcgi-program:…] socket" if own else "[gateway] host and port in mesh.toml"
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError as exc:
            if exc.errno == errno.EADDRINUSE:
                message = f"{layout.listens} is in use by another program; stop that program, or change {where}"
                raise AddressInUse(message) from exc
            raise SetupError(f"cannot listen on {layout.listens} ({exc.strerror}); change {where}") from exc


def _path_to_try(readiness: Readiness) -> str:
    """The path of a GET route that needs at most a name, filled with "you"; "" when there is none."""
    for instance in sorted(readiness.node.table, key=lambda each: (each.service, each.id)):
        for route in instance.routes:
            if route.verb == "GET" and route.path.count("{") == 1 and "{name}" in route.path:
                return route.path.replace("{name}", "you")
    return ""


def _in_order(layout: Layout, processes: list[Process]) -> list[Process]:
    order = {program.group: place for place, program in reversed(list(enumerate(layout.programs)))}
    return sorted(processes, key=lambda process: (order.get(process.program, len(order)), process.name))


def _tail(path: Path, lines: int = 20) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()[-lines:]
    except OSError:
        return []
