"""A set with a store under a real supervisord, and who kills its processes."""

from __future__ import annotations

import asyncio
import os
import random
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import mesh

from .conftest import Set, project

HERE = Path(__file__).parent
PATIENCE_S = 60.0
#: Short, so that a test sees leases end; long against the pauses of a loaded machine.
LEASE_S = 2.0


@contextmanager
def durable_set(workers: Mapping[str, int], *, gateways: int = 1, more: str = "", watched: bool = False) -> Iterator[Set]:
    """Hub, store, gateways, and workers of tests/chaos/durable_work.py: class -> how many.

    Args:
        watched: whether a process that is killed again and again is made to wait before it is started.
    """
    text = f'[store]\nlease = "{LEASE_S:g}s"\n' + more
    for name, copies in workers.items():
        text += f'[services.{name.lower()}]\nclass = "durable_work:{name}"\nreplicas = {copies}\n'

    def before(root: Path) -> None:
        shutil.copy(HERE / "durable_work.py", root)
        conf = root / "supervisord.conf"
        conf.write_text(_with_store(conf.read_text()))

    with project({}, text, gateways, before) as made:
        if not watched:
            # What is killed to see what happens is in no crash loop.
            made.run("supervisorctl", "stop", "watch")
        yield made


def _with_store(conf: str) -> str:
    """The project's supervisord.conf runs a store, or shows how in a comment."""
    if "\n[program:store]" in conf:
        return conf
    head, mark, tail = conf.partition("; [program:store]")
    assert mark, "supervisord.conf says nothing of a store"
    return head + re.sub(r"^; ", "", mark + tail, flags=re.MULTILINE)


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
            while progress() < number / (len(kinds) + 1):
                await asyncio.sleep(0.01)
            await asyncio.sleep(self.rng.uniform(0, 0.3))
            await asyncio.to_thread(self.kill, kind)


async def until(condition: Callable[[], Awaitable[bool]], patience_s: float = PATIENCE_S, what: str = "it") -> None:
    """Look again and again; AssertionError when it does not come true in time."""
    end = time.monotonic() + patience_s
    while not await condition():
        assert time.monotonic() < end, f"{what} did not come true within {patience_s:g} s"
        await asyncio.sleep(0.1)


async def settled(n: mesh.Node, prefix: str, patience_s: float = PATIENCE_S) -> None:
    """No task or delivery of this service is open any more."""
    open_: dict[str, int] = {}

    async def look() -> bool:
        open_.clear()
        for queue in await n.durable.tasks.queues(timeout_s=PATIENCE_S):
            if queue.name.startswith(f"{prefix}."):
                open_[queue.name] = queue.waiting + queue.delayed + queue.ready + queue.running + queue.backlog
        return bool(open_) and not any(open_.values())

    end = time.monotonic() + patience_s
    while not await look():
        assert time.monotonic() < end, f"still open after {patience_s:g} s: {open_}"
        await asyncio.sleep(0.2)
