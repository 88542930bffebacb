"""What is wrong with a set-up, and how to mend it.

Owns: the questions, in an order in which an early answer explains the later ones.
Leaves to others: everything that is looked at, and the words on the screen (cli.doctor). It changes nothing.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from mesh.config import Settings
from mesh.discovery.agent import HEARD
from mesh.errors import ConfigError, MeshError, SetupError, Unavailable
from mesh.service.connect import connect
from mesh.supervision import family
from mesh.supervision import layout as layouts
from mesh.supervision.control import RUNNING, Control, Process, Silent
from mesh.supervision.doctor_hosts import hosts, runs_here
from mesh.supervision.journal import brief
from mesh.supervision.layout import Layout
from mesh.supervision.readiness import Readiness
from mesh.supervision.roster import Roster
from mesh.supervision.roster import of as roster_of
from mesh.supervision.standing import release_of
from mesh.supervision.up import get
from mesh.telemetry import crashes

GOOD: Final = "good"
ODD: Final = "odd"
BAD: Final = "bad"

#: A link takes five files; a gateway with a thousand connections and twenty workers takes 1,100.
FILES: Final = 4096
#: What supervisor asks of the kernel for the gateways' socket.
BACKLOG: Final = 4096
#: Below it, logs and the store's files soon have no room.
FREE_BYTES: Final = 500 * 2**20
FIRST_WORD_S: Final = 2.0
IMPORT_S: Final = 20.0
#: The longest name that a socket in the run directory gets: "NAME-1f8fcb51-events.sock.lock", NAME a service's.
SOCKET_NAME: Final = len("-12345678-events.sock")
PATH_BYTES: Final = 107


class Finding(NamedTuple):
    """The answer to one question.

    Attributes:
        grade: GOOD, ODD (it works, and may surprise) or BAD.
        about: what was looked at.
        told: what was seen.
        mend: what to do; "" when nothing is to be done.
    """

    grade: str
    about: str
    told: str
    mend: str = ""


async def examine(conf: Path, settings: Settings) -> AsyncIterator[Finding]:
    """Ask all questions."""
    yield Finding(GOOD, "mesh.toml", str(settings.file) if settings.file else "none here or above: defaults")
    for finding in _machine(settings):
        yield finding
    try:
        layout = layouts.read(conf)
        roster = roster_of(layout, settings)
    except ConfigError as exc:
        yield Finding(BAD, "supervisord.conf", exc.message, "README.md and the project's own supervisord.conf show one")
        return
    yield Finding(GOOD, "supervisord.conf", str(layout.conf))
    if roster is not None:
        async for finding in _imports(roster, settings):
            yield finding
        for finding in _files(roster):
            yield finding
    control = Control(layout.socket)
    try:
        if not control.alive():
            for finding in _down(layout, settings):
                yield finding
            return
        async for finding in _up(layout, settings, roster, control):
            yield finding
    except Silent as exc:
        pid = family.recorded(layout.pidfile)
        yield Finding(BAD, "supervisord", exc.message, exc.advice.replace("PID", str(pid) if pid else "PID"))
    finally:
        control.close()


# --- the machine ----------------------------------------------------------------------------------------


def _machine(settings: Settings) -> Iterator[Finding]:
    yield from _run_dir(settings)
    for about, directory in (("logs", settings.mesh.log_dir), ("store", settings.store.dir)):
        yield from _room(about, directory)
    try:
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    except ImportError:
        return
    if hard != resource.RLIM_INFINITY and hard < FILES:
        yield Finding(
            ODD, "open files", f"at most {hard} in one process", "raise LimitNOFILE, or `ulimit -Hn`, to 65536"
        )
    else:
        yield Finding(GOOD, "open files", "as many as wanted" if hard == resource.RLIM_INFINITY else f"up to {hard}")
    try:
        backlog = int(Path("/proc/sys/net/core/somaxconn").read_text())
    except (OSError, ValueError):
        return
    if backlog < BACKLOG:
        mend = f"sysctl -w net.core.somaxconn={BACKLOG}"
        yield Finding(ODD, "backlog", f"the kernel keeps {backlog} connections that wait for a gateway", mend)


def _run_dir(settings: Settings) -> Iterator[Finding]:
    path = settings.mesh.run_dir
    longest = max((len(name) for name in settings.services), default=0)
    length = len(os.fsencode(path)) + 1 + max(longest, len("gateway")) + SOCKET_NAME
    if length > PATH_BYTES:
        mend = "set mesh.run_dir to a directory with a shorter path"
        yield Finding(BAD, "run directory", f"{path}: its sockets' paths have {length} bytes of {PATH_BYTES}", mend)
        return
    try:
        found = path.stat()
    except FileNotFoundError:
        yield Finding(GOOD, "run directory", f"{path}: not there yet; `mesh up` makes it")
        return
    except OSError as exc:
        yield Finding(BAD, "run directory", f"{path}: {exc.strerror}", "set mesh.run_dir to a directory of your own")
        return
    if found.st_uid != os.geteuid():
        mend = f"run commands as that user, or `chown {os.geteuid()} {path}`"
        yield Finding(BAD, "run directory", f"{path} belongs to user {found.st_uid}, you are {os.geteuid()}", mend)
    elif found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        mode = f"{stat.S_IMODE(found.st_mode):04o}"
        yield Finding(BAD, "run directory", f"{path} is open to others (mode {mode})", f"chmod 700 {path}")
    else:
        yield Finding(GOOD, "run directory", str(path))


def _room(about: str, directory: Path) -> Iterator[Finding]:
    there = next(each for each in (directory, *directory.parents) if each.exists())
    free = shutil.disk_usage(there).free
    if free < FREE_BYTES:
        yield Finding(BAD, about, f"{free // 2**20} MiB are free at {there}", "make room, or name another directory")
    elif directory.exists() and not os.access(directory, os.W_OK | os.X_OK):
        yield Finding(BAD, about, f"{directory} cannot be written to", f"chown it to user {os.geteuid()}")
    else:
        yield Finding(GOOD, about, f"{directory}, {free / 2**30:.1f} GiB free")


# --- what is to run -------------------------------------------------------------------------------------


async def _imports(roster: Roster, settings: Settings) -> AsyncIterator[Finding]:
    """Whether each class can be found, by an interpreter of its own: a service's module may do anything."""
    for name, role in roster.roles.items():
        service = settings.services.get(name)
        if service is None or not service.classes:
            continue
        code = "import sys; from mesh.cli.run import load; load(sys.argv[1:])"
        try:
            done = await asyncio.to_thread(
                subprocess.run,
                [sys.executable, "-c", code, *service.classes],
                cwd=settings.root,
                env={**os.environ, **service.environment},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=IMPORT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            yield Finding(BAD, role.table, f"importing it takes more than {IMPORT_S:g} s", "do that work in `started`")
            continue
        if done.returncode:
            words = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()[-1]
            yield Finding(BAD, role.table, f"{', '.join(service.classes)}: {words}", "`mesh run` shows all of it")
        elif service.env_file and not (settings.root / service.env_file).is_file():
            yield Finding(BAD, role.table, f"env_file: there is no {service.env_file}", "make it, or leave the key out")
        else:
            yield Finding(GOOD, role.table, f"{', '.join(service.classes)}, {_workers(roster.count(name))}")


def _workers(count: int) -> str:
    return "1 worker" if count == 1 else f"{count} workers"


def _files(roster: Roster) -> Iterator[Finding]:
    for name, text in roster.pins().items():
        told = f"is kept to {release_of(text)} since a roll that went back or broke off"
        yield Finding(ODD, name, told, f"`mesh roll {name}` replaces it; `mesh up` tidies up")
    for name in roster.unknown():
        yield Finding(ODD, name, "has program files, and mesh.toml does not run it", "`mesh up` lets it leave")
    for name, role in roster.roles.items():
        count = roster.count(name)
        if count != role.declared:
            told = f"{count} were chosen by `mesh scale` or autoscaling, mesh.toml says {role.declared}"
            yield Finding(GOOD, name, told)


# --- while nothing runs ---------------------------------------------------------------------------------


def _down(layout: Layout, settings: Settings) -> Iterator[Finding]:
    orphans = family.members(layout.server_url)
    if orphans:
        told = f"it is gone, and {len(orphans)} of its processes still run (pid {orphans[0].pid}: {orphans[0].command})"
        yield Finding(BAD, "supervisord", told, "nobody starts them again: `mesh down && mesh up`")
        return
    pid = family.recorded(layout.pidfile)
    if pid:
        told = f"pid {pid} runs and does not answer at {layout.socket}"
        yield Finding(BAD, "supervisord", told, f"`mesh down` ends it; its log is {layout.logfile}")
        return
    yield Finding(ODD, "supervisord", "does not run", "`mesh up` starts everything")
    gateway = settings.gateway
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((gateway.host, gateway.port))
        except OSError as exc:
            told = f"{gateway.host}:{gateway.port}: {exc.strerror}"
            yield Finding(BAD, "HTTP", told, "stop whoever listens there, or change gateway.port")
        else:
            yield Finding(GOOD, "HTTP", f"{gateway.host}:{gateway.port} is free")


# --- while it runs --------------------------------------------------------------------------------------


async def _up(layout: Layout, settings: Settings, roster: Roster | None, control: Control) -> AsyncIterator[Finding]:
    try:
        if roster is not None:
            control.check_plugin()
        processes = control.processes()
    except Silent:
        raise
    except (SetupError, Unavailable) as exc:
        yield Finding(BAD, "supervisord", exc.message, "`mesh down && mesh up`")
        return
    yield Finding(GOOD, "supervisord", f"pid {control.pid()}, {len(processes)} processes")
    for process in processes:
        if process.state == "STOPPED":
            yield Finding(
                ODD, process.name, "was stopped by hand", f"`supervisorctl start {process.name}`, or `mesh up`"
            )
        elif process.state not in (RUNNING, "STARTING", "STOPPING"):
            yield Finding(BAD, process.name, _why_not(process, control), f"`mesh logs {process.name}`; then `mesh up`")
    for crash in crashes.read(settings.mesh.run_dir):
        if crash.looping:
            yield Finding(BAD, crash.process, crash.told() + _last(crash.words), f"`mesh logs {crash.process}`")
    async for finding in _registry(layout, settings, processes):
        yield finding
    if roster is not None:
        for finding in _alike(roster, processes):
            yield finding
    if layout.http:
        status = await asyncio.to_thread(get, layout.http + "/readyz")
        told = f"{layout.http}/readyz answers {status}" if status else f"{layout.http} does not answer"
        yield Finding(GOOD if status == 200 else BAD, "HTTP", told, "" if status == 200 else "`mesh logs gateway`")


def _why_not(process: Process, control: Control) -> str:
    try:
        words = control.tail(process.name, 1)
    except MeshError:
        words = []
    why = f": {process.trouble}" if process.trouble else ""
    return f"{process.state}{why}{_last(words[0] if words else '')}"


def _last(words: str) -> str:
    return f"; it last said: {brief(words)[:200]}" if words else ""


async def _registry(layout: Layout, settings: Settings, processes: list[Process]) -> AsyncIterator[Finding]:
    verbs = {program.group: program.verb for program in layout.programs}
    async with connect(settings, wait_s=FIRST_WORD_S) as node:
        readiness = Readiness(node)
        await node.agent.wait_heard(FIRST_WORD_S)  # `connect` waits for the first of them
        for hub in node.agent.hubs_status():
            if hub.view in HEARD:
                yield Finding(GOOD, "hub", f"{hub.endpoint} answers")
            else:
                mine = "hub" in verbs and runs_here(hub.endpoint)
                mend = "`mesh logs hub`" if mine else "see whether it runs there, and mesh.hubs"
                why = f": {hub.reason}" if hub.reason else ""
                yield Finding(BAD, "hub", f"{hub.endpoint} does not answer{why}", mend)
        if not readiness.heard:
            return
        for word in await hosts(node):
            yield Finding({True: GOOD, None: ODD, False: BAD}[word.good], *word[1:])
        asked = [each for each in processes if each.state == RUNNING and verbs.get(each.program) in layouts.REGISTERED]
        answering = await readiness.answering(each.pid for each in asked)
        known = readiness.instances()
        for each in asked:
            if each.pid not in known:
                mend = f"`mesh logs {each.name}`: it may wait for a service that it needs"
                yield Finding(BAD, each.name, f"runs for {each.up_s:.0f} s and is not in the registry", mend)
            elif each.pid not in answering:
                mend = "something holds its loop up: use `await`, or offload; py-spy dump shows where it is"
                yield Finding(BAD, each.name, "is in the registry and does not answer", mend)
        if asked and len(answering) == len(asked):
            yield Finding(GOOD, "registry", f"all {len(asked)} processes that should be there answer")


def _alike(roster: Roster, processes: list[Process]) -> Iterator[Finding]:
    """Whether what runs is what the files say, and the files what mesh.toml says."""
    for name, role in roster.roles.items():
        present, wanted = roster.present(name), roster.wanted(name)
        known = {number for each in processes if (number := role.number(each.name)) is not None}
        if set(present) != set(wanted) or known != set(wanted):
            told = f"{len(wanted)} are wanted, {len(present)} have files, supervisord knows {len(known)}"
            yield Finding(ODD, name, told, "`mesh up` brings them in line")
        elif present != wanted:
            yield Finding(ODD, name, "runs as an earlier mesh.toml or release had it", f"`mesh roll {name}`")
