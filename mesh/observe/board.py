"""All data of `mesh top`, collected at once.

Owns: combining the data of supervisor, the registry, the workers' counters and the operating system.
Leaves to others: each of these sources, drawing (cli.top_view), and commands (cli.top).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from mesh.config import Settings
from mesh.config.settings import cores
from mesh.errors import ConfigError, MeshError, Unavailable
from mesh.node.node import Node
from mesh.observe import unsupervised
from mesh.observe.sampling import Sample, Sampler
from mesh.observe.usage import host_cpu_s
from mesh.supervisord.control import RUNNING, Control, Process
from mesh.supervisord.journal import Journal, Line, chosen, files
from mesh.supervisord.layout import Layout
from mesh.supervisord.roster import of as roster_of
from mesh.telemetry import crashes


class Row(NamedTuple):
    """One process, or all of one group together.

    Attributes:
        name: as supervisorctl writes it; for a group, the name of the group.
        copies: how many processes it represents; 1 for a process.
        running: how many of them run.
        state: of a process; a group is RUNNING when all its processes run.
        looping: it is in a crash loop.
        sample: the measurement; empty when nothing answered.
    """

    name: str
    group: str
    copies: int
    running: int
    state: str
    pid: int
    up_s: float
    looping: bool
    sample: Sample


class Frame(NamedTuple):
    """The data of one moment.

    Attributes:
        busy: the share of all cores that is used by any process of the machine; 0.0 to 1.0.
        memory, memory_total: used and total memory of the machine in bytes; 0 when unknown.
        processes: one row each.
        hubs: (endpoint, whether it answers).
        lines: the newest lines of the requested logs.
        trouble: why some data is missing; "" when it is complete.
    """

    host: str
    busy: float
    cores: int
    load: float
    memory: int
    memory_total: int
    processes: list[Row]
    hubs: list[tuple[str, bool]]
    lines: list[Line]
    trouble: str = ""


class Board:
    """Collects the data periodically.

    Args:
        layout: the project's supervisord.conf; None without one: then only processes in the registry are shown.
        node: a connected node; it may be without a hub.
    """

    def __init__(self, layout: Layout | None, settings: Settings, node: Node) -> None:
        self._layout = layout
        self._settings = settings
        self._node = node
        self._control = Control(layout.socket) if layout is not None else None
        self._sampler = Sampler(node)
        self._cpu = host_cpu_s()
        self._names: tuple[str, ...] = ()
        self._journal: Journal | None = None
        self._lines: list[Line] = []

    def close(self) -> None:
        """Close the connection to supervisord."""
        if self._control is not None:
            self._control.close()

    async def look(self, names: Iterable[str] = (), lines: int = 0) -> Frame:
        """The current data; rates are those since the previous call.

        Args:
            names: the processes to show logs of, in the form that `mesh logs` accepts; none means all.
            lines: how many of the last lines; 0 does not read the logs.
        """
        trouble = ""
        processes: list[Process] = []
        try:
            if self._control is not None:
                processes = self._control.processes()
        except Unavailable as exc:
            trouble = f"{exc.message}; `mesh up` starts everything"
        host = self._settings.mesh.host
        processes += unsupervised.processes(self._node.table, host, {process.pid for process in processes})
        samples = await self._sampler.look(process.pid for process in processes)
        looping = {each.process for each in crashes.read(self._settings.mesh.run_dir) if each.looping}
        if not trouble and not self._node.agent.synced:
            trouble = "no hub answers; calls and durations are not shown"
        used, total = _memory()
        return Frame(
            host=self._settings.mesh.host,
            busy=self._busy(),
            cores=cores(),
            load=os.getloadavg()[0],
            memory=used,
            memory_total=total,
            processes=[_row(each, samples.get(each.pid), each.name in looping) for each in processes],
            hubs=[(hub.endpoint, hub.view in ("learning", "learned")) for hub in self._node.agent.hubs_status()],
            lines=self._newest(tuple(names), lines, [process.log for process in processes]),
            trouble=trouble,
        )

    def read_logs(self, names: Iterable[str], lines: int) -> list[Line]:
        """The newest lines alone; see `look`."""
        return self._newest(tuple(names), lines, [])

    def counts(self) -> dict[str, int]:
        """The configured number of copies of each scalable role."""
        if self._layout is None:
            return {}
        try:
            roster = roster_of(self._layout, self._settings)
        except ConfigError:
            return {}
        try:
            return {name: roster.count(name) for name in roster.roles} if roster is not None else {}
        except MeshError:
            return {}

    def _busy(self) -> float:
        before, self._cpu = self._cpu, host_cpu_s()
        total = self._cpu[1] - before[1]
        return min(1.0, max(0.0, (self._cpu[0] - before[0]) / total)) if total > 0 else 0.0

    def _newest(self, names: tuple[str, ...], lines: int, paths: list[str]) -> list[Line]:
        if not lines:
            self._journal = None
            return []
        found = files(self._settings.mesh.log_dir, paths)
        wanted = {name: found[name] for name in chosen(names, found)}
        if self._journal is None or names != self._names:
            self._names = names
            self._journal = Journal(wanted)
            self._lines = self._journal.last(lines)
        else:
            self._lines = [*self._lines, *self._journal.new(wanted)][-lines:]
        return self._lines[-lines:]


def _row(process: Process, sample: Sample | None, looping: bool) -> Row:
    return Row(
        name=process.name,
        group=process.program,
        copies=1,
        running=int(process.state == RUNNING),
        state=process.state,
        pid=process.pid,
        up_s=process.up_s,
        looping=looping,
        sample=sample or Sample(process.pid),
    )


def grouped(rows: Iterable[Row]) -> list[Row]:
    """One row for each group: sums, and means weighted by the number of answered calls."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    return [_together(name, members) for name, members in groups.items()]


def _together(name: str, members: list[Row]) -> Row:
    samples = [row.sample for row in members]
    ended = sum(each.ended for each in samples)
    worst = next((row.state for row in members if row.state != RUNNING), RUNNING)
    return Row(
        name=name,
        group=name,
        copies=len(members),
        running=sum(row.running for row in members),
        state=worst,
        pid=members[0].pid if len(members) == 1 else 0,
        up_s=min((row.up_s for row in members if row.pid), default=0.0),
        looping=any(row.looping for row in members),
        sample=Sample(
            pid=0,
            services=tuple(sorted({service for each in samples for service in each.services})),
            answered=any(each.answered for each in samples),
            in_flight=sum(each.in_flight for each in samples),
            waiting=sum(each.waiting for each in samples),
            rate=sum(each.rate for each in samples),
            errors=sum(each.errors for each in samples),
            ended=ended,
            mean_s=sum(each.mean_s * each.ended for each in samples) / ended if ended else 0.0,
            p99_s=max((each.p99_s for each in samples), default=0.0),
            cpu=sum(each.cpu for each in samples),
            demand=sum(each.demand for each in samples),
            memory_bytes=sum(each.memory_bytes for each in samples),
        ),
    )


def _memory() -> tuple[int, int]:
    """(used, total) bytes of the machine; (0, 0) when unknown."""
    found: dict[str, int] = {}
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, _, rest = line.partition(":")
            found[name] = int(rest.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        return 0, 0
    total = found.get("MemTotal", 0)
    return total - found.get("MemAvailable", total), total
