"""The process that adjusts the number of workers to the load: it measures, decides, and scales.

Owns: the loop, its log lines, and which services it may scale.
Leaves to others: measuring (sampling), deciding (policy.scaling), starting and draining (scale).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import NamedTuple

from mesh.config import OPERATOR, ServiceSettings, Settings
from mesh.config.settings import cores
from mesh.deploy.scale import scale
from mesh.errors import LockTaken, MeshError, Unavailable
from mesh.node.connect import connect
from mesh.node.node import Node
from mesh.observe.sampling import Sample, Sampler
from mesh.policy.backoff import Backoff
from mesh.policy.scaling import Decision, Look, Memory, Rule, decide
from mesh.supervisord.control import Control
from mesh.supervisord.layout import Layout
from mesh.supervisord.roster import Roster
from mesh.telemetry.logs import get_logger

log = get_logger("mesh.autoscale")


class Advice(NamedTuple):
    """The decision about one service after one measurement."""

    service: str
    look: Look
    decision: Decision

    @property
    def changes(self) -> bool:
        """Whether the number of workers should change."""
        return self.decision.workers != self.look.workers


def scaled_services(settings: Settings) -> dict[str, ServiceSettings]:
    """The services to scale by load: those with a `maximum`."""
    return {name: service for name, service in settings.services.items() if service.runs and service.maximum}


def rule_of(service: ServiceSettings, settings: Settings) -> Rule:
    """The scaling rule of a service in mesh.toml."""
    patience = settings.autoscale
    return Rule(
        minimum=service.minimum,
        maximum=service.maximum,
        cpu=service.target_cpu,
        cores=cores(),
        in_flight=service.target_in_flight,
        latency_s=service.target_latency_s,
        up_after_s=patience.up_after_s,
        down_after_s=patience.down_after_s,
        cooldown_s=patience.cooldown_s,
    )


async def advise(layout: Layout, settings: Settings) -> AsyncIterator[list[Advice]]:
    """Measure periodically, and yield the decisions each time. Nothing is changed.

    The next measurement shows whether an advice was followed: it is repeated until the number has changed.
    """
    roster = Roster(layout, settings)
    rules = {name: rule_of(service, settings) for name, service in scaled_services(settings).items()}
    memories = dict.fromkeys(rules, Memory())
    control = Control(layout.socket)
    try:
        async with connect(settings, role=OPERATOR) as node:
            sampler = Sampler(node)
            while True:
                advices = []
                for name, look in (await _looks(node, sampler, control, roster, rules)).items():
                    decision, memories[name] = decide(look, rules[name], memories[name])
                    advices.append(Advice(name, look, decision))
                yield advices
                await node.clock.sleep(settings.autoscale.every_s)
    finally:
        control.close()


async def _looks(
    node: Node, sampler: Sampler, control: Control, roster: Roster, names: Iterable[str]
) -> dict[str, Look]:
    try:
        processes = control.processes()
    except Unavailable as exc:
        log.warning("autoscale.not_measured", reason=exc.message)
        return {}
    pids = {name: [each.pid for each in processes if each.program == name and each.pid] for name in names}
    samples = await sampler.look(pid for group in pids.values() for pid in group)
    now = node.clock.now()
    return {name: _look(now, roster.count(name), [samples[pid] for pid in pids[name]]) for name in names}


def _look(now: float, workers: int, samples: list[Sample]) -> Look:
    answered = [each for each in samples if each.answered]
    ended = sum(each.ended for each in answered)
    return Look(
        at=now,
        workers=workers,
        # A worker that is too busy to report its counters is ready all the same; a starting worker is not.
        ready=sum(bool(each.services) for each in samples),
        cpu=sum(each.demand for each in samples if each.services),
        in_flight=sum(each.in_flight for each in answered),
        waiting=sum(each.waiting for each in answered),
        latency_s=sum(each.mean_s * each.ended for each in answered) / ended if ended else 0.0,
    )


async def run(layout: Layout, settings: Settings) -> None:
    """Scale the services by their load, until mesh.toml changes."""
    written_at = _written_at(settings)
    followers = {name: _Follower(layout, settings, name) for name in scaled_services(settings)}
    async for advices in advise(layout, settings):
        if _written_at(settings) != written_at:
            return
        for advice in advices:
            if advice.changes:
                await followers[advice.service].follow(advice)


def _written_at(settings: Settings) -> float:
    try:
        return settings.file.stat().st_mtime if settings.file else 0.0
    except OSError:
        return 0.0


class _Follower:
    """Follows the advice for one service. After a failure it waits, each time longer, as each try costs a start-up."""

    def __init__(self, layout: Layout, settings: Settings, service: str) -> None:
        self._layout = layout
        self._settings = settings
        self._service = service
        self._backoff = Backoff(15.0, 300.0, jitter=0.0)
        self._failures = 0
        self._retry_at = 0.0

    async def follow(self, advice: Advice) -> None:
        wanted, now = advice.decision.workers, advice.look.at
        if now < self._retry_at:
            return
        log.info(
            "autoscale.decided", service=self._service, workers=advice.look.workers, to=wanted, why=advice.decision.why
        )
        try:
            await scale(self._layout, self._settings, {self._service: wanted})
        except LockTaken as exc:
            log.info("autoscale.postponed", service=self._service, reason=exc.message)
        except MeshError as exc:
            self._failures += 1
            wait_s = self._backoff.delay(self._failures, 0.0)
            self._retry_at = now + wait_s
            tail = exc.details.get("tail")
            log.warning(
                "autoscale.failed", service=self._service, to=wanted, reason=exc.message, wait_s=wait_s, tail=tail
            )
        else:
            self._failures = 0
