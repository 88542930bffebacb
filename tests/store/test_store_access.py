"""[access] and deferring: whoever may call a task may defer it, and nobody else."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from store_mesh import Orders, a_place

from mesh.engines.contract import Unit
from mesh.errors import Forbidden
from mesh.store.service import Store
from mesh.tasks.contract import NewTask

RULES = [
    {"caller": "*", "service": "mesh-store"},
    {"caller": "client", "service": "orders", "methods": ["charge"]},
]


async def test_deferring_is_judged_as_a_call(tmp_path: Path) -> None:
    """What a rule lets it call, a process may defer; else it is told at once, and the store counts it."""
    async with a_place(tmp_path, Orders, access__allow=RULES) as place:
        await place.defer(NewTask("j1", "orders.charge", b"\x90"))
        for queue in ("orders.purge", "mail.send"):
            with pytest.raises(Forbidden, match=rf"'client' .*{queue}.*\[\[access\.allow\]\] of mesh-store-"):
                await place.defer(NewTask("j2", queue, b"\x90"))
        assert await place.engine.jobs.find("j2", timeout_s=1.0) is None
        [worker] = place.mesh.workers(Store)
        counted = {
            one["labels"]["service"]: one["value"]
            for one in worker.node.recorder.snapshot()["counters"]
            if one["name"] == "tasks_forbidden" and one["labels"]["caller"] == "client"
        }
        assert counted == {"orders": 1, "mail": 1}


async def test_names_that_a_caller_makes_up_are_counted_together(tmp_path: Path) -> None:
    """So that no caller can fill the metrics with series of its own."""
    async with a_place(tmp_path, Orders, access__allow=RULES) as place:
        units = [Unit(f"u{number}", (NewTask(f"j{number}", f"s{number}.t", b"\x90"),)) for number in range(150)]
        found = await asyncio.gather(
            *(place.engine.commit(unit, timeout_s=5.0) for unit in units), return_exceptions=True
        )
        assert {type(each) for each in found} == {Forbidden}
        [worker] = place.mesh.workers(Store)
        counted = {
            one["labels"]["service"]: one["value"]
            for one in worker.node.recorder.snapshot()["counters"]
            if one["name"] == "tasks_forbidden"
        }
        assert (len(counted), counted["(others)"]) == (101, 50)


async def test_one_refusal_harms_no_other_unit(tmp_path: Path) -> None:
    """Of units that go together each has its own outcome; a unit with one forbidden task is refused whole."""
    async with a_place(tmp_path, Orders, access__allow=RULES) as place:
        units = [
            Unit("u1", (NewTask("a", "orders.charge", b"\x90"),)),
            Unit("u2", (NewTask("b", "orders.charge", b"\x90"), NewTask("c", "orders.purge", b"\x90"))),
            Unit("u3", (NewTask("d", "orders.charge", b"\x90"),)),
        ]
        first, second, third = (place.engine.commit(unit, timeout_s=1.0) for unit in units)
        assert [ticket.id for ticket in (await first).tickets] == ["a"]
        with pytest.raises(Forbidden):
            await second
        assert [ticket.id for ticket in (await third).tickets] == ["d"]
        assert await place.engine.jobs.find("b", timeout_s=1.0) is None


async def test_nothing_is_denied_until_access_is_declared(tmp_path: Path) -> None:
    """And then everything is that no rule allows."""
    async with a_place(tmp_path, Orders) as place:
        await place.defer(NewTask("j1", "mail.send", b"\x90"))
    async with a_place(tmp_path, Orders, access__allow=RULES[:1]) as place:
        with pytest.raises(Forbidden):
            await place.defer(NewTask("j2", "orders.charge", b"\x90"))
