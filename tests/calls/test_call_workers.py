"""`$worker`, which every worker answers: links are made to those who are asked, not to the whole mesh."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from calls_services import Echo

import mesh
from mesh.calls.client import WORKER
from mesh.calls.options import CallOptions
from mesh.testing import ManualClock, Mesh, no_leaks

pytestmark = pytest.mark.timeout(30)


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    async with no_leaks():
        yield


@pytest.fixture
async def m() -> AsyncIterator[Mesh]:
    async with Mesh([Echo], replicas={Echo: 5}, clock=ManualClock()) as m:
        yield m


async def test_who_asks_one_worker_links_to_it_alone(m: Mesh):
    """In a mesh of thousands a look at one host's workers is a few links."""
    workers = m.workers(Echo)
    for worker in workers[:2]:
        info = await m.call("$worker.info", instance=worker.instance_ids[0])
        assert info["identity"] == worker.identity
    assert m.node.client.links(WORKER) == 2


async def test_who_asks_any_worker_is_answered(m: Mesh):
    """Without a name and with a key, before and after one was asked by name; then everybody is linked to, also who
    comes later."""
    known = {worker.identity for worker in m.workers(Echo)}
    assert (await m.call("$worker.info", instance=m.workers(Echo)[0].instance_ids[0]))["identity"] in known
    by_key = {
        (await m.node.client.call("$worker.info", b"\x90", 0, CallOptions(key="k")))["identity"] for _ in range(3)
    }
    assert len(by_key) == 1
    assert by_key <= known
    await m.settle()
    assert m.node.client.links(WORKER) == 5
    await m.start_another(Echo)
    await m.settle()
    assert m.node.client.links(WORKER) == 6


async def test_who_asks_first_of_all_without_a_name_is_answered(m: Mesh):
    """There is no link yet to anybody."""
    assert (await m.call("$worker.info"))["identity"] in {worker.identity for worker in m.workers(Echo)}


async def test_one_that_is_not_there_is_not_waited_for(m: Mesh):
    """Neither one that never was nor one that went; and the link to that is let go of."""
    with pytest.raises(mesh.Unavailable, match="echo-none"):
        await m.call("$worker.info", instance="echo-none")
    worker = m.workers(Echo)[0]
    asked = worker.instance_ids[0]
    assert (await m.call("$worker.info", instance=asked))["in_hand"] == 1
    await m.faults.kill(worker)
    for _ in range(8):
        await m.advance(1.0)
    with pytest.raises(mesh.Unavailable, match=asked):
        await asyncio.wait_for(m.call("$worker.info", instance=asked), 5)
    assert m.node.client.links(WORKER) == 0
