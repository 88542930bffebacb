"""Finds problems of a set-up, and their remedies.

Owns: the order of the checks, in which an early finding explains the later ones, and the checks of supervisor and the
registry. It changes nothing.
Leaves to others: checks of the machine (machine), of values in mesh.toml (values), of services
(services) and of other hosts (hosts); output (cli.doctor).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from mesh.config import OPERATOR, Settings, Usable
from mesh.deploy import needs
from mesh.deploy.provenance import elsewhere, stale
from mesh.deploy.static_programs import release_of
from mesh.discovery.agent import HEARD
from mesh.discovery.record import Instance
from mesh.discovery.route_conflicts import route_conflicts
from mesh.doctor.finding import BAD, GOOD, ODD, Finding
from mesh.doctor.hosts import hosts, runs_here
from mesh.doctor.listeners import listeners
from mesh.doctor.machine import machine, port
from mesh.doctor.services import mounts, services
from mesh.doctor.values import values
from mesh.engines.sqlite.messages import SERVICE as STORE
from mesh.errors import ConfigError, MeshError, SetupError, Unavailable
from mesh.node.connect import connect
from mesh.observe import front_door, unsupervised
from mesh.observe.front_door import Door
from mesh.observe.readiness import Readiness
from mesh.supervisord import layout as layouts
from mesh.supervisord import process_tree
from mesh.supervisord.control import RUNNING, Control, Process, Silent
from mesh.supervisord.journal import brief
from mesh.supervisord.layout import Layout
from mesh.supervisord.roster import Roster
from mesh.supervisord.roster import of as roster_of
from mesh.telemetry import crashes, heartbeats, restarts
from mesh.transport.curve.key_files import BadKeys

IPC: Final = "ipc://"

FIRST_WORD_S: Final = 2.0
#: The remedy for a process that is registered and does not answer.
BLOCKED: Final = "its event loop is blocked: use `await`, or offload; `py-spy dump` shows where it is"


async def examine(conf: Path, found: Usable, *, named: bool = False) -> AsyncIterator[Finding]:
    """Make all checks.

    Args:
        found: the settings as far as they can be read; their errors are reported first.
        named: `conf` was given by the user, so `mesh up` does not create it.
    """
    settings = found.settings
    for complaint in found.complaints:
        about, _, told = complaint.partition(": ")
        yield Finding(BAD, about, told, "fix it; until then hubs and processes are not checked")
    if not found.complaints:
        yield Finding(
            GOOD,
            "mesh.toml",
            str(settings.file) if settings.file else "not found here or in a directory above: using defaults",
        )
    for finding in machine(settings):
        yield finding
    layout, roster, told_of = _project(conf, found, named)
    for finding in told_of:
        yield finding
    env = _environment(layout)
    for finding in values(found, env, _roles(layout, roster)):
        yield finding
    for finding in listeners(found):
        yield finding
    async for finding in services(found, {name: roster.count(name) for name in roster.roles} if roster else {}, env):
        yield finding
    async for finding in mounts(found, env):
        yield finding
    if found.complaints:
        roster = None
    if roster is not None:
        for finding in _files(roster):
            yield finding
    if layout is None:
        async for finding in _unsupervised(found):
            yield finding
        return
    control = Control(layout.socket)
    try:
        if not control.alive():
            for finding in _down(layout, settings):
                yield finding
            return
        async for finding in _up(layout, found, roster, control):
            yield finding
    except Silent as exc:
        pid = process_tree.recorded(layout.pidfile)
        yield Finding(BAD, "supervisord", exc.message, exc.advice.replace("PID", str(pid) if pid else "PID"))
    finally:
        control.close()


# --- what is to run -------------------------------------------------------------------------------------


def _project(conf: Path, found: Usable, named: bool) -> tuple[Layout | None, Roster | None, list[Finding]]:
    """supervisor's configuration, as far as it can be read, and the findings about it."""
    settings = found.settings
    asked = not found.read or any(service.runs for service in settings.services.values())
    missing = asked and not named and not conf.exists()
    if not asked and not named and not conf.exists():
        told = "none here: supervisor runs nothing, and no service in mesh.toml has a `class` or a `command`"
        return None, None, [Finding(GOOD, "supervisord.conf", told)]
    try:
        layout = layouts.planned(conf) if missing else layouts.read(conf)
    except ConfigError as exc:
        # For a path that supervisor does not support, the message contains the remedy; no file is to be corrected.
        mend = "correct it as the message says" if conf.exists() or missing else "name one that exists"
        return None, None, [Finding(BAD, "supervisord.conf", exc.message, mend)]
    told = f"{layout.conf}: does not exist yet; `mesh up` writes it" if missing else str(layout.conf)
    try:
        return layout, roster_of(layout, settings), [Finding(GOOD, "supervisord.conf", told)]
    except ConfigError as exc:
        about = "supervisord.conf" if exc.message.startswith(str(layout.conf)) else "mesh.toml"
        return layout, None, [Finding(BAD, about, exc.message, "fix what it names; `mesh up` rejects it as well")]


def _environment(layout: Layout | None) -> Mapping[str, str]:
    """The environment that supervisord's children inherit, or would inherit if it were started from here."""
    pid = process_tree.recorded(layout.pidfile) if layout is not None else 0
    return (process_tree.environment(pid) if pid else {}) or os.environ


#: The key names of processes that are not workers, by the command that they run.
_KEY_NAMES: Final = {"hub": "hub", "store": STORE, "gateway": "gateway"}


def _roles(layout: Layout | None, roster: Roster | None) -> list[str]:
    """The roles of this host's processes that are not workers: each needs a key with that name."""
    verbs = {program.verb for program in layout.programs} if layout is not None else set()
    if roster is not None:
        verbs |= {"gateway"} & roster.roles.keys()
    return sorted(_KEY_NAMES[verb] for verb in verbs & _KEY_NAMES.keys())


def _files(roster: Roster) -> Iterator[Finding]:
    for name, text in roster.pins().items():
        told = f"is pinned to {release_of(text)} since a roll that was rolled back or interrupted"
        yield Finding(ODD, name, told, f"`mesh roll {name}` replaces it; `mesh up` removes the pin")
    for name in roster.unknown():
        yield Finding(ODD, name, "has program files, but mesh.toml does not run it", "`mesh up` stops it")
    for name, role in roster.roles.items():
        count = roster.count(name)
        if count != role.declared:
            told = f"{count} processes, chosen by `mesh scale` or autoscaling; mesh.toml says {role.declared}"
            yield Finding(GOOD, name, told)


# --- without supervisor ---------------------------------------------------------------------------------


async def _unsupervised(found: Usable) -> AsyncIterator[Finding]:
    """Findings about processes that were started by hand, from the registry."""
    settings = found.settings
    if found.complaints:
        yield port(settings)
        return
    gateways = 0
    async with connect(settings, wait_s=FIRST_WORD_S, role=OPERATOR) as node:
        for hub in node.agent.hubs_status():
            if hub.view in HEARD:
                yield Finding(GOOD, "hub", f"{hub.endpoint} answers")
            else:
                why = f": {hub.reason}" if hub.reason else ""
                yield Finding(ODD, "hub", f"{hub.endpoint} does not answer{why}", "`mesh hub` starts one")
        for finding in _routes(node.table):
            yield finding
        readiness = Readiness(node)
        here = unsupervised.processes(node.table, settings.mesh.host)
        answering = await readiness.answering(each.pid for each in here)
        for each in here:
            gateways += each.program == "gateway"
            if each.pid in answering:
                yield Finding(GOOD, each.name, f"pid {each.pid} answers")
            else:
                yield Finding(BAD, each.name, f"pid {each.pid} is in the registry but does not answer", BLOCKED)
    if gateways:
        yield await _ready(front_door.checked(settings), "`mesh logs gateway`")
    else:
        yield port(settings)


def _routes(instances: Iterable[Instance]) -> Iterator[Finding]:
    for conflict in route_conflicts(instances):
        told = f"declared by {' and '.join(conflict.services)}; only one of them answers"
        yield Finding(BAD, f"{conflict.verb} {conflict.path}", told, "give one of them another path")


async def _ready(door: Door, mend: str) -> Finding:
    status = await asyncio.to_thread(door.status, "/readyz")
    told = f"{door.url}/readyz answers {status}" if status else f"{door.url} does not answer"
    return Finding(GOOD, "HTTP", told) if status == 200 else Finding(BAD, "HTTP", told, mend)


# --- while nothing runs ---------------------------------------------------------------------------------


def _down(layout: Layout, settings: Settings) -> Iterator[Finding]:
    pid = process_tree.recorded(layout.pidfile) or process_tree.supervisord_of(layout.server_url, layout.root)
    if pid and not layout.socket.exists():
        told = f"pid {pid} runs, and its control socket {layout.socket} was deleted"
        yield Finding(BAD, "supervisord", told, "it creates another one within seconds; then run this again")
        return
    orphans = process_tree.members(layout.server_url) if not pid else []
    if orphans:
        told = f"is gone, but {len(orphans)} of its processes still run (pid {orphans[0].pid}: {orphans[0].command})"
        yield Finding(BAD, "supervisord", told, "they are not restarted when they end: `mesh down && mesh up`")
        return
    if pid:
        told = f"pid {pid} runs and does not answer at {layout.socket}"
        yield Finding(BAD, "supervisord", told, f"`mesh down` ends it; its log is {layout.logfile}")
        return
    yield Finding(ODD, "supervisord", "does not run", "`mesh up` starts everything")
    yield port(settings)


# --- while it runs --------------------------------------------------------------------------------------


async def _up(layout: Layout, found: Usable, roster: Roster | None, control: Control) -> AsyncIterator[Finding]:
    settings = found.settings
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
    looping = {crash.process: crash for crash in crashes.read(settings.mesh.run_dir) if crash.looping}
    ailing = {each.process: told for each in heartbeats.read(settings.mesh.run_dir) if (told := each.trouble())}
    for service, reasons in sorted(restarts.read(settings.mesh.run_dir).items()):
        own = {reason: count for reason, count in reasons.items() if reason in restarts.REPLACED}
        if own:
            yield Finding(ODD, service, f"workers were replaced: {restarts.told(own)}", f"`mesh logs {service} watch`")
    for process in processes:
        logs = f"`mesh logs {process.name}`"
        if process.name in ailing:
            yield Finding(BAD, process.name, ailing[process.name], f"{logs} shows where; it is replaced if this lasts")
        if crash := looping.get(process.name):
            yield Finding(BAD, process.name, crash.what() + _last(crash.words), logs)
        elif process.state == "STOPPED":
            # Stopped by hand, or by a command that was interrupted: which of the two is not recorded.
            yield Finding(ODD, process.name, "is stopped", f"`supervisorctl start {process.name}`, or `mesh up`")
        elif process.state not in (RUNNING, "STARTING", "STOPPING"):
            yield Finding(BAD, process.name, _why_not(process, control), f"{logs}; then `mesh up`")
        elif release := elsewhere(layout, process.pid):
            told = f"runs with {release / 'mesh.toml'}, but {layout.root.resolve().name} is the current release"
            yield Finding(ODD, process.name, told, "`mesh roll` replaces it")
    if not found.complaints:
        try:
            async for finding in _registry(layout, settings, processes, ailing):
                yield finding
        except BadKeys:
            pass  # already reported for keys.dir
    if roster is not None:
        for finding in _alike(roster, processes):
            yield finding
    if layout.serves:
        yield await _ready(front_door.checked(settings, layout.listens), "`mesh logs gateway`")


def _why_not(process: Process, control: Control) -> str:
    try:
        words = control.tail(process.name, 1)
    except MeshError:
        words = []
    why = f": {process.trouble}" if process.trouble else ""
    return f"{process.state}{why}{_last(words[0] if words else '')}"


def _last(words: str) -> str:
    return f"; its last line: {brief(words)[:200]}" if words else ""


async def _registry(
    layout: Layout, settings: Settings, processes: list[Process], ailing: Collection[str]
) -> AsyncIterator[Finding]:
    verbs = {program.group: program.verb for program in layout.programs}
    async with connect(settings, wait_s=FIRST_WORD_S, role=OPERATOR) as node:
        readiness = Readiness(node)
        await node.agent.wait_heard(FIRST_WORD_S)  # `connect` waits only for the first hub
        for hub in node.agent.hubs_status():
            if hub.view in HEARD:
                yield Finding(GOOD, "hub", f"{hub.endpoint} answers")
            else:
                mine = "hub" in verbs and runs_here(hub.endpoint)
                mend = "`mesh logs hub`" if mine else "check that it runs there, and mesh.hubs"
                why = f": {hub.reason}" if hub.reason else ""
                own = (stale(layout, settings, each) for each in processes if verbs.get(each.program) == "hub")
                if other := next(filter(None, own), ""):
                    why, mend = (
                        f"{why}; the hub of this host {other}",
                        "`mesh up` restarts it with the current settings",
                    )
                elif mine and _deleted(hub.endpoint) and any(_runs(each, verbs, "hub") for each in processes):
                    why, mend = (
                        f": {hub.endpoint.removeprefix(IPC)} was deleted",
                        "`mesh down && mesh up` creates it again",
                    )
                yield Finding(BAD, "hub", f"{hub.endpoint} does not answer{why}", mend)
        if not readiness.heard:
            return
        for finding in _routes(node.table):
            yield finding
        for word in await hosts(node):
            yield Finding({True: GOOD, None: ODD, False: BAD}[word.good], *word[1:])
        asked = [each for each in processes if each.state == RUNNING and verbs.get(each.program) in layouts.REGISTERED]
        answering = await readiness.answering(each.pid for each in asked)
        known = readiness.instances()
        for each in asked:
            if each.name in ailing:
                continue  # it is stopped or blocked, which was already reported, and so it cannot answer
            if each.pid not in known:
                mend = f"`mesh logs {each.name}`: it may be waiting for a service that it needs"
                told = f"has run for {each.up_s:.0f} s and is not in the registry"
                if lacking := await needs.lacking(settings, each.program, set(node.table.services())):
                    told = f"{told}: it waits for {', '.join(lacking)}, which it needs and which is not running"
                    mend = f"run {', '.join(lacking)}: [services.{lacking[0]}] in a host's mesh.toml"
                elif other := stale(layout, settings, each):
                    told, mend = f"{told}: it {other}", "`mesh up` restarts it with the current settings"
                yield Finding(BAD, each.name, told, mend)
            elif each.pid not in answering:
                yield Finding(BAD, each.name, "is in the registry but does not answer", BLOCKED)
        if asked and len(answering) == len(asked):
            yield Finding(GOOD, "registry", f"all {len(asked)} expected processes answer")


def _deleted(endpoint: str) -> bool:
    return endpoint.startswith(IPC) and not Path(endpoint.removeprefix(IPC)).exists()


def _runs(process: Process, verbs: Mapping[str, str], verb: str) -> bool:
    return process.state == RUNNING and verbs.get(process.program) == verb


def _alike(roster: Roster, processes: list[Process]) -> Iterator[Finding]:
    """Whether the processes match the program files, and the files match mesh.toml."""
    for name, role in roster.roles.items():
        present, wanted = roster.present(name), roster.wanted(name)
        known = {number for each in processes if (number := role.number(each.name)) is not None}
        if set(present) != set(wanted) or known != set(wanted):
            told = f"{len(wanted)} processes wanted, {len(present)} program files, {len(known)} known to supervisord"
            yield Finding(ODD, name, told, "`mesh up` corrects this")
        elif present != wanted:
            yield Finding(ODD, name, "runs with an earlier mesh.toml or release", f"`mesh roll {name}`")
