"""A store with a great many waiting tasks: small, quick to ask, quick to come back."""

from __future__ import annotations

import asyncio
import re
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

import mesh
from mesh import ids
from mesh.tasks.contract import Lease, NewTask, Offer, Queue, Settlement

from .conftest import LONG, Set
from .durable_set import PATIENCE_S, Killer, durable_set, tell, until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900 if LONG else 120)]

TASKS = 1_000_000 if LONG else 20_000
BATCH = 1_000
QUEUE = "depth.wait"
BODY = b"\x91\xd9\x26some-customer-1234567890-order-1234567"
#: What may be asked of a host for a million waiting tasks.
MOST_BYTES = 150 * 10**6
#: Tasks that are run one after the other, each when the one before is acknowledged.
CLAIMS = 200


def pss_bytes(pid: int) -> int:
    """Memory of a process, its share of what it shares included."""
    found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


def peak_bytes(pid: int) -> int:
    """The most that was ever resident."""
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


class OneByOne:
    """A worker with room for one task; each lease is put into `leases`."""

    def __init__(self) -> None:
        self.leases: asyncio.Queue[Lease] = asyncio.Queue()
        self.in_hand: dict[str, int] = {}

    def leased(self, leases: Sequence[Lease]) -> None:
        for lease in leases:
            self.in_hand[lease.id] = lease.attempt
            self.leases.put_nowait(lease)

    def cancel(self, jobs: Sequence[tuple[str, int]]) -> None:
        """Nobody cancels here."""

    def lost(self, reason: str) -> None:
        """Nothing runs."""

    def held(self) -> list[tuple[str, int]]:
        return list(self.in_hand.items())


async def fill(n: mesh.Node, count: int, callers: int = 4) -> None:
    """`count` tasks with a key each, in batches."""
    left = iter(range(0, count, BATCH))

    async def call() -> None:
        for start in left:
            rows = [NewTask(ids.job_id(), QUEUE, BODY, key=f"k-{number}") for number in range(start, start + BATCH)]
            await n.durable.engines.of("queues").queues.defer(rows, timeout_s=PATIENCE_S)

    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(call())


async def claim(n: mesh.Node) -> list[float]:
    """Seconds from each acknowledgement to the next lease."""
    leases, receiver = n.durable.engines.of("queues").leases, OneByOne()
    session = await leases.subscribe(Offer(ids.job_id(), ("depth",), (Queue(QUEUE, 1),)), receiver)
    took: list[float] = []
    async with asyncio.timeout(PATIENCE_S):
        lease = await receiver.leases.get()
        for _ in range(CLAIMS):
            began = time.monotonic()
            await leases.acknowledge([Settlement(lease.id, lease.attempt, "done")], timeout_s=PATIENCE_S)
            del receiver.in_hand[lease.id]
            lease = await receiver.leases.get()
            took.append(time.monotonic() - began)
    await session.close()
    return took


async def asking(n: mesh.Node) -> float:
    """Seconds of one look at the queues."""
    began = time.monotonic()
    (queue,) = [
        each for each in await n.durable.engines.of("queues").leases.queues(timeout_s=PATIENCE_S) if each.name == QUEUE
    ]
    took = time.monotonic() - began
    assert queue.ready == TASKS - CLAIMS
    return took


def command(made: Set) -> float:
    """Seconds of `mesh tasks`, from the shell and back."""
    began = time.monotonic()
    said = made.run("mesh", "tasks").stdout
    assert f"{TASKS - CLAIMS:,}" in said
    return time.monotonic() - began


async def test_a_store_with_many_waiting_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    """Its memory is bounded by its cache, claims do not slow down, and it is back in seconds with all of them."""
    with durable_set({"Slow": 1}) as made:
        async with mesh.connect(path=made.root / "mesh.toml", wait_s=PATIENCE_S) as n:
            empty = pss_bytes(made.pids()["store"])
            began = time.monotonic()
            await fill(n, TASKS)
            filling_s = time.monotonic() - began
            full = pss_bytes(made.pids()["store"])
            claims = await claim(n)
            asked = [await asking(n) for _ in range(20)]
            typed = await asyncio.to_thread(command, made)
            peak = peak_bytes(made.pids()["store"])
            size = sum(each.stat().st_size for each in (made.root / "data").iterdir())
            Killer(made, 4).kill("store")
            began = time.monotonic()
            await asking(n)
            restart_s = time.monotonic() - began
            again = await keys_are_known(n)

            async def runs() -> bool:
                # supervisor calls it running a second after it has started.
                return "store" in made.pids()

            await until(runs, what="the store runs")
            after = pss_bytes(made.pids()["store"])
        p99 = sorted(claims)[len(claims) * 99 // 100]
        tell(
            capsys,
            f"{TASKS:,} waiting tasks in {filling_s:.1f} s, {size / 1e6:.0f} MB on the disk; "
            f"store {empty / 1e6:.0f} MB empty, {full / 1e6:.0f} MB full, {peak / 1e6:.0f} MB at most, "
            f"{after / 1e6:.0f} MB after its restart; "
            f"claim {statistics.median(claims) * 1e3:.2f} ms, p99 {p99 * 1e3:.2f} ms; "
            f"queues {statistics.median(asked) * 1e3:.2f} ms, longest {max(asked) * 1e3:.1f} ms; "
            f"mesh tasks {typed:.2f} s; restart {restart_s:.2f} s",
        )
        assert again
        assert max(full, peak, after) <= MOST_BYTES
        # Generous for a loaded machine; a scan of a million rows takes longer than any of it.
        assert statistics.median(claims) < 0.05
        assert statistics.median(asked) < 0.05
        assert restart_s < 20


async def keys_are_known(n: mesh.Node) -> bool:
    """After the restart each key is still known: the same tasks, deferred again, are not made."""
    rows = [NewTask(ids.job_id(), QUEUE, b"\x90", key=f"k-{number}") for number in range(TASKS - BATCH, TASKS)]
    tickets = await n.durable.engines.of("queues").queues.defer(rows, timeout_s=PATIENCE_S)
    return not any(ticket.fresh for ticket in tickets)
