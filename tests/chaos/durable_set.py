"""A set with a store under a real supervisord, and who kills its processes."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

import mesh
from mesh.tasks.contract import Status

from .conftest import LONG, Set, project

HERE = Path(__file__).parent
PATIENCE_S = 60.0
#: Short, so that a test sees leases end; longer than a store takes to start again.
LEASE_S = 3.0


@contextmanager
def durable_set(workers: Mapping[str, int], *, gateways: int = 1) -> Iterator[Set]:
    """Hub, store, gateways, and workers of tests/chaos/durable_work.py: class -> how many."""
    text = f'[store]\nlease = "{LEASE_S:g}s"\n'
    for name, copies in workers.items():
        text += f'[services.{name.lower()}]\nclass = "durable_work:{name}"\nreplicas = {copies}\n'

    def before(root: Path) -> None:
        shutil.copy(HERE / "durable_work.py", root)

    with project({}, text, gateways, before) as made:
        # What is killed again and again would be made to wait before it is started, as if it were in a crash loop.
        made.run("supervisorctl", "stop", "watch")
        yield made


def kind_of(process: str) -> str:
    """ "store", "hub", "gateway" or "worker", by supervisor's name."""
    group = process.partition(":")[0]
    return group if group in ("store", "hub", "gateway", "watch") else "worker"


class Killer:
    """Sends SIGKILL, by pid, to processes of a set that run.

    Attributes:
        killed: how many, by kind.
    """

    def __init__(self, made: Set, seed: int) -> None:
        self.set = made
        self.rng = random.Random(seed)
        self.killed: Counter[str] = Counter()

    def kill(self, kind: str, patience_s: float = PATIENCE_S) -> None:
        """One of this kind, as soon as one runs; "all": every one that runs."""
        end = time.monotonic() + patience_s
        while True:
            running = {name: pid for name, pid in self.set.pids().items() if kind_of(name) != "watch"}
            if kind != "all":
                running = {name: pid for name, pid in running.items() if kind_of(name) == kind}
            if running:
                break
            assert time.monotonic() < end, f"no {kind} came back"
            time.sleep(0.05)
        for name in sorted(running) if kind == "all" else [self.rng.choice(sorted(running))]:
            try:
                os.kill(running[name], signal.SIGKILL)
            except ProcessLookupError:
                continue  # it died by itself between asking and killing, of a kill just before
            self.killed[kind_of(name)] += 1

    async def follow(self, kinds: Sequence[str], progress: Callable[[], float]) -> None:
        """Kill these, one after the other, spread over the way of `progress` from 0 to 1."""
        for number, kind in enumerate(kinds, 1):
            while progress() < number / (len(kinds) + 1):  # noqa: ASYNC110  # nothing announces it
                await asyncio.sleep(0.01)
            await asyncio.sleep(self.rng.uniform(0, 0.3))
            await asyncio.to_thread(self.kill, kind)


async def until(condition: Callable[[], Awaitable[bool]], patience_s: float = PATIENCE_S, what: object = "it") -> None:
    """Look again and again; AssertionError when it does not come true in time."""
    end = time.monotonic() + patience_s
    while not await condition():
        assert time.monotonic() < end, f"not after {patience_s:g} s: {what}"
        await asyncio.sleep(0.1)


async def settled(n: mesh.Node, service: str, patience_s: float = PATIENCE_S) -> None:
    """No task and no delivery of this service is open any more."""
    open_: dict[str, int] = {}

    async def none_open() -> bool:
        open_.clear()
        for queue in await n.durable.engines.of("queues").leases.queues(timeout_s=PATIENCE_S):
            if queue.name.startswith(f"{service}."):
                open_[queue.name] = queue.waiting + queue.delayed + queue.ready + queue.running + queue.backlog
        return bool(open_) and not any(open_.values())

    await until(none_open, patience_s, what=open_)


async def all_jobs(n: mesh.Node, queue: str, status: Status) -> list[mesh.JobInfo]:
    """All jobs of a queue with this status, oldest first."""
    found: list[mesh.JobInfo] = []
    while True:
        after = found[-1].id if found else ""
        page = await n.durable.engines.of("queues").jobs.page(
            queue, status, after=after, limit=5000, timeout_s=PATIENCE_S
        )
        if not page:
            return found
        found += page


def said(made: Set, what: str) -> list[str]:
    """Lines of the logs of all processes with this in them."""
    logs = sorted((made.root / "logs").glob("*.log*"))
    return [f"{log.name}: {line}" for log in logs for line in log.read_text().splitlines() if what in line]


def tell(capsys: pytest.CaptureFixture[str], figures: str) -> None:
    """The long variants are run for their figures, too."""
    if LONG:
        with capsys.disabled():
            print(f"\n{figures}")
