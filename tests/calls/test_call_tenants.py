"""Tenants share a service that is at its limit: a flood of one leaves room and turns for the others."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import mesh
from mesh.testing import Mesh, no_leaks

pytestmark = pytest.mark.timeout(30)


class Till(mesh.Service):
    """Notes which tenant each handler worked for."""

    name = "till"

    def __init__(self) -> None:
        self.began: list[str] = []
        self.go = asyncio.Event()

    async def work(self) -> str:
        context = mesh.current()
        assert context is not None
        self.began.append(context.tenant)
        await asyncio.sleep(0.002)
        return context.tenant

    @mesh.rpc
    async def pay(self) -> str:
        return await self.work()

    @mesh.rpc(concurrency=2, queue=20)
    async def count(self) -> str:
        return await self.work()

    @mesh.rpc
    async def hold(self) -> str:
        await self.go.wait()
        return await self.work()


SMALL = {"services.till.concurrency": 4, "services.till.queue": 40}


async def send(m: Mesh, tenant: str, target: str = "till.pay") -> str:
    """The tenant that was served, or the code of the error."""
    try:
        if not tenant:
            return str(await m.call(target))
        with mesh.scope(tenant=tenant):
            return str(await m.call(target))
    except mesh.MeshError as exc:
        return exc.code


@pytest.mark.parametrize("target", ["till.pay", "till.count"])
async def test_a_flood_of_one_tenant_leaves_the_others_served(target: str):
    """500 concurrent calls of one tenant; the five calls of another one begin within a few turns, and so do those of a
    caller without a tenant."""
    async with no_leaks(), Mesh(Till, settings=SMALL) as m:
        (till,) = m.instances(Till)
        flood = [asyncio.create_task(send(m, "flood", target)) for _ in range(500)]
        while len(till.began) < 2:  # noqa: ASYNC110  # nothing announces it
            await asyncio.sleep(0)
        turns = []
        for tenant in ("modest", "") * 5:
            before = len(till.began)
            assert await send(m, tenant, target) == tenant
            turns.append(till.began.index(tenant, before) - before)
        answers = await asyncio.gather(*flood)
        assert set(answers) == {"flood", "overloaded"}
        # Not behind the 20 or 40 queued calls of the flood.
        assert max(turns) <= 6


async def test_tenants_that_both_flood_are_served_alike():
    async with no_leaks(), Mesh(Till, settings=SMALL) as m:
        first = [asyncio.create_task(send(m, "first")) for _ in range(300)]
        second = [asyncio.create_task(send(m, "second")) for _ in range(300)]
        answers = [each for each in await asyncio.gather(*first, *second) if each != "overloaded"]
        # The first four run at once, before another tenant has come.
        assert abs(answers.count("first") - answers.count("second")) <= 5
        assert len(answers) == 44


async def test_without_tenants_the_queue_is_in_order_and_new_calls_are_refused():
    async with no_leaks(), Mesh(Till, settings=SMALL) as m:
        answers = await asyncio.gather(*(send(m, "") for _ in range(60)))
        assert answers == [""] * 44 + ["overloaded"] * 16


async def test_a_call_that_gives_way_at_the_service_frees_its_place_at_its_method():
    """`count` runs two at once: its calls that wait at the full service must not keep these places."""
    settings: dict[str, Any] = {"services.till.concurrency": 1, "services.till.queue": 2}
    async with no_leaks(), Mesh(Till, settings=settings) as m:
        (till,) = m.instances(Till)
        holding = asyncio.create_task(send(m, "flood", "till.hold"))
        await m.settle()
        counts = [asyncio.create_task(send(m, "flood", "till.count")) for _ in range(3)]
        await m.settle()
        # Two wait at the service, one at its method. One of the two gives way, and is refused.
        modest = asyncio.create_task(send(m, "modest"))
        await m.settle()
        till.go.set()
        assert await modest == "modest"
        assert await holding == "flood"
        assert sorted(await asyncio.gather(*counts)) == ["flood", "overloaded", "overloaded"]
        # All places are free again.
        assert sorted(await asyncio.gather(*(send(m, "x", "till.count") for _ in range(3)))) == ["x", "x", "x"]


async def test_calls_that_wait_for_an_instance_share_the_room():
    """No worker runs: ten calls may wait, and those of the flood give way."""
    settings = {"calls.wait_limit": 10, "calls.wait": 20.0, "calls.timeout": 20.0}
    async with no_leaks(), Mesh(Till, replicas={Till: 0}, settings=settings) as m:
        await m.start_another(Till)
        await m.drain(m.workers(Till)[0])
        flood = [asyncio.create_task(send(m, "flood")) for _ in range(30)]
        await m.settle()
        assert sum(each.done() for each in flood) == 20
        modest = [asyncio.create_task(send(m, "modest")) for _ in range(5)]
        await m.settle()
        assert sum(each.done() for each in flood) == 25
        await m.start_another(Till)
        assert await asyncio.gather(*modest) == ["modest"] * 5
        answers = await asyncio.gather(*flood)
        # The newest ones gave way.
        assert answers == ["flood"] * 5 + ["overloaded"] * 25
