"""Nothing acknowledged is lost, and nothing happens twice, while every kind of process is killed with -9."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence

import aiohttp
import pytest

import mesh

from .conftest import LONG, Set
from .durable_set import PATIENCE_S, Killer, all_jobs, durable_set, said, settled, tell

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900 if LONG else 120)]

SEED = 20
TASKS = 100_000 if LONG else 1_000
#: What is killed, one after the other in an order of chance.
OFTEN, SELDOM, ALL = (30, 15, 5) if LONG else (2, 1, 1)
DEATHS = ["store", "worker"] * OFTEN + ["gateway", "hub"] * SELDOM + ["all"] * ALL
#: Every fifth task comes over HTTP.
BATCH, CALLERS = (100, 4) if LONG else (10, 2)
#: Publishers wait while so many tasks are open, so that something runs at each death.
MOST_OPEN = 4_000 if LONG else 200
#: Of a publisher that was left in the dark; what it gives up then is unconfirmed.
GIVES_UP = 0.3


class Published:
    """What the publishers know.

    Attributes:
        confirmed: entry -> id of its job.
        doubtful: given up when nobody could say whether they were taken.
        refused: given up after an error that says that nothing was done.
        repeats: how often something was sent again.
        room: set while more may be published.
    """

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.confirmed: dict[str, str] = {}
        self.doubtful: set[str] = set()
        self.refused: set[str] = set()
        self.repeats = 0
        self.room = asyncio.Event()
        self.room.set()

    def progress(self) -> float:
        return (len(self.confirmed) + len(self.doubtful) + len(self.refused)) / TASKS

    def gives_up(self, entries: Sequence[str], doubtful: bool) -> bool:
        """After an error: whether to leave it at that, and write it down; else it is sent again."""
        if not doubtful and not self.doubtful.intersection(entries) and self.rng.random() < GIVES_UP:
            self.refused.update(entries)
            return True
        if doubtful and self.rng.random() < GIVES_UP:
            self.doubtful.update(entries)
            return True
        self.repeats += 1
        return False


async def keep_room(n: mesh.Node, published: Published) -> None:
    """Has publishers wait for the workers."""
    while published.progress() < 1:
        try:
            queues = await n.durable.engines.of("queues").leases.queues(timeout_s=PATIENCE_S)
        except mesh.MeshError:
            continue  # the store died of it
        open_ = sum(queue.ready + queue.running + queue.delayed for queue in queues)
        published.room.set() if open_ < MOST_OPEN else published.room.clear()
        await asyncio.sleep(0.05)
    published.room.set()


async def publish_from_a_node(n: mesh.Node, published: Published, entries: Sequence[str]) -> None:
    """Batches, with a key for each; what is uncertain is sent again with the same keys."""
    for start in range(0, len(entries), BATCH):
        part = entries[start : start + BATCH]
        await published.room.wait()
        clear = True  # nothing that was sent before may have been done
        while True:
            try:
                async with n.batch() as b:
                    jobs = [b.defer("ledger.book", entry, key=entry) for entry in part]
            except mesh.Uncertain:
                clear = False
                if published.gives_up(part, doubtful=True):
                    break
            except mesh.TryLater:
                if published.gives_up(part, doubtful=not clear):
                    break
            else:
                published.confirmed.update(zip(part, (job.id for job in jobs), strict=True))
                break


async def publish_over_http(
    http: aiohttp.ClientSession, made: Set, published: Published, entries: Sequence[str]
) -> None:
    """One after the other, with an Idempotency-Key; what is not answered with 202 is sent again."""
    for entry in entries:
        await published.room.wait()
        while True:
            try:
                async with http.post(
                    f"{made.url}/tasks/ledger/book", json={"entry": entry}, headers={"Idempotency-Key": entry}
                ) as answer:
                    said = await answer.json()
                    if answer.status == 202:
                        published.confirmed[entry] = said["id"]
                        break
                    assert answer.status >= 500, said
            except aiohttp.ClientError:
                pass  # the gateway died
            if published.gives_up([entry], doubtful=True):
                break
            await asyncio.sleep(0.05)


async def test_the_ledger_is_exact(capsys: pytest.CaptureFixture[str]) -> None:
    """Every confirmed task ran, its effects and its event are there once; what was refused left nothing."""
    kinds = list(DEATHS)
    random.Random(SEED).shuffle(kinds)
    published = Published(SEED)
    entries = [f"e-{number:06d}" for number in range(TASKS)]
    over_http, from_node = entries[::5], [entry for number, entry in enumerate(entries) if number % 5]
    with durable_set({"Ledger": 3}, gateways=2) as made:
        killer = Killer(made, SEED)
        toml = made.root / "mesh.toml"
        began = time.monotonic()
        # A publisher that loses patience soon, so that each way of not being confirmed is taken.
        async with (
            mesh.connect(path=toml, flags={"tasks.defer_timeout": "300ms"}, wait_s=PATIENCE_S) as n,
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(30)) as http,
            asyncio.TaskGroup() as group,
        ):
            for caller in range(CALLERS):
                group.create_task(publish_from_a_node(n, published, from_node[caller::CALLERS]))
            for caller in range(8):
                group.create_task(publish_over_http(http, made, published, over_http[caller::8]))
            group.create_task(keep_room(n, published))
            group.create_task(killer.follow(kinds, published.progress))
        took_publishing = time.monotonic() - began
        async with mesh.connect(path=toml, wait_s=PATIENCE_S) as n:
            await settled(n, "ledger", 400.0 if LONG else 60.0)
            took = time.monotonic() - began
            jobs = await all_jobs(n, "ledger.book", "done")
            dead = await all_jobs(n, "ledger.book", "dead") + await all_jobs(n, "ledger.heard", "dead")
            ledger = {key: job async for key, job in n.state("ledger").items()}
            heard = {key async for key in n.state("heard").keys("")}
            sums = {key: value async for key, value in n.state("sums").items()}
        again = Counter(job.attempt - 1 for job in jobs)
        tell(
            capsys,
            f"{TASKS} tasks in {took:.1f} s, published in {took_publishing:.1f} s; killed {dict(killer.killed)}; "
            f"{len(published.confirmed)} confirmed, {len(published.doubtful)} doubtful, "
            f"{len(published.refused)} refused, {published.repeats} sent again; "
            f"redelivered by times {dict(sorted(again.items()))}; lost {sum(job.lost for job in jobs)}",
        )
        assert said(made, "link.protocol_violated") == []
        assert not dead, [(job.key, job.reason, job.error, job.traceback) for job in dead[:3]]
        assert len(published.confirmed) > TASKS / 2
        assert sum(killer.killed.values()) >= len(DEATHS)
        done = {job.key: job.id for job in jobs}
        assert len(done) == len(jobs), "a key was done twice"
        missing = published.confirmed.keys() - done.keys()
        assert not missing, f"{len(missing)} confirmed tasks did not run, such as {sorted(missing)[:3]}"
        assert {entry: done[entry] for entry in published.confirmed} == published.confirmed
        assert not published.refused & done.keys()
        assert done.keys() <= published.confirmed.keys() | published.doubtful
        assert ledger == done
        assert heard == ledger.keys()
        assert sums == {"booked": len(ledger), "heard": len(ledger)}
