"""One call for each item: order, sharing out, bounds, and the first failure."""

from __future__ import annotations

import asyncio

import pytest

import mesh
from mesh import rpc
from mesh.testing import Mesh


class Squares(mesh.Service):
    """Squares numbers, except 13."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.running = 0
        self.most = 0

    @rpc
    async def square(self, n: int) -> int:
        self.seen.append(n)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(0)
            if n == 13:
                raise ValueError("unlucky")
            return n * n
        finally:
            self.running -= 1


async def test_answers_come_in_the_order_of_the_items_from_all_instances():
    """Each item is asked once, and every instance takes part."""
    async with Mesh(Squares, replicas={Squares: 3}) as m:
        assert await m.node.map("squares.square", (n for n in range(100) if n != 13)) == [
            n * n for n in range(100) if n != 13
        ]
        shares = [each.seen for each in m.instances(Squares)]
        assert sorted(n for share in shares for n in share) == [n for n in range(100) if n != 13]
        assert all(shares)


async def test_no_more_calls_than_allowed_are_under_way():
    """`at_once` bounds what is begun before answers have come."""
    async with Mesh(Squares) as m:
        assert len(await m.node.map("squares.square", [1] * 50, at_once=4)) == 50
        assert m.instances(Squares)[0].most <= 4


async def test_the_first_failure_ends_it():
    """Its error is raised, and what was under way is cancelled."""
    async with Mesh(Squares) as m:
        with pytest.raises(mesh.RemoteError, match="unlucky"):
            await m.node.map("squares.square", [1, 13, 2, 3])
        await m.settle()
        assert m.instances(Squares)[0].running == 0
        assert await m.node.map("squares.square", []) == []
