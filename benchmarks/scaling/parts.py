"""What each part costs, in rows: from the model, the scenes, the storms and the units to what the document shows.

Owns: the sums. Each row's formula stands beside its name.
Leaves to others: where its terms come from (model, registry, storm, balance, units), laying rows out (page).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from benchmarks.scaling.balance import Waits, compare
from benchmarks.scaling.model import Model
from benchmarks.scaling.registry import Scenes, play
from benchmarks.scaling.storm import PATIENCE_S, Outcome, Storm, snapshot_bytes
from benchmarks.scaling.units import Units

#: Over how long processes begin after a restart of the whole mesh, and how soon all are back at a hub that restarts:
#: agents dial again within a renewal (discovery.agent).
ALL_START_S: Final = 10.0
HUB_BACK_S: Final = 1.0
#: `python -m benchmarks tasks --short --only mesh`, once: from defer to acknowledgement, of tasks that do nothing.
STORE_TASKS_PER_S: Final = 14_300


@dataclass(frozen=True)
class Case:
    """One size, with all that was simulated of it."""

    model: Model
    units: Units
    scenes: Scenes
    hub_back: Outcome
    all_start: Outcome
    balance: dict[str, Waits]
    snapshot: int
    bare_snapshot: int
    bare_back: Outcome

    # Terms that several rows share.

    @property
    def read_us(self) -> float:
        """A record of a snapshot; the interpreter's sweeps cost more when there are many."""
        few = self.model.instances <= 2000
        return self.units.agent_snapshot_record_us if few else self.units.agent_snapshot_record_many_us

    @property
    def renewed_host_hub_s(self) -> float:
        """A hub's processor time when one host gets a new release."""
        scene = self.scenes.host_is_renewed
        each_us = scene.news * self.units.hub_news_us + scene.told_bytes * self.units.hub_byte_ns / 1e3
        return self.model.processes * each_us / 1e6

    @property
    def renewed_host_agent_s(self) -> float:
        """The same at each process, from all hubs."""
        scene = self.scenes.host_is_renewed
        each_us = scene.news * self.units.agent_news_us + scene.told_bytes * self.units.agent_byte_ns / 1e3
        return self.model.hubs * each_us / 1e6

    @property
    def swings_hub(self) -> float:
        """Cores of a hub, when the loads of some instances move every second."""
        scene = self.scenes.loads_swing
        each_us = scene.news * self.units.hub_news_us + scene.told_bytes * self.units.hub_byte_ns / 1e3
        return self.model.processes * each_us / 1e6

    @property
    def swings_agent(self) -> float:
        """The same at each process."""
        loads = self.model.instances / self.model.swinging
        each_us = self.scenes.loads_swing.news * self.units.agent_news_us + loads * self.units.agent_load_us
        return self.model.hubs * each_us / 1e6

    def links_cpu(self, out: float, into: float) -> float:
        """Cores that keeping so many links takes, while nothing is said on them."""
        return (out * self.units.caller_idle_us + into * self.units.worker_idle_us) / 1e6

    def calm_cpu(self, out: float, into: float) -> float:
        """The same with heartbeats every five seconds."""
        return (out * self.units.calm_caller_idle_us + into * self.units.calm_worker_idle_us) / 1e6

    def links_mb(self, out: float, into: float) -> float:
        return (out * self.units.caller_link_kb + into * self.units.worker_link_kb) / 1e3

    def links_s(self, out: float, into: float) -> float:
        """Processor time to make so many links."""
        return (out * self.units.caller_link_us + into * self.units.worker_link_us) / 1e6

    def files(self, out: float, into: float) -> float:
        return out * self.units.caller_link_fds + into * self.units.worker_link_fds


def case(hosts: int, units: Units) -> Case:
    """Simulate one size."""
    model = Model(hosts)
    scenes = asyncio.run(play(model))
    back = Storm(model, units, spread_s=HUB_BACK_S).run()
    start = Storm(model, units, spread_s=ALL_START_S).run()
    instances = round(model.per_service)
    callers = round(model.links_into_worker)
    bare = replace(model, bare=True)
    bare_back = Storm(bare, units, spread_s=HUB_BACK_S).run()
    waits = compare(callers, instances)
    return Case(model, units, scenes, back, start, waits, snapshot_bytes(model), snapshot_bytes(bare), bare_back)


# --- how values are written -------------------------------------------------------------------------------


def _three(value: float) -> str:
    """Three digits, and no more than there are."""
    if value >= 1000:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{float(f'{value:.2g}'):g}" if value < 100 else f"{value:.0f}"


def number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else _three(value)


def size(value: float) -> str:
    """Bytes, for people."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if value >= factor:
            return f"{_three(value / factor)} {unit}"
    return f"{value:.0f} B"


def megabytes(value: float) -> str:
    return size(value * 1e6)


def seconds(value: float) -> str:
    if value >= 120:
        return f"{_three(value / 60)} min"
    return f"{_three(value)} s" if value >= 1 else f"{_three(value * 1e3)} ms"


def cores(value: float) -> str:
    """Of one core, as long as one is enough."""
    return f"{_three(value * 100)} %" if value < 0.995 else f"**{value:.2g} cores**"


def _settled(outcome: Outcome, model: Model) -> str:
    if outcome.settled_s is None:
        served = round(100 * outcome.served / model.processes)
        return f"**not in {PATIENCE_S:.0f} s** ({served} % served)"
    return seconds(outcome.settled_s)


# --- the rows ---------------------------------------------------------------------------------------------

Row = tuple[str, Callable[[Case], str]]


def _every(case: Case) -> Case:
    """The same with a listed hub on every host. What one hub goes through is the same; a process pays for each."""
    return replace(case, model=replace(case.model, hubs=case.model.hosts))


def _start_bytes(case: Case) -> float:
    return case.model.hubs * case.snapshot


def _start_s(case: Case) -> float:
    return case.model.hubs * case.model.instances * case.read_us / 1e6


def _hub_links(case: Case) -> tuple[float, float]:
    return float(case.model.hubs), 0.0


def _worker(case: Case) -> tuple[float, float]:
    return case.model.links_of_worker, case.model.links_into_worker


def _worker_all(case: Case) -> tuple[float, float]:
    """Every service calls every other."""
    out = case.model.instances - case.model.per_service
    return out, out + case.model.hosts * case.model.gateways


def _gateway(case: Case) -> tuple[float, float]:
    return float(case.model.links_of_gateway), 0.0


def _of_host(case: Case, each: Callable[[Case, float, float], float], worker: tuple[float, float]) -> float:
    model = case.model
    return model.workers * each(case, *worker) + model.gateways * each(case, *_gateway(case))


def _publish_us(case: Case, subscribers: float) -> float:
    return case.units.publish_us + max(0.0, subscribers - 1) * case.units.publish_each_us


SECTIONS: Final[dict[str, tuple[Row, ...]]] = {
    "The mesh": (
        ("instances", lambda c: number(c.model.instances)),
        ("processes that register or watch", lambda c: number(c.model.processes)),
        ("a snapshot of the registry", lambda c: size(c.snapshot)),
    ),
    "A hub, one of three": (
        ("renewals heard per second", lambda c: number(c.scenes.quiet.in_messages)),
        ("… bytes per second", lambda c: size(c.scenes.quiet.in_bytes)),
        (
            "processor at rest: renewals + heartbeats",
            lambda c: cores(
                c.scenes.quiet.in_messages * c.units.hub_renewal_us / 1e6 + c.links_cpu(0, c.model.processes)
            ),
        ),
        (
            '… with lease = "15s", renew = "3s", heartbeat = "5s"',
            lambda c: cores(
                c.scenes.quiet.in_messages / 3 * c.units.hub_renewal_us / 1e6 + c.calm_cpu(0, c.model.processes)
            ),
        ),
        (
            "memory: records + links",
            lambda c: megabytes(c.model.instances * c.units.hub_record_kb / 1e3 + c.links_mb(0, c.model.processes)),
        ),
        ("open files", lambda c: number(c.files(0, c.model.processes))),
        ("a host loses power: known everywhere after", lambda c: seconds(c.scenes.host_dies.known_s)),
        ("a hub dies: living instances taken for gone", lambda c: number(c.scenes.taken_for_gone)),
        ("one host gets a release: processor time", lambda c: seconds(c.renewed_host_hub_s)),
        ("all hosts get it: processor time", lambda c: seconds(c.renewed_host_hub_s * c.model.hosts)),
        ("loads of 1 in 20 instances swing: processor", lambda c: cores(c.swings_hub)),
        ("it restarts: all are served after", lambda c: _settled(c.hub_back, c.model)),
        ("… it has sent", lambda c: size(c.hub_back.sent_bytes)),
        ("… its I/O thread has worked", lambda c: seconds(c.hub_back.io_s)),
        ("… dialled in vain", lambda c: number(c.hub_back.redials)),
        ("all start within 10 s: all are served after", lambda c: _settled(c.all_start, c.model)),
    ),
    "A process, three hubs": (
        ("memory: its table", lambda c: megabytes(c.model.instances * c.units.table_record_kb / 1e3)),
        ("it starts: bytes from hubs", lambda c: size(_start_bytes(c))),
        ("… processor time", lambda c: seconds(_start_s(c))),
        ("all hosts get a release: processor time", lambda c: seconds(c.renewed_host_agent_s * c.model.hosts)),
        (
            "… a gateway, besides",
            lambda c: seconds(c.model.instances * 2 * c.model.per_service * c.units.gateway_learn_us / 1e6),
        ),
        ("loads of 1 in 20 instances swing: processor", lambda c: cores(c.swings_agent)),
    ),
    "A process, a hub on every host": (
        ("links to hubs", lambda c: number(_every(c).model.hubs)),
        ("open files for them", lambda c: number(c.files(*_hub_links(_every(c))))),
        ("memory for them", lambda c: megabytes(c.links_mb(*_hub_links(_every(c))))),
        (
            "processor at rest: renewals + heartbeats",
            lambda c: cores(
                _every(c).model.hubs * c.units.agent_renewal_us / 1e6 + c.links_cpu(*_hub_links(_every(c)))
            ),
        ),
        ("it starts: bytes from hubs", lambda c: size(_start_bytes(_every(c)))),
        ("… processor time", lambda c: seconds(_start_s(_every(c)))),
        (
            "all hosts get a release: processor time",
            lambda c: seconds(_every(c).renewed_host_agent_s * c.model.hosts),
        ),
        ("loads of 1 in 20 instances swing: processor", lambda c: cores(_every(c).swings_agent)),
    ),
    "Links, each service calls three others": (
        ("of a worker: out, in", lambda c: f"{number(_worker(c)[0])}, {number(_worker(c)[1])}"),
        ("of a gateway: out", lambda c: number(_gateway(c)[0])),
        (
            "open files of a worker, of a gateway",
            lambda c: f"{number(c.files(*_worker(c)))}, {number(c.files(*_gateway(c)))}",
        ),
        (
            "memory of a worker's, of a gateway's",
            lambda c: f"{megabytes(c.links_mb(*_worker(c)))}, {megabytes(c.links_mb(*_gateway(c)))}",
        ),
        (
            "heartbeats: processor of a worker, of a gateway",
            lambda c: f"{cores(c.links_cpu(*_worker(c)))}, {cores(c.links_cpu(*_gateway(c)))}",
        ),
        ("… of a host", lambda c: cores(_of_host(c, Case.links_cpu, _worker(c)))),
        ('… with heartbeat = "5s"', lambda c: cores(_of_host(c, Case.calm_cpu, _worker(c)))),
        ("memory of a host's", lambda c: megabytes(_of_host(c, Case.links_mb, _worker(c)))),
        ("all start: processor time of a host", lambda c: seconds(_of_host(c, Case.links_s, _worker(c)))),
    ),
    "Links, every service calls every other": (
        ("of a worker: out, in", lambda c: f"{number(_worker_all(c)[0])}, {number(_worker_all(c)[1])}"),
        ("open files of a worker", lambda c: number(c.files(*_worker_all(c)))),
        ("memory of a host's", lambda c: megabytes(_of_host(c, Case.links_mb, _worker_all(c)))),
        ("heartbeats: processor of a host", lambda c: cores(_of_host(c, Case.links_cpu, _worker_all(c)))),
        ("all start: processor time of a host", lambda c: seconds(_of_host(c, Case.links_s, _worker_all(c)))),
    ),
    'Events to every instance (`to="every"`)': (
        ("one service of 20 listens: subscribers", lambda c: number(c.model.per_service * c.model.listens)),
        (
            "… most that one publisher can emit per second",
            lambda c: number(float(f"{1e6 / _publish_us(c, c.model.per_service * c.model.listens):.2g}")),
        ),
        ("all 20 listen: subscribers", lambda c: number(c.model.instances)),
        (
            "… most that one publisher can emit per second",
            lambda c: number(float(f"{1e6 / _publish_us(c, c.model.instances):.2g}")),
        ),
        (
            "first event after a change: processor time",
            lambda c: seconds(c.model.instances * c.units.listeners_us / 1e6),
        ),
    ),
    "Balance: p99 of an answer, over the mean work of a call": (
        (
            "callers of a service, its instances",
            lambda c: f"{number(c.model.links_into_worker)}, {number(c.model.per_service)}",
        ),
        ("mesh: the better of two, by what a caller knows itself", lambda c: f"{c.balance['own'].p99:.1f}×"),
        ("one at random", lambda c: f"{c.balance['random'].p99:.1f}×"),
        ("the better of two, if each caller knew all", lambda c: f"{c.balance['all'].p99:.1f}×"),
    ),
    "The store, one for the whole mesh": (
        ("tasks per second for each host", lambda c: number(float(f"{STORE_TASKS_PER_S / c.model.hosts:.3g}"))),
        ("streams that it keeps open to workers", lambda c: number(c.model.instances)),
        ("memory of links", lambda c: megabytes(c.links_mb(0, c.model.processes))),
    ),
    "Not built: what a release offers is told once, not in each record": (
        ("a snapshot of the registry", lambda c: size(c.bare_snapshot)),
        ("a hub restarts: all are served after", lambda c: _settled(c.bare_back, c.model)),
        ("… it has sent", lambda c: size(c.bare_back.sent_bytes)),
    ),
}
